package queue

import (
	"cmp"
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

	// With turn:
	renewed time.Time // when the last renewal was sent
	settled bool      // will is written
	left    record    // by that

	mu     sync.Mutex
	will   func(*record) // what Finish or Requeue want written; the renewal does it if they cannot
	inTime bool          // Finish was called while the claim stood
}

// Build is the build as it was claimed.
func (c *Claim) Build() build.Build { return c.build }

// Sealed is what Submit was given for this build.
func (c *Claim) Sealed() []byte { return c.sealed }

// Context ends when the work must stop, with the cause ErrCanceled (then
// Finish as canceled), ErrLeaseLost or ErrClosed; and when the claim is over.
func (c *Claim) Context() context.Context { return c.ctx }

var (
	errTaken = errors.New("another worker has claimed the build")

	// errLapsed is ErrLeaseLost where nobody is known to have taken it.
	errLapsed = fmt.Errorf("%w: the queue was away for too long to renew it", ErrLeaseLost)
)

// Claim waits for a queued build and claims the one whose turn it is. Turns go
// round among the owners of the repositories: first comes whoever has the
// fewest builds running, then whoever has waited longest since its last turn,
// and of an owner's builds the one that was accepted first. While the queue is
// away or cannot be written there is nothing to claim, so it waits then too.
func (q *Queue) Claim(ctx context.Context) (*Claim, error) {
	for {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if q.ctx.Err() != nil {
			return nil, ErrClosed
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
		lost := errors.Is(err, errTaken) || errors.Is(err, ErrNotFound)
		q.view.raced(lost)
		if lost || errors.Is(err, errTokenGone) {
			continue
		}
		if err == nil {
			return c, nil
		}
		if err = q.explain(err); !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrBroken) {
			return nil, fmt.Errorf("claim build %s: %w", l.rec.Build.ID, err)
		}
		q.log.Warn("a build could not be claimed", "build", l.rec.Build.ID, "err", err)
		q.pause(ctx)
	}
}

// pause waits a moment for a queue that is away.
func (q *Queue) pause(ctx context.Context) {
	var whole <-chan struct{}
	if q.store.embedded != nil {
		whole = q.store.embedded.whole()
	}
	select {
	case <-time.After(time.Second):
	case <-whole:
	case <-ctx.Done():
	case <-q.ctx.Done():
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
	if errors.Is(err, errTaken) || errors.Is(err, ErrNotFound) {
		return nil, err
	}
	if err != nil {
		q.view.stray(name)
		return nil, err
	}
	c := &Claim{q: q, name: name, build: r.Build, turn: make(chan struct{}, 1), stop: make(chan struct{}), renewed: began}
	if r.Sealed {
		if c.sealed, err = q.token(ctx, id); err != nil {
			return nil, c.abandon(ctx, err)
		}
	}
	c.ctx, c.end = context.WithCancelCause(q.ctx)
	c.done.Go(c.renew)
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

// lapsed reports whether the claim was given up because it was not renewed. It
// may still stand in the record.
func (c *Claim) lapsed() bool { return errors.Is(context.Cause(c.ctx), errLapsed) }

// renew writes the record six times in a lease. The work is given up at three
// quarters of one: an observer counts from when it saw the last renewal, we
// count from before we wrote it, and the work needs time to stop.
func (c *Claim) renew() {
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
		if !c.beat() {
			return
		}
	}
}

// beat renews once, or writes what Finish or Requeue could not; false if there
// is nothing more to do.
func (c *Claim) beat() bool {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-c.stop:
		return false
	}
	lapse := c.renewed.Add(c.q.lease * 3 / 4)
	will := c.wanted()
	change := will
	switch {
	case will != nil:
	case c.lapsed():
		return true // the work is being stopped; then Requeue comes
	default:
		change = func(*record) {}
	}
	// A late try is worth a moment of its own, since its compare-and-set tells
	// whether the lease is lost.
	ctx, cancel := context.WithDeadline(c.q.ctx, maxTime(lapse, time.Now().Add(c.q.lease/12)))
	defer cancel()
	began := time.Now()
	r, err := c.q.update(ctx, c.build.ID, c.whileHeld(change))
	if errors.Is(err, ErrNotFound) {
		err = ErrLeaseLost
	}
	if will != nil && (err == nil || errors.Is(err, ErrLeaseLost)) {
		c.settled, c.left = err == nil, r
		c.end(cmp.Or(err, context.Canceled))
		c.q.view.drop(c) // nobody may ask again
		return false
	}
	switch {
	case err == nil:
		c.renewed = began
		return true
	case errors.Is(err, ErrLeaseLost):
		c.end(ErrLeaseLost)
		return false
	case c.q.ctx.Err() == nil && c.ctx.Err() == nil:
		c.q.log.Warn("lease of a build not renewed", "build", c.build.ID, "err", err)
	}
	if !time.Now().Before(lapse) {
		c.end(errLapsed)
	}
	return true
}

// Confirm renews the claim now. ErrLeaseLost if it is no longer ours,
// ErrUnavailable or ErrBroken if that cannot be known.
func (c *Claim) Confirm(ctx context.Context) error {
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := c.confirm(within)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrLeaseLost), errors.Is(err, ErrNotFound):
		c.end(ErrLeaseLost)
		err = ErrLeaseLost
	default:
		err = c.q.explain(err)
	}
	return fmt.Errorf("confirm the claim of build %s: %w", c.build.ID, err)
}

func (c *Claim) confirm(ctx context.Context) error {
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer func() { <-c.turn }()
	if cause := context.Cause(c.ctx); errors.Is(cause, ErrLeaseLost) {
		return cause
	}
	began := time.Now()
	_, err := c.q.update(ctx, c.build.ID, c.whileHeld(func(*record) {}))
	if err == nil {
		c.renewed = began
	}
	return err
}

// begin waits until the renewal does not write; who has a turn gives it back. A
// renewal that takes long is waiting for the queue.
func (c *Claim) begin(ctx context.Context) error {
	select {
	case c.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: a renewal is under way: %w", ErrUnavailable, context.Cause(ctx))
	}
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
// After ErrUnavailable or ErrBroken the claim goes on trying by itself, and
// calling again tells what came of it.
func (c *Claim) Finish(ctx context.Context, b build.Build) error {
	if !b.State.Ended() || b.ID != c.build.ID {
		return fmt.Errorf("finish build %s: got build %s, %s", c.build.ID, b.ID, b.State)
	}
	if b.FinishedAt.IsZero() {
		b.FinishedAt = time.Now().UTC()
	}
	err := c.release(ctx, "finish", func(r *record) { r.Build = b })
	if errors.Is(err, ErrLeaseLost) && c.finished(ctx, b) {
		return nil
	}
	return err
}

// finished reports whether an earlier call ended the build as b and never knew.
func (c *Claim) finished(ctx context.Context, b build.Build) bool {
	got, err := c.q.Get(ctx, b.ID)
	return err == nil && got.Attempt == c.build.Attempt && got.State == b.State && got.Reason == b.Reason
}

// Requeue makes the build queued again, or canceled if that was asked for, and
// gives up the claim. It does not count as a lost worker, also when the claim
// could not be renewed for so long that its Context has ended. What Finish says
// of ErrUnavailable and ErrBroken holds here too.
func (c *Claim) Requeue(ctx context.Context) error {
	return c.release(ctx, "requeue", (*record).giveBack)
}

func (c *Claim) release(ctx context.Context, doing string, change func(*record)) error {
	if !c.want(change, doing == "finish") {
		return fmt.Errorf("%s build %s: %w", doing, c.build.ID, context.Cause(c.ctx))
	}
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := c.begin(within); err != nil {
		return fmt.Errorf("%s build %s: %w", doing, c.build.ID, c.q.explain(err))
	}
	defer func() { <-c.turn }()
	r, err := c.settle(within)
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
	if doing == "finish" {
		c.q.settle(ctx, r)
	} else {
		c.q.drop(ctx, r)
	}
	return nil
}

// want notes what the end of the claim shall be. What was not stopped in time
// for its lease may not finish, but be queued again.
func (c *Claim) want(change func(*record), finish bool) (allowed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inTime = c.inTime || finish && !c.lapsed()
	allowed = !finish || c.inTime
	if !allowed {
		change = (*record).giveBack
	}
	c.will = change
	return allowed
}

func (c *Claim) wanted() func(*record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.will
}

// settle writes what is wanted.
func (c *Claim) settle(ctx context.Context) (record, error) {
	if c.settled {
		return c.left, nil
	}
	if cause := context.Cause(c.ctx); errors.Is(cause, ErrLeaseLost) && !c.lapsed() {
		return record{}, cause
	}
	r, err := c.q.update(ctx, c.build.ID, c.whileHeld(c.wanted()))
	if errors.Is(err, ErrNotFound) {
		err = ErrLeaseLost
	}
	return r, err
}
