package queue_test

import (
	"testing"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/queue"
)

// What is restored is remembered as if it had ended here; what is there stays.
func TestRestore(t *testing.T) {
	q := open(t, queue.Options{Dir: t.TempDir()})
	b := newBuild("v1")
	if err := q.Restore(t.Context(), b); err == nil {
		t.Error("a build that has not ended was restored")
	}
	b.State, b.Attempt = build.Succeeded, 2
	if err := q.Restore(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if got, err := q.Get(t.Context(), b.ID); err != nil || got.State != build.Succeeded || got.Attempt != 2 {
		t.Fatalf("Get = %+v, %v", got, err)
	}
	former := b
	former.State, former.Attempt = build.Failed, 1
	if err := q.Restore(t.Context(), former); err != nil {
		t.Fatal(err)
	}
	if got, err := q.Get(t.Context(), b.ID); err != nil || got.State != build.Succeeded {
		t.Errorf("after an earlier attempt: %+v, %v", got, err)
	}
	page, _, err := q.List(t.Context(), queue.Filter{})
	if err != nil || len(page) != 1 {
		t.Errorf("List = %d builds, %v", len(page), err)
	}
}
