package queue

import (
	"context"
	"fmt"

	"github.com/monochromegane/cargo/build"
)

// Restore puts an ended build among those that are remembered, as after the
// loss of the queue, unless it is there, or a later attempt of it.
func (q *Queue) Restore(ctx context.Context, b build.Build) error {
	if !b.ID.Valid() || !b.State.Ended() {
		return fmt.Errorf("restore build %q: want one that has ended, with its id", b.ID)
	}
	if _, ok := q.view.id(b.ID); ok {
		return nil
	}
	err := q.patiently(ctx, func() error { return q.keep(ctx, record{Build: b}) })
	if err != nil {
		return fmt.Errorf("restore build %s: %w", b.ID, q.explain(err))
	}
	return nil
}
