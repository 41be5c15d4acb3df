package queue

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// A leader without followers has proposed what it can never write, and refuses
// everything that comes after.
type proposing struct {
	jetstream.KeyValue
	asked atomic.Int64
}

func (p *proposing) Update(context.Context, string, []byte, uint64) (uint64, error) {
	p.asked.Add(1)
	return 0, jetstream.ErrKeyRevisionMismatch
}

func TestWriteThatIsOnlyProposed(t *testing.T) {
	t.Parallel()
	q := openTest(t, 0)
	c := claimed(t, q)
	p := &proposing{KeyValue: q.store.live}
	q.store.live = p
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := c.Confirm(ctx); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Confirm = %v, want ErrUnavailable", err)
	}
	if n := p.asked.Load(); n > 10 {
		t.Errorf("the leader was asked %d times in 2 s", n)
	}
}
