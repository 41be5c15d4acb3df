package queue

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// heartbeat is how often a consumer without news says that it is there.
const heartbeat = 2 * time.Second

var (
	errLag  = errors.New("it is behind the stream")
	errGap  = errors.New("a message is missing")
	errAnew = errors.New("the stream was made anew")

	errReconnected = errors.New("the connection is a new one")
)

// A watch is one consumer of the live records: first all there are, then what
// changes. It never mends itself: whatever is odd about it, the next one lists
// everything again.
type watch struct {
	q        *Queue
	consumer jetstream.Consumer
	messages jetstream.MessagesContext
	last     uint64 // consumer sequence of the last message
	pending  uint64 // messages of the listing that are still to come
	listed   map[string]bool
}

// newWatch begins a listing.
func (q *Queue) newWatch(ctx context.Context) (*watch, error) {
	w := &watch{q: q, listed: map[string]bool{}}
	err := q.store.ask(ctx, func(ctx context.Context) (err error) {
		w.consumer, err = q.store.records.CreateConsumer(ctx, jetstream.ConsumerConfig{
			DeliverPolicy:     jetstream.DeliverLastPerSubjectPolicy,
			FilterSubject:     q.store.key(">"),
			AckPolicy:         jetstream.AckNonePolicy,
			MemoryStorage:     true,
			Replicas:          1,
			InactiveThreshold: time.Minute,
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	w.pending = w.consumer.CachedInfo().NumPending
	w.messages, err = w.consumer.Messages(jetstream.PullMaxMessages(500), jetstream.PullExpiry(5*heartbeat),
		jetstream.PullHeartbeat(heartbeat), jetstream.WithMessagesErrOnMissingHeartbeat(true))
	if err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *watch) close() {
	if w.messages != nil {
		w.messages.Stop()
	}
	// Best effort: a consumer that nobody asks goes by itself.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.q.ctx), time.Second)
	defer cancel()
	_ = w.q.store.records.DeleteConsumer(ctx, w.consumer.CachedInfo().Name)
}

// list takes over everything that is there.
func (w *watch) list(ctx context.Context) error {
	for w.pending > 0 {
		if err := w.next(ctx); err != nil {
			return err
		}
	}
	return w.sweep(ctx)
}

// next takes over one message.
func (w *watch) next(ctx context.Context) error {
	m, err := w.messages.Next(jetstream.NextContext(ctx))
	if err != nil {
		return err
	}
	meta, err := m.Metadata()
	if err != nil {
		return err
	}
	if meta.Sequence.Consumer != w.last+1 {
		return errGap
	}
	w.last = meta.Sequence.Consumer
	if w.pending > 0 {
		w.pending--
	}
	if meta.NumPending == 0 {
		w.pending = 0
	}
	key := m.Subject()[len(w.q.store.key("")):]
	if w.listed != nil {
		w.listed[key] = true
	}
	w.q.observe(key, m.Data(), m.Headers(), meta.Sequence.Stream)
	w.q.seen.reach(meta.Sequence.Stream)
	return nil
}

// sweep asks for each build of the view that was not listed: it has been
// purged so long ago that not even the marker is there, or it is newer than
// what the server knew that made the list.
func (w *watch) sweep(ctx context.Context) error {
	for _, l := range w.q.view.all() {
		if w.listed[l.key] {
			continue
		}
		if err := w.q.refresh(ctx, l.key, l.rec.rev); err != nil {
			return err
		}
	}
	w.listed = nil
	return nil
}

// watch takes over what other processes write, and starts anew whenever that
// ends; our own writes are in the view already when they come back.
func (q *Queue) watch(w *watch) {
	for pause := 50 * time.Millisecond; ; {
		began := time.Now()
		err := q.follow(w)
		if q.ctx.Err() != nil {
			return
		}
		q.log.Warn("the watch of the live builds is started anew", "why", err)
		if time.Since(began) > time.Minute {
			pause = 50 * time.Millisecond
		}
		for w = nil; w == nil; pause = min(2*pause, 2*time.Second) {
			if rest(q.ctx, pause) != nil {
				return
			}
			if w, err = q.newWatch(q.ctx); err != nil {
				q.log.Debug("the live builds cannot be watched", "err", err)
			}
		}
	}
}

// follow takes over what w brings until it fails.
func (q *Queue) follow(w *watch) error {
	defer w.close()
	ctx, cancel := context.WithCancelCause(q.ctx)
	defer cancel(nil)
	q.store.watched.set(cancel)
	if w.listed != nil {
		if err := w.list(ctx); err != nil {
			return cause(ctx, err)
		}
	}
	for {
		if err := w.next(ctx); err != nil {
			return cause(ctx, err)
		}
	}
}

func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// A canceler ends the present watch.
type canceler struct {
	mu     sync.Mutex
	cancel context.CancelCauseFunc
}

func (c *canceler) set(cancel context.CancelCauseFunc) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cancel = cancel
}

func (c *canceler) end(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancel != nil {
		c.cancel(why)
	}
}
