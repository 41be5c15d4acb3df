package sandbox

import (
	"errors"

	"github.com/monochromegane/cargo/executor"
)

// Verdict returns what executor.Executor.Run must for a command that exited
// with status code and was not canceled, having told limited, if it is not nil,
// what must be told of a command that succeeded. It is final once
// Close has returned.
func (c *Counters) Verdict(code int, limited func(limit error)) error {
	var limits []error
	if c.OutOfMemory() {
		limits = append(limits, executor.ErrOutOfMemory)
	}
	if c.TooManyProcesses() {
		limits = append(limits, executor.ErrTooManyProcesses)
	}
	if code == 0 {
		for _, l := range limits {
			if limited != nil {
				limited(l)
			}
		}
		return nil
	}
	exit := &executor.ExitError{Code: code}
	if len(limits) > 0 {
		return &executor.LimitError{Limit: limits[0], Exit: exit}
	}
	return exit
}

// TellExited calls the step's Exited, if it is there and err is an end of which
// it must be told.
func TellExited(step executor.Step, err error) {
	_, ok := errors.AsType[*executor.ExitError](err)
	if step.Exited != nil && (err == nil || ok) {
		step.Exited(err)
	}
}
