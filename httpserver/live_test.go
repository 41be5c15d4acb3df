package httpserver

import (
	"bufio"
	"context"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A silent event stream gets a comment every 15 seconds, and nothing else.
func TestHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		rec := httptest.NewRecorder()
		live := newLiveWriter(newResponse(rec))
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := live.run(ctx, heartbeat); err != nil {
				t.Errorf("run: %v", err)
			}
		})
		synctest.Wait()
		live.mu.Lock()
		if !rec.Flushed || rec.Code != http.StatusOK {
			t.Error("the header was not sent at once")
		}
		live.mu.Unlock()
		time.Sleep(3*heartbeat + time.Second) // of the bubble's clock
		cancel()
		wg.Wait()
		if got, want := rec.Body.String(), ":\n\n:\n\n:\n\n"; got != want {
			t.Errorf("a silent stream got %q, want %q", got, want)
		}
	})
}

// Lines go out without a beat, those of a burst together.
func TestLiveWriterSendsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		rec := httptest.NewRecorder()
		live := newLiveWriter(newResponse(rec))
		var wg sync.WaitGroup
		wg.Go(func() { _ = live.run(ctx, 0) })
		line := func(out *bufio.Writer, line []byte, _ int64) error {
			_, err := out.Write(line)
			return err
		}
		for range 3 {
			if err := live.write([]byte("x\n"), 2, line); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		live.mu.Lock()
		if got := rec.Body.String(); got != "x\nx\nx\n" {
			t.Errorf("sent so far is %q", got)
		}
		live.mu.Unlock()
		cancel()
		wg.Wait()
	})
}
