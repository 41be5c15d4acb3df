package executortest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/monochromegane/cargo/executor"
)

// A door answers every request with a greeting and counts what the executor
// does to it.
type door struct {
	http.Server
	serving atomic.Int64
	served  atomic.Int64
	closed  atomic.Int64
	addr    atomic.Value // string
}

func newDoor(greeting string) *door {
	d := new(door)
	d.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, greeting) })
	return d
}

func (d *door) Serve(ln net.Listener) error {
	d.addr.Store(ln.Addr().String())
	d.served.Add(1)
	d.serving.Add(1)
	defer d.serving.Add(-1)
	return d.Server.Serve(ln)
}

func (d *door) Close() error {
	d.closed.Add(1)
	return d.Server.Close()
}

// check says what is wrong with a door whose Run has returned.
func (d *door) check(r *run) {
	r.Helper()
	if d.served.Load() != 1 || d.closed.Load() != 1 || d.serving.Load() != 0 {
		r.Errorf("the door: Serve called %d times and %d under way, Close called %d times, want 1, 0 and 1",
			d.served.Load(), d.serving.Load(), d.closed.Load())
	}
}

const getDoor = "wget -q -O - http://" + executor.DoorAddr + "/"

// The command's first act is to go through the door: there is no wait in it.
func testDoor(r *run) {
	d := newDoor("welcome")
	step := r.command(strings.Fields(getDoor)...)
	step.Door = d
	if out := r.output(step); out != "welcome" {
		r.Errorf("stdout %q", out)
	}
	d.check(r)
	// Without one there is nothing.
	_, _, err := r.run(r.Context(), r.step(getDoor))
	r.exits(err, 1)
}

func testDoorOnCancel(r *run) {
	d := newDoor("welcome")
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	step := r.step(getDoor + "; trap 'exit 1' TERM; echo; echo ready; while :; do sleep 0.05; done")
	step.Door = d
	wait := r.start(ctx, step, "ready\n")
	cancel(errGone)
	_, err := wait()
	r.canceledBy(err, errGone)
	d.check(r)
}

// A step that never comes to run leaves no server behind.
func testDoorUnused(r *run) {
	d := newDoor("welcome")
	step := r.step("exit 0")
	step.Image = "localhost/cargo/no-such-image:1"
	step.Door = d
	_, _, err := r.run(r.Context(), step)
	r.fault(err)
	if d.serving.Load() != 0 {
		r.Error("Serve has not returned")
	}
}
