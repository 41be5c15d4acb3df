package queue

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
)

// A former leader has woken, and does not know yet that it is none, nor what
// was written since. For a moment it counts the followers that it had.
type former struct {
	jetstream.Stream
	answers atomic.Int64 // that it still gives
}

func (f *former) GetLastMsgForSubject(ctx context.Context, subject string) (*jetstream.RawStreamMsg, error) {
	if f.answers.Add(-1) >= 0 {
		return nil, jetstream.ErrMsgNotFound
	}
	return f.Stream.GetLastMsgForSubject(ctx, subject)
}

func (f *former) Info(ctx context.Context, opts ...jetstream.StreamInfoOpt) (*jetstream.StreamInfo, error) {
	if f.answers.Load() >= 0 {
		return &jetstream.StreamInfo{}, nil
	}
	return f.Stream.Info(ctx, opts...)
}

func TestTokenThatAFormerLeaderDoesNotHave(t *testing.T) {
	q := openTest(t, 0)
	f := &former{Stream: q.store.tokens.stream}
	f.answers.Store(1)
	q.store.tokens.stream = f
	b := testBuild()
	if _, err := q.Submit(t.Context(), Submission{Build: b, Sealed: []byte("sealed")}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	c, err := q.Claim(ctx)
	if err != nil {
		got, _ := q.Get(t.Context(), b.ID)
		t.Fatalf("Claim = %v; the build is %s: %s", err, got.State, got.Message)
	}
	if string(c.Sealed()) != "sealed" {
		t.Errorf("the token is %q", c.Sealed())
	}
}
