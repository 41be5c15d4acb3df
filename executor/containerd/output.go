package containerd

import (
	"io"
	"sync"
)

// An output passes what a step writes on to its writers. It reads on when a
// writer fails: a step whose output nobody reads would stand still.
type output struct {
	mu *sync.Mutex // shared where both streams go to one writer
	to io.Writer   // nil when broken, or not wanted
}

// outputs returns the two streams of a step. Like os/exec, they do not call
// Write at the same time when both writers are the same.
func outputs(stdout, stderr io.Writer) (out, errs *output) {
	out = &output{mu: new(sync.Mutex), to: stdout}
	errs = &output{mu: new(sync.Mutex), to: stderr}
	if same(stdout, stderr) {
		errs.mu = out.mu
	}
	return out, errs
}

// same reports whether a and b are one writer; a type that cannot be compared
// makes them two.
func same(a, b io.Writer) (same bool) {
	defer func() { _ = recover() }()
	return a == b
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.to != nil {
		if _, err := o.to.Write(p); err != nil {
			o.to = nil
		}
	}
	return len(p), nil
}
