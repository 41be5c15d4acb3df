package executortest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/monochromegane/cargo/executor"
)

// An id is free again as soon as Run has returned.
func testIDReused(r *run) {
	step := r.step("echo again")
	for range 3 {
		if out := r.output(step); out != "again\n" {
			r.Errorf("stdout %q", out)
		}
	}
	// Every character that an id may have, and every length.
	for _, id := range []string{"a", "-", "--a--", "A-1", strings.Repeat("x", 64), strings.Repeat("-", 64)} {
		step.ID = id
		if out := r.output(step); out != "again\n" {
			r.Errorf("step %q: stdout %q", id, out)
		}
	}
}

func testConcurrent(r *run) {
	const n = 8
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			own := fmt.Sprintf("door %d", i)
			d := newDoor(own)
			step := r.step(fmt.Sprintf("for i in 1 2 3; do %s; echo; done; exit %d", getDoor, i))
			step.Door = d
			out, errs, err := r.run(r.Context(), step)
			if i == 0 && err != nil {
				r.Errorf("Run = %v, stderr %q", err, errs)
			} else if i > 0 {
				r.exits(err, i)
			}
			if want := strings.Repeat(own+"\n", 3); out != want {
				r.Errorf("stdout %q, want %q", out, want)
			}
			d.check(r)
		})
	}
	wg.Wait()
}

func testReapNothing(r *run) {
	if n, err := r.Executor.Reap(r.Context()); n != 0 || err != nil {
		r.Errorf("Reap = %d, %v", n, err)
	}
}

// Whatever still ran is gone when Exited is called, and what was written is
// there; the container need not be gone.
func testExited(r *run) {
	dir := r.writableDir()
	for _, code := range []int{0, 3} {
		d := newDoor("welcome")
		var out bytes.Buffer
		var told []error
		var written, size int
		step := r.step(fmt.Sprintf("(while :; do echo x; echo x >>written; done) & sleep 0.1; echo last; exit %d", code))
		step.Door, step.Dir, step.Mounts = d, "/go", mountAt("/go", dir, false)
		step.Stdout = &out
		length := func() int {
			b, err := os.ReadFile(filepath.Join(dir, "written"))
			if err != nil {
				r.Error(err)
			}
			return len(b)
		}
		step.Exited = func(err error) {
			told = append(told, err)
			d.check(r)
			written, size = out.Len(), length()
		}
		err := r.Executor.Run(r.Context(), step)
		if now := length(); out.Len() != written || now != size || !strings.Contains(out.String(), "last\n") {
			r.Errorf("a process of the step still ran: %d and %d bytes of output, %d and %d in a file", written, out.Len(), size, now)
		}
		if code == 0 && err != nil {
			r.Errorf("Run = %v", err)
		} else if code != 0 {
			r.exits(err, code)
		}
		if len(told) != 1 || told[0] != err {
			r.Errorf("Exited was told %v, Run = %v", told, err)
		}
	}
}

// What did not run, or was stopped, has no end of its own.
func testExitedNot(r *run) {
	missing, stopped := r.step("exit 0"), r.step("trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done")
	missing.Image = "localhost/cargo/no-such-image:1"
	for _, step := range []*executor.Step{&missing, &stopped} {
		step.Exited = func(err error) { r.Errorf("Exited was told %v", err) }
	}
	_, _, err := r.run(r.Context(), missing)
	r.fault(err)
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	wait := r.start(ctx, stopped, "ready\n")
	cancel(errGone)
	_, err = wait()
	r.canceledBy(err, errGone)
}
