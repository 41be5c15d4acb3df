package queue

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// settle retires r if it has ended. That it has is on disk already, so an
// error here is for tend, which tries again, not for the caller.
func (q *Queue) settle(ctx context.Context, r record) {
	if !r.Build.State.Ended() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	if l, ok := q.view.id(r.Build.ID); ok {
		if err := q.retire(ctx, l); err != nil && q.ctx.Err() == nil {
			q.log.Warn("ended build stays among the live ones for now", "build", r.Build.ID, "err", err)
		}
	}
}

// retire moves an ended build out of "live". It may be done twice, at once or
// after a crash between any two of its steps.
func (q *Queue) retire(ctx context.Context, l live) error {
	id := string(l.rec.Build.ID)
	if err := q.keep(ctx, l.rec); err != nil {
		return fmt.Errorf("store ended build %s: %w", id, err)
	}
	if l.rec.Sealed {
		if err := q.store.tokens.erase(ctx, id); err != nil {
			return fmt.Errorf("erase the token of build %s: %w", id, err)
		}
	}
	err := q.store.purge(ctx, l.key, l.rec.rev)
	if errors.Is(err, jetstream.ErrKeyRevisionMismatch) { // somebody else has done it, or it runs again
		err = q.refresh(ctx, l.key, l.rec.rev)
	}
	if err != nil {
		return fmt.Errorf("purge ended build %s: %w", id, err)
	}
	return nil // the view forgets the build when the watch brings the purge
}

// keep writes an ended build into "ended", where it may stand already: from an
// earlier call, or as it ended before it was queued again under its id.
func (q *Queue) keep(ctx context.Context, r record) error {
	id := string(r.Build.ID)
	data, err := r.retired().encode()
	if err != nil {
		return err
	}
	var before uint64
	for {
		exists, err := q.store.ended.put(ctx, id, data, before)
		if err != nil || !exists {
			return err
		}
		there, seq, err := q.store.ended.get(ctx, id)
		if errors.Is(err, ErrNotFound) {
			before = 0 // it has just been pushed out
			continue
		}
		if err != nil {
			return err
		}
		if former, err := decode(there); err == nil && !r.supersedes(former) {
			return nil
		}
		before = seq
	}
}
