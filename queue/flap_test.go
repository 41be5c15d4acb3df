package queue_test

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/queue"
)

// A flapper passes connections on to a server, and breaks all of them now and then.
type flapper struct {
	listener net.Listener
	to       string

	mu    sync.Mutex
	conns map[net.Conn]bool
}

func newFlapper(t *testing.T, to string) *flapper {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &flapper{listener: l, to: strings.TrimPrefix(to, "nats://"), conns: map[net.Conn]bool{}}
	var passing sync.WaitGroup
	passing.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			passing.Go(func() { f.pass(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		f.breakAll()
		passing.Wait()
	})
	return f
}

func (f *flapper) pass(c net.Conn) {
	defer c.Close()
	s, err := net.Dial("tcp", f.to)
	if err != nil {
		return
	}
	defer s.Close()
	f.mu.Lock()
	f.conns[c] = true
	f.mu.Unlock()
	go func() {
		_, _ = io.Copy(s, c)
		_ = s.Close()
	}()
	_, _ = io.Copy(c, s)
	f.mu.Lock()
	delete(f.conns, c)
	f.mu.Unlock()
}

func (f *flapper) breakAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns {
		_ = c.Close()
	}
}

// Whatever happens to a connection in the middle of thousands of changes: what
// this process believes in the end is what there is, and nothing piles up.
func TestConnectionFlaps(t *testing.T) {
	c := newCluster(t, t.TempDir(), 1)
	t.Cleanup(c.kill)
	steady := open(t, queue.Options{Cluster: &queue.Cluster{URLs: c.urls, Replicas: 1}, Worker: "steady", Limit: 100_000})
	f := newFlapper(t, c.urls[0])
	shaken := open(t, queue.Options{Cluster: &queue.Cluster{URLs: []string{"nats://" + f.listener.Addr().String()}, Replicas: 1}, Worker: "shaken", Limit: 100_000})
	before := runtime.NumGoroutine()

	l := newLoad(t)
	ctx, cancel := context.WithCancel(t.Context())
	for range 4 {
		l.submit(steady)
		l.work(ctx, steady)
	}
	l.submit(shaken)
	l.work(ctx, shaken)
	for range 25 {
		time.Sleep(rand.N(400 * time.Millisecond))
		f.breakAll()
	}
	l.stopped.Do(func() { close(l.stop) })
	l.submits.Wait()
	cancel()
	l.works.Wait()

	fresh := open(t, queue.Options{Cluster: &queue.Cluster{URLs: c.urls, Replicas: 1}, Worker: "fresh"})
	var want, got map[build.ID]build.State
	same := func() bool {
		want, got = live(t, fresh), live(t, shaken)
		if len(want) != len(got) {
			return false
		}
		for id, s := range want {
			if got[id] != s {
				return false
			}
		}
		return fresh.Depth() == shaken.Depth() && fresh.Running() == shaken.Running()
	}
	for deadline := time.Now().Add(30 * time.Second); !same(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("there are %d live builds, it believes in %d; queued %d and %d, running %d and %d", len(want), len(got), fresh.Depth(), shaken.Depth(), fresh.Running(), shaken.Running())
		}
	}
	t.Logf("%d accepted, %d refused, %d lost; %d live", len(l.accepted), l.refused.Load(), l.lost.Load(), len(want))
	_ = fresh.Close()
	for deadline := time.Now().Add(30 * time.Second); runtime.NumGoroutine() > before+10; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, before %d", runtime.NumGoroutine(), before)
		}
	}
}

func live(t *testing.T, q *queue.Queue) map[build.ID]build.State {
	t.Helper()
	all := map[build.ID]build.State{}
	for _, s := range []build.State{build.Queued, build.Running} {
		f := queue.Filter{State: s}
		for more := true; more; {
			var page []build.Build
			var err error
			if page, more, err = q.List(t.Context(), f); err != nil {
				t.Fatal(err)
			}
			for _, b := range page {
				all[b.ID] = b.State
				f.After = b.ID
			}
		}
	}
	return all
}
