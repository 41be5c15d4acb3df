package buildlog_test

import (
	"bytes"
	"context"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/buildlog"
)

// logs are a Store or a Shared.
type logs interface {
	Create(ctx context.Context, b build.Build, limit int64) (*buildlog.Writer, error)
	Follow(ctx context.Context, id build.ID, offset int64, done <-chan struct{}, emit func(line []byte, next int64) error) error
}

// BenchmarkLatency is the time from a line of a container to a follower, at
// 10,000 lines of 100 bytes a second for 20 seconds.
func BenchmarkLatency(b *testing.B) {
	b.Run("store", func(b *testing.B) {
		s, _ := open(b, buildlog.Options{})
		latency(b, s, s)
	})
	b.Run("shared", func(b *testing.B) {
		js, a := embedded(b), newArchive()
		latency(b, newMachine(b, js, a), newMachine(b, js, a))
	})
	b.Run("cluster", func(b *testing.B) {
		c, a := newCluster(b, 4<<30), newArchive()
		three := func(o *buildlog.SharedOptions) { o.Replicas = 3 }
		latency(b, newMachine(b, c.connect(b), a, three), newMachine(b, c.connect(b), a, three))
	})
}

func latency(b *testing.B, worker, api logs) {
	const burst, bursts = 10, 20_000 // one each millisecond
	for b.Loop() {
		bd, done := attempt(build.NewID(), 1), make(chan struct{})
		w, err := worker.Create(b.Context(), bd, 1<<40)
		must(b, err)
		sent, took := make([]time.Time, burst*bursts), make([]time.Duration, 0, burst*bursts)
		followed := make(chan error, 1)
		go func() {
			followed <- api.Follow(b.Context(), bd.ID, 0, done, func(line []byte, _ int64) error {
				_, rest, _ := bytes.Cut(line, []byte(`"msg":"`))
				number, _, _ := bytes.Cut(rest, []byte(" "))
				n, err := strconv.Atoi(string(number))
				if err == nil {
					took = append(took, time.Since(sent[n]))
				}
				return err
			})
		}()
		out := w.Stream("stdout", "build")
		tick := time.NewTicker(time.Millisecond)
		began, n := time.Now(), 0
		for n < len(sent) {
			<-tick.C
			for due := min(len(sent), int(time.Since(began)/time.Millisecond)*burst); n < due; n++ {
				sent[n] = time.Now()
				_, _ = io.WriteString(out, strconv.Itoa(n)+" "+strings.Repeat("x", 90)+"\n")
			}
		}
		tick.Stop()
		closed(b, w)
		close(done)
		if err := <-followed; err != nil || len(took) != len(sent) {
			b.Fatalf("Follow = %v after %d lines of %d", err, len(took), len(sent))
		}
		slices.Sort(took)
		for name, share := range map[string]int{"p50-ms": 500, "p99-ms": 990, "max-ms": 1000} {
			b.ReportMetric(float64(took[(len(took)-1)*share/1000])/1e6, name)
		}
	}
}
