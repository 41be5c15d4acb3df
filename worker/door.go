package worker

import (
	"log/slog"
	"net"
	"sync"

	"github.com/monochromegane/cargo/executor"
)

// A Door is a build's way to its modules and nothing else. Serve is called for
// each step of the build and must return when its listener is closed, too.
type Door interface {
	executor.Door
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
