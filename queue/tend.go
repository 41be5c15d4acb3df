package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/monochromegane/cargo/build"
)

const (
	// tendPeriod is how often silent workers are looked for, or a twelfth of a
	// shorter lease.
	tendPeriod = 5 * time.Second

	// orphanAge is how long a token may be without a record: its writer may be on
	// the way from the one to the other.
	orphanAge = 10 * time.Minute

	inspectPeriod = time.Minute // of looking for orphans and at the streams of a cluster
)

// Recover takes back the claims of workers that are known to be dead: the
// builds are queued again, each with one more worker lost, or have ended if
// they were to be canceled or have lost three. On a cluster that are the claims
// that this worker held before it was restarted; on an embedded server, whose
// directory is locked, all. Call it after whatever those builds left running is
// gone and before the first Claim.
func (q *Queue) Recover(ctx context.Context) (n int, err error) {
	if q.store.guest {
		return 0, nil
	}
	own := q.view.abandoned(func(r record, _ time.Duration) bool { return q.store.embedded != nil || r.Worker == q.worker })
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
	every := min(tendPeriod, q.lease/12)
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	inspected := time.Now()
	for {
		select {
		case <-ticker.C:
		case <-q.ctx.Done():
			return
		}
		ctx, cancel := context.WithTimeout(q.ctx, writeTimeout)
		q.round(ctx, every)
		if time.Since(inspected) >= inspectPeriod {
			inspected = time.Now()
			q.view.forget()
			q.inspect(ctx)
		}
		cancel()
	}
}

func (q *Queue) round(ctx context.Context, every time.Duration) {
	warn := func(doing string, l live, err error) {
		if err != nil && q.ctx.Err() == nil {
			q.log.Warn("a build could not be tended", "doing", doing, "build", l.rec.Build.ID, "err", err)
		}
	}
	for _, l := range q.view.straying() {
		warn("take it back from a claim that failed", l, q.takeBack(ctx, l))
	}
	for _, l := range q.view.abandoned(func(_ record, unchanged time.Duration) bool { return unchanged >= q.lease }) {
		warn("take it from a silent worker", l, q.lose(ctx, l))
	}
	for _, l := range q.view.unretired(every) {
		warn("move it from the live builds to the ended ones", l, q.retire(ctx, l))
	}
}

// takeBack queues a build again that we claimed without knowing it.
func (q *Queue) takeBack(ctx context.Context, l live) error {
	r, err := q.update(ctx, l.rec.Build.ID, func(r *record) error {
		if r.Claim != l.rec.Claim || r.Build.State != build.Running {
			return errTaken
		}
		r.giveBack()
		return nil
	})
	if errors.Is(err, errTaken) || errors.Is(err, ErrNotFound) {
		return nil
	}
	if err == nil {
		q.drop(ctx, r)
	}
	return err
}

// inspect looks for tokens of builds that could not be accepted in the end, and
// at a cluster for what is unsafe.
func (q *Queue) inspect(ctx context.Context) {
	err := q.eraseOrphans(ctx)
	if err == nil && q.store.cluster != nil {
		var warnings []string
		if warnings, err = q.store.inspect(ctx, q.retention); err == nil {
			q.warnings.Store(&warnings)
		}
	}
	if err != nil && q.ctx.Err() == nil {
		q.log.Warn("the streams of the queue could not be looked at", "err", err)
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
	if q.store.cluster != nil {
		return q.eraseOrphans(ctx)
	}
	ids, err := q.orphanTokens(ctx)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := q.store.tokens.erase(ctx, id); err != nil {
			return fmt.Errorf("erase the token of build %s: %w", id, err)
		}
	}
	return nil
}

// orphanTokens are the builds with a token but without a live record.
func (q *Queue) orphanTokens(ctx context.Context) (ids []string, err error) {
	all, err := q.store.tokens.names(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the tokens: %w", err)
	}
	for _, id := range all {
		if _, ok := q.view.id(build.ID(id)); !ok {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// orphans are the tokens without a record that were seen.
type orphans map[string]orphan

type orphan struct {
	seq   uint64
	since time.Time
}

// eraseOrphans erases tokens that have had no record for long enough.
func (q *Queue) eraseOrphans(ctx context.Context) error {
	ids, err := q.orphanTokens(ctx)
	if err != nil {
		return err
	}
	now, due := orphans{}, orphans{}
	for _, id := range ids {
		_, seq, err := q.store.tokens.get(ctx, id)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read the token of build %s: %w", id, err)
		}
		o, ok := q.orphans[id]
		if !ok || o.seq != seq {
			o = orphan{seq: seq, since: time.Now()}
		}
		now[id] = o
		if time.Since(o.since) >= orphanAge {
			due[id] = o
		}
	}
	q.orphans = now
	return q.eraseDue(ctx, due)
}

// eraseDue erases tokens whose records are still missing when this process has
// seen all there are: its watch may have stood still for as long.
func (q *Queue) eraseDue(ctx context.Context, due orphans) error {
	if len(due) == 0 {
		return nil
	}
	if err := q.catchUp(ctx); err != nil {
		return fmt.Errorf("see whether tokens have no build: %w", err)
	}
	for id, o := range due {
		if _, ok := q.view.id(build.ID(id)); ok {
			continue
		}
		if err := q.store.tokens.eraseAt(ctx, id, o.seq); err != nil {
			return fmt.Errorf("erase the token of build %s: %w", id, err)
		}
	}
	return nil
}
