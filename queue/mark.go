package queue

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// marksEvery bounds how often all who ask for builds that are not there make
// the cluster write.
const marksEvery = 20 * time.Millisecond

// marks are written into the stream of the live records by a process that wants
// to know that it has missed nothing. Reading would not tell: a leader that
// stood still while another was elected answers from what it had, but most of
// its followers will not write for it. All who wait share one.
type marks struct {
	mu   sync.Mutex
	next *mark // to be written; nil if nobody waits
	last time.Time
}

type mark struct {
	written chan struct{}
	seq     uint64
	err     error
}

// wait returns the sequence of a mark that was written after the call. The
// first who waits writes it; if its ctx ends, the others have ErrUnavailable.
func (m *marks) wait(ctx context.Context, write func(context.Context) (uint64, error)) (uint64, error) {
	m.mu.Lock()
	k, pause := m.next, time.Until(m.last.Add(marksEvery))
	first := k == nil
	if first {
		k = &mark{written: make(chan struct{})}
		m.next = k
	}
	m.mu.Unlock()
	if !first {
		select {
		case <-k.written:
			return k.seq, k.err
		case <-ctx.Done():
			return 0, fmt.Errorf("%w: a mark is under way: %w", ErrUnavailable, context.Cause(ctx))
		}
	}
	_ = rest(ctx, pause) // write sees the end of ctx, too
	m.mu.Lock()
	m.next, m.last = nil, time.Now()
	m.mu.Unlock()
	k.seq, k.err = write(ctx)
	close(k.written)
	return k.seq, k.err
}

// mark writes a marker as a purge does, of a key that no build has.
func (s *store) mark(ctx context.Context) (seq uint64, err error) {
	m := nats.NewMsg(s.key("mark"))
	m.Header.Set("KV-Operation", "PURGE")
	m.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
	err = s.ask(ctx, func(ctx context.Context) error {
		ack, err := s.js.PublishMsg(ctx, m, jetstream.WithMsgTTL(markerTTL))
		if err == nil {
			seq = ack.Sequence
		}
		return err
	})
	return seq, err
}
