package queue

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/monochromegane/cargo/build"
)

// A Submission is a build that somebody asks for.
type Submission struct {
	Build  build.Build // with its ID and Key; the queue sets State and, if it is zero, AcceptedAt
	Sealed []byte      // the caller's token, kept until the build ends; may be empty
	Caller string      // whose Options.CallerLimit it counts for, until it ends; "" is nobody's
}

// Submit accepts s. A live build of the same key is returned instead, and
// counts for the caller who was first. What is returned without an error is on
// disk.
//
// ErrCallerFull and ErrFull if the limit of the caller's or of queued builds is
// reached; ErrUnavailable or ErrBroken if it cannot be accepted now. After any
// other error than the first two the build may or may not be there; calling
// again with the same ID is safe.
func (q *Queue) Submit(ctx context.Context, s Submission) (build.Build, error) {
	if !s.Build.ID.Valid() {
		return build.Build{}, fmt.Errorf("submit: %q is not a build id", s.Build.ID)
	}
	key := s.Build.Key.Digest()
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	turn := q.turn(key)
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
	case <-ctx.Done():
		return build.Build{}, context.Cause(ctx)
	case <-within.Done(): // those before it wait for the queue, each for as long
		return build.Build{}, fmt.Errorf("submit build %s: %w", s.Build.ID, q.explain(ErrUnavailable))
	}
	var b build.Build
	err := q.patiently(within, func() (err error) {
		b, err = q.accept(within, key, s)
		return err
	})
	if err != nil && !errors.Is(err, ErrFull) && !errors.Is(err, ErrCallerFull) {
		err = fmt.Errorf("submit build %s: %w", s.Build.ID, q.explain(err))
	}
	return b, err
}

func (q *Queue) accept(ctx context.Context, key string, s Submission) (build.Build, error) {
	b := s.Build
	if err := q.store.broken(); err != nil {
		return b, err
	}
	if done, err := q.record(ctx, b.ID); err == nil {
		return done.Build, nil // asked again after an unknown outcome
	} else if !errors.Is(err, ErrNotFound) {
		return b, err
	}
	for {
		if l, ok := q.view.key(key); ok && !l.rec.Build.State.Ended() {
			return l.rec.Build, nil
		} else if ok && l.rec.foreign() {
			return b, errForeign
		} else if ok {
			if err := q.retire(ctx, l); err != nil {
				return b, err
			}
		}
		r, err := q.create(ctx, key, s)
		if !errors.Is(err, jetstream.ErrKeyExists) {
			return r.Build, err
		}
		// Another process was first, or an earlier call whose outcome was unknown.
		if err := q.refresh(ctx, key, 0); err != nil {
			return b, err
		}
		if l, ok := q.view.key(key); r.Sealed && (!ok || l.rec.Build.ID != b.ID) {
			if err := q.store.tokens.erase(ctx, string(b.ID)); err != nil {
				return b, fmt.Errorf("erase its token: %w", err)
			}
		}
	}
}

// turn makes equal submits of this process queue up: one writes, the others
// then find its build, also when there was room for just one more.
func (q *Queue) turn(key string) chan struct{} {
	first, _ := hex.DecodeString(key[:2])
	return q.submit[first[0]]
}

// create writes the token before the record: a record is never without it.
func (q *Queue) create(ctx context.Context, key string, s Submission) (record, error) {
	r := record{Build: s.Build, Caller: s.Caller, Sealed: len(s.Sealed) > 0}
	r.Build.State = build.Queued
	if r.Build.AcceptedAt.IsZero() {
		r.Build.AcceptedAt = time.Now().UTC()
	}
	data, err := r.encode()
	if err != nil {
		return r, err
	}
	if err := q.view.reserve(r, q.limits); err != nil {
		return r, err
	}
	defer q.view.release(r.Build.ID)
	if r.Sealed {
		if _, err := q.store.tokens.put(ctx, string(r.Build.ID), s.Sealed, 0); err != nil {
			return r, fmt.Errorf("store its token: %w", err)
		}
	}
	rev, err := q.store.create(ctx, key, data)
	if err != nil {
		return r, err
	}
	return q.take(key, data, rev)
}

// Get returns the record of a build, live or ended, or ErrNotFound.
func (q *Queue) Get(ctx context.Context, id build.ID) (build.Build, error) {
	if !id.Valid() {
		return build.Build{}, ErrNotFound
	}
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var r record
	err := q.patiently(within, func() (err error) {
		if r, err = q.record(within, id); !errors.Is(err, ErrNotFound) {
			return err
		}
		// Another process may have accepted it a moment ago.
		if err := q.catchUp(within); err != nil {
			return err
		}
		r, err = q.record(within, id)
		return err
	})
	if err != nil && !errors.Is(err, ErrNotFound) {
		return build.Build{}, fmt.Errorf("get build %s: %w", id, q.explain(err))
	}
	return r.Build, err
}

// catchUp waits until the view has all that is in the store now.
func (q *Queue) catchUp(ctx context.Context) error {
	seq, err := q.newestOfAll(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, lagLimit)
	defer cancel()
	if !q.seen.wait(ctx, seq) {
		return fmt.Errorf("%w: this process is behind", ErrUnavailable)
	}
	return nil
}

func (q *Queue) newestOfAll(ctx context.Context) (seq uint64, err error) {
	if q.store.cluster != nil {
		return q.marks.wait(ctx, q.store.mark)
	}
	info, err := q.store.info(ctx, q.store.records)
	if err != nil {
		return 0, err
	}
	return info.State.LastSeq, nil
}

// record looks at the view once more after the store: a build leaves the view
// only after it has reached "ended", but one may have been submitted meanwhile.
func (q *Queue) record(ctx context.Context, id build.ID) (record, error) {
	if l, ok := q.view.id(id); ok {
		return l.rec, nil
	}
	data, _, err := q.store.ended.get(ctx, string(id))
	if errors.Is(err, ErrNotFound) {
		if l, ok := q.view.id(id); ok {
			return l.rec, nil
		}
	}
	if err != nil {
		return record{}, err
	}
	return decode(data)
}

// Wait blocks until the build has ended and returns its record.
func (q *Queue) Wait(ctx context.Context, id build.ID) (build.Build, error) {
	for {
		b, err := q.Get(ctx, id)
		if err != nil || b.State.Ended() {
			return b, err
		}
		l, ok := q.view.id(id)
		if !ok {
			continue // it has just ended
		}
		select {
		case <-l.ended:
		case <-ctx.Done():
			return build.Build{}, context.Cause(ctx)
		case <-q.ctx.Done():
			return build.Build{}, ErrClosed
		}
	}
}

// Cancel ends a queued build at once and asks the worker of a running one to
// stop; use Wait to learn when it has. ErrNotFound or ErrEnded if there is
// nothing to cancel.
func (q *Queue) Cancel(ctx context.Context, id build.ID) error {
	if b, err := q.Get(ctx, id); err != nil {
		return err
	} else if b.State.Ended() {
		return ErrEnded
	}
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ours := false
	r, err := q.update(within, id, func(r *record) error {
		switch {
		case r.Build.State.Ended():
			return ErrEnded
		case r.Build.State == build.Queued:
			ours = true
			r.cancel()
		default:
			r.Cancel = true
		}
		return nil
	})
	if errors.Is(err, ErrEnded) || errors.Is(err, ErrNotFound) { // it was there a moment ago
		if r, err := q.record(within, id); ours && err == nil && r.Build.State == build.Canceled {
			return nil // by a try that never knew
		}
		return ErrEnded
	}
	if err != nil {
		return fmt.Errorf("cancel build %s: %w", id, q.explain(err))
	}
	q.drop(ctx, r)
	return nil
}

// drop settles r, and tells of it if that was its end.
func (q *Queue) drop(ctx context.Context, r record) {
	if q.told != nil && r.Build.State.Ended() {
		q.told(r.Build)
	}
	q.settle(ctx, r)
}
