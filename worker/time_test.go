package worker

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/queue"
)

// A queue that does not answer is asked for as long as the server runs, and a
// while after that; another error is not.
func TestSettle(t *testing.T) {
	for name, tc := range map[string]struct {
		err   error
		after time.Duration // when the queue is well again; 0: never
		stop  time.Duration // of the server; 0: never
		want  time.Duration // when settle ends, or a little later
		done  bool
	}{
		"away for an hour": {err: queue.ErrUnavailable, after: time.Hour, want: time.Hour, done: true},
		"no disk for long": {err: queue.ErrBroken, after: time.Hour, want: time.Hour, done: true},
		"server stops":     {err: queue.ErrUnavailable, stop: time.Hour, want: time.Hour + endTimeout},
		"just in time":     {err: queue.ErrUnavailable, after: time.Hour + 10*time.Second, stop: time.Hour, want: time.Hour + 10*time.Second, done: true},
		"something else":   {err: errors.New("x"), want: endTimeout},
		"not ours":         {err: queue.ErrLeaseLost},
		"closed":           {err: queue.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				serving, stop := context.WithCancel(t.Context())
				defer stop()
				if tc.stop > 0 {
					defer time.AfterFunc(tc.stop, stop).Stop()
				}
				began := time.Now()
				err := settle(serving, func(context.Context) error {
					if tc.after > 0 && time.Since(began) >= tc.after {
						return nil
					}
					return tc.err
				})
				if took := time.Since(began); took < tc.want || took > tc.want+maxSettlePause {
					t.Errorf("it took %v, want %v", took, tc.want)
				}
				if (err == nil) != tc.done {
					t.Errorf("error %v", err)
				}
			})
		})
	}
}

// A call that hangs is a queue that does not answer.
func TestSettleHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		err := settle(t.Context(), func(ctx context.Context) error {
			if calls++; calls < 5 {
				<-ctx.Done()
				return context.Cause(ctx)
			}
			return nil
		})
		if err != nil || calls != 5 {
			t.Errorf("%d calls, %v", calls, err)
		}
	})
}

func TestWithin(t *testing.T) {
	errLate, errEnd := errors.New("late"), errors.New("end")
	wait := func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) }
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if err := within(t.Context(), time.Hour, errLate, wait); !errors.Is(err, errLate) || time.Since(began) != time.Hour {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		defer time.AfterFunc(time.Minute, func() { cancel(errEnd) }).Stop()
		if err := within(ctx, time.Hour, errLate, wait); !errors.Is(err, errEnd) || errors.Is(err, errLate) {
			t.Errorf("canceled: %v", err)
		}
		if err := within(t.Context(), time.Hour, errLate, func(context.Context) error { return errEnd }); err != errEnd {
			t.Errorf("failed: %v", err)
		}
	})
}

// pinged is an executor that answers once it is back.
type pinged struct {
	executor.Executor
	back time.Time
}

func (p pinged) Ping(context.Context) (executor.Info, error) {
	if time.Now().Before(p.back) {
		return executor.Info{}, executor.ErrUnavailable
	}
	return executor.Info{}, nil
}

// A worker whose builds break through no fault of theirs claims ever less
// often, until one gets through, and nothing while its runtime is away.
func TestSetbacks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		w := New(Options{Executor: pinged{back: began.Add(2 * time.Hour)}, Log: slog.New(slog.DiscardHandler)})
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { w.keepGate(ctx) })
		open := w.gate.pass(ctx)
		w.gate.setback()
		w.gate.setback() // together with the first
		if open.Err() == nil {
			t.Error("who waits for a build may still have one")
		}
		w.gate.pass(ctx)
		if away := time.Since(began); away < 2*time.Hour || away > 2*time.Hour+maxRest {
			t.Errorf("claims again after %v", away)
		}
		w.gate.recover()
		var rests []time.Duration
		for range 9 {
			shut := time.Now()
			w.gate.setback()
			w.gate.pass(ctx)
			rests = append(rests, time.Since(shut))
		}
		w.gate.recover()
		shut := time.Now()
		w.gate.setback()
		w.gate.pass(ctx)
		rests = append(rests, time.Since(shut))
		want := []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 60, 1}
		for i := range want {
			want[i] *= time.Second
		}
		if !slices.Equal(rests, want) {
			t.Errorf("rests %v, want %v", rests, want)
		}
		stop()
		wg.Wait()
	})
}

// Nothing is claimed before what can be mended is mended, as an image that
// somebody has removed.
func TestMend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		w := New(Options{Executor: pinged{}, Log: slog.New(slog.DiscardHandler), Mend: func(context.Context) error {
			if time.Since(began) < time.Hour {
				return executor.ErrNoImage
			}
			return nil
		}})
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { w.keepGate(ctx) })
		w.gate.pass(ctx)
		w.gate.setback()
		w.gate.pass(ctx)
		if away := time.Since(began); away < time.Hour || away > time.Hour+maxRest {
			t.Errorf("claims again after %v", away)
		}
		stop()
		wg.Wait()
	})
}

// A worker that is drained during a rest stays shut after it.
func TestDrainedWhileResting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var on atomic.Bool
		changed := make(chan struct{})
		w := New(Options{
			Executor: pinged{}, Log: slog.New(slog.DiscardHandler),
			Draining: func() (bool, <-chan struct{}) {
				if on.Load() {
					return true, nil
				}
				return false, changed
			},
		})
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { w.keepGate(ctx) })
		w.gate.pass(ctx)
		w.gate.setback()
		on.Store(true)
		close(changed)
		wait, enough := context.WithTimeout(ctx, time.Hour)
		defer enough()
		if open := w.gate.pass(wait); open != wait {
			t.Error("a drained worker may claim")
		}
		stop()
		wg.Wait()
	})
}

// A setback between the question and the opening counts.
func TestSetbackAsTheGateOpens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w *Worker
		w = New(Options{
			Executor: pinged{}, Log: slog.New(slog.DiscardHandler),
			Draining: sync.OnceValues(func() (bool, <-chan struct{}) {
				w.gate.setback()
				return false, nil
			}),
		})
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { w.keepGate(ctx) })
		began := time.Now()
		w.gate.pass(ctx)
		if rest := time.Since(began); rest != time.Second {
			t.Errorf("open after %v", rest)
		}
		stop()
		wg.Wait()
	})
}
