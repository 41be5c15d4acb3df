package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// patience is how long one call of ours tries to reach a queue that does
	// not answer before it says ErrUnavailable.
	patience = 10 * time.Second

	// A request may get lost on its way through a cluster that elects a leader;
	// the embedded server loses none, but its disk may be slow.
	clusterTimeout  = 3 * time.Second
	embeddedTimeout = 15 * time.Second
)

// ask sends one request, which is over with the connection that it went
// through. Its error wraps ErrUnavailable if nothing is known of the answer.
func (s *store) ask(ctx context.Context, request func(context.Context) error) error {
	timeout := embeddedTimeout
	if s.cluster != nil {
		timeout = clusterTimeout
	}
	within, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	defer context.AfterFunc(s.connection(), cancel)()
	err := request(within)
	if err != nil && unanswered(err) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}

// unanswered reports whether err says that the request did not get an answer,
// or one that may be another in a moment.
func unanswered(err error) bool {
	for _, known := range []error{
		context.DeadlineExceeded, context.Canceled, // of the one request
		nats.ErrTimeout, nats.ErrNoResponders, jetstream.ErrNoStreamResponse,
		nats.ErrConnectionReconnecting, nats.ErrDisconnected, nats.ErrReconnectBufExceeded,
		nats.ErrConnectionClosed, nats.ErrStaleConnection, nats.ErrNoServers,
		jetstream.ErrStreamNotFound, // said by a cluster that has just been started
	} {
		if errors.Is(err, known) {
			return true
		}
	}
	e, ok := errors.AsType[*jetstream.APIError](err)
	return ok && (e.Code >= 500 || e.ErrorCode == accountFull)
}

// patiently calls try until it returns something else than ErrUnavailable, ctx
// ends or the queue is closed.
func (q *Queue) patiently(ctx context.Context, try func() error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(q.ctx, cancel)()
	return patiently(ctx, try)
}

func patiently(ctx context.Context, try func() error) error {
	for pause := 25 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := try()
		if !errors.Is(err, ErrUnavailable) {
			return err
		}
		if rest(ctx, pause) != nil {
			return err
		}
	}
}

// rest waits, and returns an error if ctx ends first.
func rest(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// explain is ErrClosed or ErrBroken in place of what the store says then.
func (q *Queue) explain(err error) error {
	if q.ctx.Err() != nil {
		return ErrClosed
	}
	if broken := q.store.broken(); broken != nil {
		return broken
	}
	return err
}
