package queue

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/monochromegane/cargo/build"
)

// update applies change to the newest revision of a live record and stores the
// result, as often as it takes and until ctx ends. An error of change is
// returned as it is; with any other error but ErrNotFound the outcome is
// unknown. So it is between two tries: change must know its own work again.
func (q *Queue) update(ctx context.Context, id build.ID, change func(*record) error) (r record, err error) {
	var behind live // what the last try that failed was about
	err = q.patiently(ctx, func() error {
		if behind.key != "" {
			if err := q.refresh(ctx, behind.key, behind.rec.rev); err != nil {
				return err
			}
		}
		for {
			l, ok := q.view.id(id)
			if !ok {
				return ErrNotFound
			}
			if l.rec.foreign() {
				return errForeign
			}
			r = l.rec
			if err := change(&r); err != nil {
				return err
			}
			data, err := r.encode()
			if err != nil {
				return err
			}
			rev, err := q.store.update(ctx, l.key, data, l.rec.rev)
			if err == nil {
				r, err = q.take(l.key, data, rev)
				return err
			}
			behind = l
			if !errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
				return err
			}
			if err := q.refresh(ctx, l.key, l.rec.rev); err != nil {
				return err
			}
			if now, ok := q.view.id(id); ok && now.rec.rev == l.rec.rev {
				return errUnderWay
			}
		}
	})
	return r, err
}

// errUnderWay: a leader refuses what another write might go before, which it
// has only proposed. Without most of its followers it goes on so for seconds.
var errUnderWay = fmt.Errorf("%w: another write of the record is under way", ErrUnavailable)

// refresh reads a live record anew; rev is what the view had.
func (q *Queue) refresh(ctx context.Context, key string, rev uint64) error {
	m, err := q.store.last(ctx, q.store.records, q.store.key(key), rev)
	switch {
	case errors.Is(err, ErrNotFound):
		q.view.hide(key, rev)
		return nil
	case err != nil:
		return err
	case gone(m.Header):
		q.view.remove(key, m.Sequence)
		return nil
	}
	_, err = q.take(key, m.Data, m.Sequence)
	return err
}
