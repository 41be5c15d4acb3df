package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/monochromegane/cargo/build"
)

// ErrNotRequeued is wrapped where a build is not put back into the queue, and
// trying again will not change that. The text says why and what to do.
var ErrNotRequeued = errors.New("the build is not put back into the queue")

// Requeue puts a build back for an operator. A running one is taken from its
// worker, which learns that its lease is lost, and does not count it as a worker
// lost. One that failed as lost or internal is queued again under its id, with
// no worker lost; its next attempt is the one after the last. Of any other it is
// ErrNotRequeued, ErrNotFound if there is no such build.
//
// After ErrUnavailable it may have been done or not; calling again tells.
func (q *Queue) Requeue(ctx context.Context, id build.ID) (build.Build, error) {
	if !id.Valid() {
		return build.Build{}, fmt.Errorf("requeue build %.40q: %w", id, ErrNotFound)
	}
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var b build.Build
	err := q.patiently(within, func() (err error) {
		b, err = q.requeue(within, id)
		return err
	})
	if err != nil {
		return build.Build{}, fmt.Errorf("requeue build %s: %w", id, q.explain(err))
	}
	return b, nil
}

// requeue has three places at which a crash or a lost answer may fall, and at
// each the build is in one piece:
//
// A running build is one record and one compare-and-set: either its worker has
// it, or it is queued.
//
// A build that ended but has not left "live" is moved to "ended" first, as it
// would be anyway; nothing else has changed then.
//
// An ended build is queued by one write, which creates its record in "live".
// Before it the build has ended, after it it is queued: the record in "ended"
// stays and does not count, since whoever looks for a build looks among the live
// ones first, and is replaced when the build ends again (see record.supersedes).
// Creating is a compare-and-set, too: of two that do it at once, or one that does and one
// that submits the same key, one is told of the other.
func (q *Queue) requeue(ctx context.Context, id build.ID) (build.Build, error) {
	l, ok := q.view.id(id)
	if ok && !l.rec.Build.State.Ended() {
		return q.takeAway(ctx, l)
	}
	if ok {
		if err := q.clear(ctx, l); err != nil {
			return build.Build{}, err
		}
	}
	data, _, err := q.store.ended.get(ctx, string(id))
	if err != nil {
		return build.Build{}, err
	}
	r, err := decode(data)
	if err != nil {
		return build.Build{}, err
	}
	if err := r.refusal(); err != nil {
		return build.Build{}, err
	}
	// From here on an answer may be lost of what was done: the next try must not
	// start from what it finds then.
	var b build.Build
	err = q.patiently(ctx, func() (err error) {
		b, err = q.revive(ctx, r)
		return err
	})
	return b, err
}

// takeAway queues a running build. It does it once: what another worker has
// claimed meanwhile is not taken from that one, too.
func (q *Queue) takeAway(ctx context.Context, l live) (build.Build, error) {
	tried := false
	r, err := q.update(ctx, l.rec.Build.ID, func(r *record) error {
		switch {
		case r.Build.State == build.Running && r.Claim == l.rec.Claim:
			tried = true
			r.giveBack()
			return nil
		case tried && (r.Build.State == build.Running || r.Build.State == build.Queued || r.Build.State == build.Canceled):
			return errTaken // an earlier try did it and never knew
		case r.Build.State == build.Queued:
			return refuse("it is queued already")
		}
		return refuse("it has changed at this moment and is %s; look at it again", r.Build.State)
	})
	if errors.Is(err, errTaken) {
		return r.Build, nil
	}
	if errors.Is(err, ErrNotFound) {
		return build.Build{}, refuse("it has ended at this moment; look at it again")
	}
	if err != nil {
		return build.Build{}, err
	}
	q.log.Info("build taken from its worker on request", "build", r.Build.ID, "worker", l.rec.Worker, "state", r.Build.State)
	q.drop(ctx, r)
	return r.Build, nil
}

// clear moves an ended build out of "live".
func (q *Queue) clear(ctx context.Context, l live) error {
	if l.rec.foreign() {
		return refuse("its record was written by a newer version of Cargo; use that")
	}
	return q.retire(ctx, l)
}

// refusal says why an ended build stays as it is; nil if it need not.
func (r record) refusal() error {
	b := r.Build
	switch {
	case r.foreign():
		return refuse("its record was written by a newer version of Cargo; use that")
	case b.State == build.Succeeded:
		return refuse("it succeeded: download what it made")
	case b.State == build.Canceled:
		return refuse("it was canceled; ask for it again by POST")
	case b.Reason != build.ReasonLost && b.Reason != build.ReasonInternal:
		return refuse("it failed for a reason of its own, %s, and would again; to try all the same, ask for it by POST", b.Reason)
	case !b.Public:
		return refuse("its repository is private and the token that it was asked for with was erased when it ended; ask for it again by POST, with a token")
	}
	return nil
}

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrNotRequeued, fmt.Sprintf(format, args...))
}

// revive creates a live record for an ended build.
func (q *Queue) revive(ctx context.Context, ended record) (build.Build, error) {
	r := ended.retired()
	r.Again++
	b := &r.Build
	b.State, b.Reason, b.Message, b.ExitCode = build.Queued, "", "", nil
	b.StartedAt, b.FinishedAt = time.Time{}, time.Time{}
	b.Phases, b.Artifact, b.Executor = nil, nil, ""
	data, err := r.encode()
	if err != nil {
		return build.Build{}, err
	}
	key := b.Key.Digest()
	for {
		if l, ok := q.view.key(key); ok {
			switch other := l.rec.Build; {
			case other.ID == b.ID && !other.State.Ended():
				return other, nil // another call has done it, or an earlier try that never knew
			case !other.State.Ended():
				return build.Build{}, refuse("build %s of the same version for the same platform is %s; wait for that one", other.ID, other.State)
			}
			if err := q.clear(ctx, l); err != nil {
				return build.Build{}, err
			}
		}
		rev, err := q.store.create(ctx, key, data)
		if err == nil {
			q.log.Info("build queued again on request", "build", b.ID, "attempts", b.Attempt)
			r, err = q.take(key, data, rev)
			return r.Build, err
		}
		if !errors.Is(err, jetstream.ErrKeyExists) {
			return build.Build{}, err
		}
		if err := q.refresh(ctx, key, 0); err != nil {
			return build.Build{}, err
		}
	}
}
