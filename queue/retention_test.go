package queue_test

import (
	"errors"
	"testing"
	"time"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/queue"
)

// forgotten waits until the record of an ended build is gone.
func forgotten(t *testing.T, q *queue.Queue, id build.ID) {
	t.Helper()
	for ctx := within(t); ; time.Sleep(time.Millisecond) {
		b, err := q.Get(ctx, id)
		if errors.Is(err, queue.ErrNotFound) {
			return
		}
		if err != nil || ctx.Err() != nil {
			t.Fatalf("Get = %s, %v; want ErrNotFound", b.State, err)
		}
	}
}

func TestRetention(t *testing.T) {
	dir := t.TempDir()
	ended := func(q *queue.Queue, version string) build.ID {
		b := submit(t, q, newBuild(version), nil)
		finish(t, claim(t, q), build.Succeeded)
		return b.ID
	}
	q := open(t, queue.Options{Dir: dir})
	before := ended(q, "before")

	q = reopen(t, q, queue.Options{Dir: dir, Retention: time.Hour})
	hour := ended(q, "within an hour")
	get(t, q, before)

	const short = 200 * time.Millisecond // applies to what is there already
	q = reopen(t, q, queue.Options{Dir: dir, Retention: short})
	forgotten(t, q, before)
	forgotten(t, q, hour)
	forgotten(t, q, ended(q, "soon gone"))
	live := submit(t, q, newBuild("live"), nil)
	if page, more, err := q.List(t.Context(), queue.Filter{}); err != nil || more || len(page) != 1 || page[0].ID != live.ID {
		t.Errorf("List = %v, %v, %v; want the live build alone", page, more, err)
	}
	if _, _, err := q.List(t.Context(), queue.Filter{After: before}); !errors.Is(err, queue.ErrNotFound) {
		t.Errorf("List after a forgotten build = %v", err)
	}
}
