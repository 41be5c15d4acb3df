package queue_test

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/queue"
)

var quiet = slog.New(slog.DiscardHandler)

// fillQueue submits n different builds from 32 clients and returns how long
// each took, the longest last.
func fillQueue(t testing.TB, q *queue.Queue, n int) []time.Duration {
	t.Helper()
	took := make([]time.Duration, n)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				began := time.Now()
				if _, err := q.Submit(context.Background(), queue.Submission{Build: newBuild(fmt.Sprint("v", i))}); err != nil {
					t.Error(err)
				}
				took[i-1] = time.Since(began)
			}
		})
	}
	wg.Wait()
	slices.Sort(took)
	return took
}

func BenchmarkSubmit32Clients(b *testing.B) {
	q := open(b, queue.Options{Dir: b.TempDir(), Limit: 1 << 30, Log: quiet})
	b.ResetTimer()
	took := fillQueue(b, q, b.N)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "submits/s")
	b.ReportMetric(took[len(took)*99/100].Seconds()*1000, "p99-ms")
}

func BenchmarkLifeOfABuild(b *testing.B) {
	q := open(b, queue.Options{Dir: b.TempDir(), Log: quiet})
	for b.Loop() {
		submit(b, q, newBuild("v1"), []byte("sealed"))
		finish(b, claim(b, q), build.Succeeded)
	}
}

func Benchmark10000Queued(b *testing.B) {
	dir := b.TempDir()
	q := open(b, queue.Options{Dir: dir, Limit: 1 << 30, Log: quiet})
	fillQueue(b, q, 10_000)
	b.Run("heap", func(b *testing.B) {
		for b.Loop() {
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			b.ReportMetric(float64(m.HeapAlloc)/(1<<20), "heap-MiB")
		}
	})
	outer := b
	b.Run("start", func(b *testing.B) {
		for b.Loop() {
			q = reopen(outer, q, queue.Options{Dir: dir, Limit: 1 << 30, Log: quiet})
		}
	})
	b.Run("list", func(b *testing.B) { list(b, q, queue.Filter{}) })
	b.Run("claim", func(b *testing.B) {
		for b.Loop() {
			c := claim(b, q)
			if err := c.Requeue(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func Benchmark10000Ended(b *testing.B) {
	dir := b.TempDir()
	q := open(b, queue.Options{Dir: dir, Limit: 1 << 30, Log: quiet})
	fillQueue(b, q, 10_000)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for q.Depth() > 3 {
				finish(b, claim(b, q), build.Succeeded)
			}
		})
	}
	wg.Wait()
	outer := b
	b.Run("start", func(b *testing.B) {
		for b.Loop() {
			q = reopen(outer, q, queue.Options{Dir: dir, Limit: 1 << 30, Log: quiet})
		}
	})
	b.Run("page", func(b *testing.B) { list(b, q, queue.Filter{State: build.Succeeded}) })
	b.Run("no match", func(b *testing.B) { list(b, q, queue.Filter{State: build.Failed}) })
}

func list(b *testing.B, q *queue.Queue, f queue.Filter) {
	b.Helper()
	for b.Loop() {
		if _, _, err := q.List(b.Context(), f); err != nil {
			b.Fatal(err)
		}
	}
}
