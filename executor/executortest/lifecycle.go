package executortest

import (
	"fmt"
	"strings"
	"sync"
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
