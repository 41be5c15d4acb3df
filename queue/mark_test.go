package queue

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Whoever waits gets a mark that was written after the call, and all together
// have few written.
func TestMarks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m marks
		var begun atomic.Uint64
		write := func(context.Context) (uint64, error) {
			n := begun.Add(1)
			time.Sleep(250 * time.Millisecond)
			return n, nil
		}
		var all sync.WaitGroup
		start := time.Now()
		for i := range 1000 {
			all.Go(func() {
				time.Sleep(time.Duration(i) * time.Millisecond)
				before := begun.Load()
				if seq, err := m.wait(t.Context(), write); err != nil || seq <= before {
					t.Errorf("wait = %d, %v; %d were begun before", seq, err, before)
				}
			})
		}
		all.Wait()
		if n := begun.Load(); n < 40 || n > 51 {
			t.Errorf("%d marks in %s", n, time.Since(start))
		}
		again := time.Now()
		if _, err := m.wait(t.Context(), write); err != nil || time.Since(again) > 300*time.Millisecond {
			t.Errorf("one alone waits %s, %v", time.Since(again), err)
		}
	})
}

// The end of the one who writes is no answer for the others.
func TestMarkGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := marks{last: time.Now()}
		write := func(ctx context.Context) (uint64, error) {
			if ctx.Err() != nil {
				return 0, ErrUnavailable // as ask says it
			}
			return 1, nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		var both sync.WaitGroup
		both.Go(func() { _, _ = m.wait(ctx, write) })
		synctest.Wait()
		both.Go(func() {
			if _, err := m.wait(t.Context(), write); !errors.Is(err, ErrUnavailable) {
				t.Errorf("wait = %v", err)
			}
			if seq, err := m.wait(t.Context(), write); seq != 1 || err != nil {
				t.Errorf("wait = %d, %v", seq, err)
			}
		})
		synctest.Wait()
		cancel()
		both.Wait()
	})
}

// Who has no more time while another's mark is under way does not know more than
// that the queue has not answered.
func TestMarkTakesTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m marks
		write := func(context.Context) (uint64, error) {
			time.Sleep(3 * time.Second)
			return 0, ErrUnavailable
		}
		m.last = time.Now()
		var both sync.WaitGroup
		for range 2 {
			both.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if _, err := m.wait(ctx, write); !errors.Is(err, ErrUnavailable) {
					t.Errorf("wait = %v, want ErrUnavailable", err)
				}
			})
		}
		both.Wait()
	})
}
