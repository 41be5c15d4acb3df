package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/monochromegane/cargo/build"
)

// Recover takes back the claims that this worker held before it was restarted:
// the builds are queued again, each with one more worker lost, or have ended
// if they were to be canceled or have lost three. Call it after whatever those
// builds left running is gone and before the first Claim.
func (q *Queue) Recover(ctx context.Context) (n int, err error) {
	own := q.view.abandoned(func(r record, _ time.Duration) bool { return r.Worker == q.worker })
	for _, l := range own {
		if err := q.lose(ctx, l); err != nil {
			return n, fmt.Errorf("take back build %s: %w", l.rec.Build.ID, q.explain(err))
		}
		n++
	}
	return n, nil
}

// lose takes a build from a worker that is gone, unless the record has changed
// since l was read: then the worker is not.
func (q *Queue) lose(ctx context.Context, l live) error {
	r, err := q.update(ctx, l.rec.Build.ID, func(r *record) error {
		if r.rev != l.rec.rev {
			return errTaken
		}
		r.lose()
		return nil
	})
	if errors.Is(err, errTaken) || errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	q.log.Warn("worker lost", "build", r.Build.ID, "worker", l.rec.Worker, "lost", r.Lost)
	q.drop(ctx, r)
	return nil
}

// tend takes builds from silent workers and repeats what settle could not do.
func (q *Queue) tend() {
	every := q.lease / 4
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-q.ctx.Done():
			return
		}
		ctx, cancel := context.WithTimeout(q.ctx, writeTimeout)
		for _, l := range q.view.abandoned(func(_ record, unchanged time.Duration) bool { return unchanged >= q.lease }) {
			if err := q.lose(ctx, l); err != nil && q.ctx.Err() == nil {
				q.log.Warn("build not taken from a silent worker", "build", l.rec.Build.ID, "err", err)
			}
		}
		for _, l := range q.view.unretired(every) {
			if err := q.retire(ctx, l); err != nil && q.ctx.Err() == nil {
				q.log.Warn("ended build stays among the live ones for now", "build", l.rec.Build.ID, "err", err)
			}
		}
		cancel()
	}
}

// mend finishes what a crash left half done: builds that ended but were not
// moved, tokens whose build was never accepted or has been moved.
func (q *Queue) mend(ctx context.Context) error {
	for _, l := range q.view.unretired(0) {
		if err := q.retire(ctx, l); err != nil {
			return err
		}
	}
	ids, err := q.store.tokens.names(ctx)
	if err != nil {
		return fmt.Errorf("list the tokens: %w", err)
	}
	for _, id := range ids {
		if _, ok := q.view.id(build.ID(id)); ok {
			continue
		}
		if err := q.store.tokens.erase(ctx, id); err != nil {
			return fmt.Errorf("erase the token of build %s: %w", id, err)
		}
	}
	return nil
}
