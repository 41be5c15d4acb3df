package worker

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"

	"github.com/monochromegane/cargo/executor"
)

// A doorError takes the place of the failure of a command that may be due to
// its door.
type doorError struct{ fault, exit error }

func (e *doorError) Error() string { return fmt.Sprintf("%v, after the door: %v", e.exit, e.fault) }
func (e *doorError) Unwrap() error { return e.fault }

// pardoned returns err, the outcome of the build's commands, or the fault of
// the door during the last of them where nothing else explains that it failed.
func (j *job) pardoned(err, fault error) error {
	_, exited := errors.AsType[*executor.ExitError](err)
	limited := errors.Is(err, executor.ErrOutOfMemory) || errors.Is(err, executor.ErrTooManyProcesses) || j.diskFull()
	if fault == nil || !exited || limited {
		return err
	}
	return &doorError{fault, err}
}

// A Door is a build's way to its modules and nothing else. Serve is called for
// each step of the build and must return when its listener is closed, too.
type Door interface {
	executor.Door
	// Fault returns, and forgets, the first thing that kept it from answering
	// since Fault was called last, and was no fault of the build's: a
	// [modproxy.DoorError], or nil.
	Fault() error
	// Usage says, after Close, what went through it, for the build's log.
	Usage() []slog.Attr
}

// A stepDoor is the build's door for one step. It leaves the door itself open:
// what that bounds, it bounds for all steps together.
type stepDoor struct {
	door Door

	mu     sync.Mutex
	ln     net.Listener
	closed bool
}

func (d *stepDoor) Serve(ln net.Listener) error {
	d.mu.Lock()
	d.ln = ln
	if d.closed {
		_ = ln.Close()
	}
	d.mu.Unlock()
	return d.door.Serve(ln)
}

func (d *stepDoor) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	if d.ln == nil {
		return nil
	}
	return d.ln.Close()
}
