package queue

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/monochromegane/cargo/build"
)

// A Claim is the right of this process to run one build. It is renewed until
// Finish or Requeue has returned nil or ErrLeaseLost: who holds a Claim calls
// one of them, and again if it returns any other error.
type Claim struct {
	q      *Queue
	name   string
	build  build.Build
	sealed []byte

	ctx  context.Context
	end  context.CancelCauseFunc
	turn chan struct{} // who writes: the renewal or the holder
	stop chan struct{} // closed when the claim is over
	done sync.WaitGroup
	once sync.Once
}

// Build is the build as it was claimed.
func (c *Claim) Build() build.Build { return c.build }

// Sealed is what Submit was given for this build.
func (c *Claim) Sealed() []byte { return c.sealed }

// Context ends when the work must stop, with the cause ErrCanceled (then
// Finish as canceled), ErrLeaseLost or ErrClosed; and when the claim is over.
func (c *Claim) Context() context.Context { return c.ctx }

var errTaken = errors.New("another worker has claimed the build")

// Claim waits for a queued build and claims the one whose turn it is. Turns go
// round among the owners of the repositories: first comes whoever has the
// fewest builds running, then whoever has waited longest since its last turn,
// and of an owner's builds the one that was accepted first.
func (q *Queue) Claim(ctx context.Context) (*Claim, error) {
	for {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if q.ctx.Err() != nil {
			return nil, ErrClosed
		}
		if err := q.Err(); err != nil {
			return nil, err
		}
		l, arrived := q.view.next()
		if arrived != nil {
			select {
			case <-arrived:
			case <-ctx.Done():
			case <-q.ctx.Done():
			}
			continue
		}
		c, err := q.claim(ctx, l.rec.Build.ID)
		q.view.hold(l.rec.Build.ID, c)
		if errors.Is(err, errTaken) || errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("claim build %s: %w", l.rec.Build.ID, q.explain(err))
		}
		return c, nil
	}
}

// claim does not stop half-way when ctx ends: a claim that was written without
// its writer knowing would keep the build from everybody for a lease.
func (q *Queue) claim(ctx context.Context, id build.ID) (*Claim, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	name := rand.Text()
	began := time.Now()
	r, err := q.update(ctx, id, func(r *record) error {
		if r.Claim == name {
			return nil
		}
		if r.Build.State != build.Queued {
			return errTaken
		}
		r.Worker, r.Claim = q.worker, name
		r.Build.State = build.Running
		r.Build.StartedAt = began.UTC()
		r.Build.Attempt++
		return nil
	})
	if err != nil {
		return nil, err
	}
	c := &Claim{q: q, name: name, build: r.Build, turn: make(chan struct{}, 1), stop: make(chan struct{})}
	if r.Sealed {
		if c.sealed, _, err = q.store.tokens.get(ctx, string(id)); err != nil {
			_, giveErr := q.update(ctx, id, c.whileHeld(func(r *record) { r.giveBack() }))
			return nil, errors.Join(fmt.Errorf("read its token: %w", err), giveErr)
		}
	}
	c.ctx, c.end = context.WithCancelCause(q.ctx)
	c.done.Go(func() { c.renew(began) })
	return c, nil
}

// observe hears of each revision of the record, under the lock of the view.
func (c *Claim) observe(r record) {
	switch {
	case r.Claim != c.name:
		c.end(ErrLeaseLost)
	case r.Cancel:
		c.end(ErrCanceled)
	}
}

// whileHeld is change for as long as the claim stands.
func (c *Claim) whileHeld(change func(*record)) func(*record) error {
	return func(r *record) error {
		if r.Claim != c.name || r.Build.State != build.Running {
			return ErrLeaseLost
		}
		change(r)
		return nil
	}
}

// renew writes the record six times in a lease. It gives up at three quarters
// of one: an observer counts from when it saw the last renewal, we count from
// before we wrote it, and the work needs time to stop.
func (c *Claim) renew(renewed time.Time) {
	ticker := time.NewTicker(c.q.lease / 6)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-c.stop:
			return
		case <-c.q.ctx.Done():
			return
		}
		began := time.Now()
		err := c.write(renewed.Add(c.q.lease * 3 / 4))
		switch {
		case err == nil:
			renewed = began
		case errors.Is(err, ErrLeaseLost), errors.Is(err, ErrNotFound):
			c.end(ErrLeaseLost)
			return
		case c.q.ctx.Err() == nil:
			c.q.log.Warn("lease of a build not renewed", "build", c.build.ID, "err", err)
		}
		if time.Since(renewed) >= c.q.lease*3/4 {
			c.end(ErrLeaseLost)
			return
		}
	}
}

// write renews once; a late try is worth a moment of its own, since its
// compare-and-set tells whether the lease is lost.
func (c *Claim) write(deadline time.Time) error {
	ctx, cancel := context.WithDeadline(c.q.ctx, maxTime(deadline, time.Now().Add(c.q.lease/12)))
	defer cancel()
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-c.stop:
		return nil
	}
	_, err := c.q.update(ctx, c.build.ID, c.whileHeld(func(*record) {}))
	return err
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// Finish records how the build ended, erases its sealed token and gives up the
// claim. b.State must be an ended one; FinishedAt is set if it is zero.
// ErrLeaseLost if the build is no longer ours: what it made must be dropped.
func (c *Claim) Finish(ctx context.Context, b build.Build) error {
	if !b.State.Ended() || b.ID != c.build.ID {
		return fmt.Errorf("finish build %s: got build %s, %s", c.build.ID, b.ID, b.State)
	}
	if b.FinishedAt.IsZero() {
		b.FinishedAt = time.Now().UTC()
	}
	return c.release(ctx, "finish", func(r *record) { r.Build = b })
}

// Requeue makes the build queued again, or canceled if that was asked for, and
// gives up the claim. It does not count as a lost worker.
func (c *Claim) Requeue(ctx context.Context) error {
	return c.release(ctx, "requeue", func(r *record) { r.giveBack() })
}

func (c *Claim) release(ctx context.Context, doing string, change func(*record)) error {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	var r record
	err := context.Cause(c.ctx)
	if !errors.Is(err, ErrLeaseLost) {
		r, err = c.q.update(ctx, c.build.ID, c.whileHeld(change))
	}
	switch {
	case errors.Is(err, ErrNotFound):
		err = ErrLeaseLost
	case errors.Is(err, ErrLeaseLost) && r.Claim == c.name && r.Build.State.Ended():
		err = nil // an earlier call did it and never knew
	}
	if err != nil && !errors.Is(err, ErrLeaseLost) {
		return fmt.Errorf("%s build %s: %w", doing, c.build.ID, c.q.explain(err))
	}
	c.once.Do(func() { close(c.stop) })
	c.done.Wait()
	c.end(context.Canceled)
	c.q.view.drop(c)
	if err != nil {
		return fmt.Errorf("%s build %s: %w", doing, c.build.ID, err)
	}
	c.q.settle(ctx, r)
	return nil
}
