package queue_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/queue"
)

func submitAs(t testing.TB, q *queue.Queue, caller, version string) (build.Build, error) {
	t.Helper()
	return q.Submit(t.Context(), queue.Submission{Build: newBuild(version), Sealed: []byte("sealed"), Caller: caller})
}

func full(t testing.TB, q *queue.Queue, caller, version string) {
	t.Helper()
	if b, err := submitAs(t, q, caller, version); !errors.Is(err, queue.ErrCallerFull) || !strings.Contains(err.Error(), "2 of yours") {
		t.Errorf("Submit of %s for %q = %s, %v; want ErrCallerFull and the number", version, caller, b.ID, err)
	}
}

func TestCallerLimit(t *testing.T) {
	dir := t.TempDir()
	o := queue.Options{Dir: dir, CallerLimit: 2}
	q := open(t, o)
	accept := func(caller, version string) build.Build {
		t.Helper()
		b, err := submitAs(t, q, caller, version)
		if err != nil {
			t.Fatalf("Submit of %s for %q: %v", version, caller, err)
		}
		return b
	}
	first := accept("a", "a1")
	accept("a", "a2")
	full(t, q, "a", "a3")
	accept("b", "b1")
	for i := range 5 { // nobody's builds are not counted
		accept("", fmt.Sprint("nobody's", i))
	}
	if b := accept("a", "b1"); b.Version != "b1" { // joins b's
		t.Errorf("joined %+v", b)
	}
	accept("b", "b2")
	full(t, q, "b", "b3") // the one that a joined is still b's

	c := claim(t, q)
	if c.Build().ID != first.ID {
		t.Fatalf("claimed %s", c.Build().Version)
	}
	full(t, q, "a", "a3") // running counts
	q = reopen(t, q, o)
	full(t, q, "a", "a3") // so it does after a restart
	if _, err := q.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	full(t, q, "a", "a3") // and when it is queued again
	if err := q.Cancel(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	accept("a", "a3")
	full(t, q, "a", "a4")
	for range q.Depth() {
		finish(t, claim(t, q), build.Succeeded)
	}
	accept("a", "a5")
	accept("a", "a6")
	full(t, q, "a", "a7")
}

func TestCallerLimitOfSubmitsAtOnce(t *testing.T) {
	q := open(t, queue.Options{Dir: t.TempDir(), CallerLimit: 5})
	var wg sync.WaitGroup
	var mu sync.Mutex
	accepted := 0
	for i := range 20 {
		wg.Go(func() {
			_, err := q.Submit(context.Background(), queue.Submission{Build: newBuild(fmt.Sprint("v", i)), Caller: "a"})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				accepted++
			} else if !errors.Is(err, queue.ErrCallerFull) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if accepted != 5 || q.Depth() != 5 {
		t.Errorf("%d accepted, %d queued, want 5", accepted, q.Depth())
	}
}

// Who asked is in the record of a live build, and of no ended one.
func TestCallerIsForgottenAtTheEnd(t *testing.T) {
	dir := t.TempDir()
	q := open(t, queue.Options{Dir: dir})
	caller := "caller-" + string(build.NewID())
	if _, err := submitAs(t, q, caller, "v1"); err != nil {
		t.Fatal(err)
	}
	if !onDisk(t, dir, caller) {
		t.Fatal("the caller of a queued build is not on disk")
	}
	c := claim(t, q)
	id := c.Build().ID
	finish(t, c, build.Succeeded)
	if get(t, q, id).State != build.Succeeded {
		t.Error("the build is not recorded")
	}
	ended := filepath.Join(dir, "jetstream", "$G", "streams", "ended")
	if !onDisk(t, ended, string(id)) {
		t.Fatal("the ended build is not where this test looks")
	}
	if onDisk(t, ended, caller) {
		t.Error("the record of an ended build says who asked for it")
	}
}
