package queue_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/queue"
)

// A load submits builds to some queues and builds them, and remembers what it
// was told.
type load struct {
	t       *testing.T
	stop    chan struct{}
	stopped sync.Once
	submits sync.WaitGroup
	works   sync.WaitGroup
	n       atomic.Int64
	refused atomic.Int64
	lost    atomic.Int64

	mu       sync.Mutex
	accepted map[build.ID]bool
	running  map[build.ID]bool
	finished map[build.ID]int
}

func newLoad(t *testing.T) *load {
	return &load{t: t, stop: make(chan struct{}), accepted: map[build.ID]bool{}, running: map[build.ID]bool{}, finished: map[build.ID]int{}}
}

func (l *load) submit(q *queue.Queue) {
	l.submits.Go(func() {
		for {
			select {
			case <-l.stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
			b, err := q.Submit(context.Background(), queue.Submission{Build: newBuild(fmt.Sprint("v", l.n.Add(1))), Sealed: []byte("sealed")})
			switch {
			case err == nil:
				l.mu.Lock()
				l.accepted[b.ID] = true
				l.mu.Unlock()
			case errors.Is(err, queue.ErrUnavailable), errors.Is(err, queue.ErrBroken), errors.Is(err, queue.ErrFull):
				l.refused.Add(1)
			default:
				l.t.Errorf("Submit: %v", err)
			}
		}
	})
}

func (l *load) work(ctx context.Context, q *queue.Queue) {
	l.works.Go(func() {
		for {
			c, err := q.Claim(ctx)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				l.t.Errorf("Claim: %v", err)
				return
			}
			l.build(c)
		}
	})
}

func (l *load) build(c *queue.Claim) {
	id := c.Build().ID
	l.mu.Lock()
	if l.running[id] {
		l.t.Errorf("build %s runs twice at once", id)
	}
	if l.finished[id] > 0 {
		l.t.Errorf("build %s runs after it has finished", id)
	}
	if string(c.Sealed()) != "sealed" {
		l.t.Errorf("build %s has the token %q", id, c.Sealed())
	}
	l.running[id] = true
	l.mu.Unlock()
	select {
	case <-c.Context().Done():
	case <-time.After(rand.N(40 * time.Millisecond)):
	}
	l.mu.Lock()
	delete(l.running, id)
	l.mu.Unlock()
	for {
		b := c.Build()
		b.State = build.Succeeded
		err := c.Finish(context.Background(), b)
		switch {
		case err == nil:
			l.mu.Lock()
			l.finished[id]++
			l.mu.Unlock()
			return
		case errors.Is(err, queue.ErrLeaseLost):
			l.lost.Add(1)
			return
		case !errors.Is(err, queue.ErrUnavailable) && !errors.Is(err, queue.ErrBroken):
			l.t.Errorf("Finish: %v", err)
			return
		}
	}
}

// end stops the submits.
func (l *load) end() {
	l.stopped.Do(func() { close(l.stop) })
	l.submits.Wait()
}

// settle ends the load and checks that every accepted build has come to its end once.
func (l *load) settle(q *queue.Queue) {
	l.t.Helper()
	l.end()
	l.mu.Lock()
	ids := make([]build.ID, 0, len(l.accepted))
	for id := range l.accepted {
		ids = append(ids, id)
	}
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(l.t.Context(), 2*time.Minute)
	defer cancel()
	for _, id := range ids {
		if b, err := q.Wait(ctx, id); err != nil || b.State != build.Succeeded {
			l.t.Errorf("accepted build %s: %s (%s), %v", id, b.State, b.Reason, err)
		}
	}
	l.t.Logf("%d accepted, %d refused, %d finished, %d leases lost", len(ids), l.refused.Load(), l.count(), l.lost.Load())
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.finished)
}

// grows waits until n more builds have finished.
func (l *load) grows(n int) {
	l.t.Helper()
	for ctx, goal := within(l.t), l.count()+n; l.count() < goal; time.Sleep(10 * time.Millisecond) {
		if ctx.Err() != nil {
			l.t.Fatal("no builds are finished any more")
		}
	}
}

// workOnTwo is a load on two queues of one cluster, as on two machines.
func workOnTwo(t *testing.T, c *cluster, o queue.Options) (*load, []*queue.Queue) {
	t.Helper()
	l := newLoad(t)
	ctx, cancel := context.WithCancel(t.Context())
	var queues []*queue.Queue
	for _, name := range []string{"a", "b"} {
		o := o
		o.Cluster, o.Worker = c.options(""), name
		q := open(t, o)
		queues = append(queues, q)
		l.submit(q)
		l.submit(q)
		for range 3 {
			l.work(ctx, q)
		}
	}
	t.Cleanup(func() {
		cancel()
		l.end()
		l.works.Wait()
	})
	return l, queues
}

// What one process has accepted, another finds at once, though it has heard
// nothing of it yet.
func TestAcceptedElsewhereIsFound(t *testing.T) {
	c := sharedCluster(t)
	a := open(t, queue.Options{Cluster: c.options("elsewhere-")})
	b := open(t, queue.Options{Cluster: c.options("elsewhere-")})
	for i := range 100 {
		id := submit(t, a, newBuild(fmt.Sprint("v", i)), nil).ID
		if got := get(t, b, id); got.ID != id {
			t.Fatalf("found %s", got.ID)
		}
	}
}

// The leader of the live builds is killed under load, again and again.
func TestLeaderKilled(t *testing.T) {
	c := ownCluster(t)
	l, queues := workOnTwo(t, c, queue.Options{Limit: 1 << 20})
	l.grows(20)
	rounds := 3
	if testing.Short() {
		rounds = 1
	}
	for range rounds {
		leader := c.leader(t, "KV_cargo-live")
		leader.kill()
		l.grows(20)
		leader.start(t)
		l.grows(20)
	}
	l.settle(queues[0])
	if l.lost.Load() > 0 {
		t.Errorf("%d leases of a minute were lost", l.lost.Load())
	}
}

// All servers are away for a while, and the processes hold on to what they have.
func TestQuorumLost(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	c := ownCluster(t)
	l, queues := workOnTwo(t, c, queue.Options{Limit: 1 << 20})
	held := holdOne(t, queues[0])
	l.grows(10)
	c.kill()
	began := time.Now()
	if _, err := queues[0].Submit(t.Context(), queue.Submission{Build: newBuild("away")}); !errors.Is(err, queue.ErrUnavailable) {
		t.Errorf("Submit = %v, want ErrUnavailable", err)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("Submit said so after %s", took)
	}
	if err := queues[0].Err(); !errors.Is(err, queue.ErrUnavailable) {
		t.Errorf("Err = %v, want ErrUnavailable", err)
	}
	if err := held.Confirm(t.Context()); !errors.Is(err, queue.ErrUnavailable) {
		t.Errorf("Confirm = %v, want ErrUnavailable", err)
	}
	time.Sleep(time.Until(began.Add(20 * time.Second)))
	for _, n := range c.nodes {
		n.start(t)
	}
	l.grows(20)
	if err := held.Confirm(within(t)); err != nil {
		t.Errorf("Confirm after the outage = %v", err)
	}
	finish(t, held, build.Succeeded)
	l.settle(queues[1])
	if l.lost.Load() > 0 {
		t.Errorf("%d leases were lost", l.lost.Load())
	}
	for ctx := within(t); queues[0].Err() != nil; time.Sleep(10 * time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatalf("Err = %v", queues[0].Err())
		}
	}
}

// holdOne submits a build of its own and keeps the claim on it.
func holdOne(t *testing.T, q *queue.Queue) *queue.Claim {
	t.Helper()
	c, err := q.Claim(within(t))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A server that is stopped keeps its connections and says nothing.
func TestServerStandsStill(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a quarter of a minute")
	}
	c := ownCluster(t)
	l, queues := workOnTwo(t, c, queue.Options{Limit: 1 << 20})
	l.grows(10)
	n := c.leader(t, "KV_cargo-live")
	if err := n.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	l.grows(20)
	if err := n.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	l.grows(20)
	l.settle(queues[0])
}

func TestClusterThatCannotBeUsed(t *testing.T) {
	ports := freePorts(t, 1)
	alone := newCluster(t, t.TempDir(), 1)
	t.Cleanup(alone.kill)
	js := open(t, queue.Options{Cluster: &queue.Cluster{URLs: alone.urls, Replicas: 1}}).JetStream() // it is up
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "theirs", Subjects: []string{"taken-ended.*"}}); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name    string
		cluster queue.Cluster
		want    string
	}{
		{"no server", queue.Cluster{URLs: []string{fmt.Sprintf("nats://127.0.0.1:%d", ports[0])}}, "check the addresses in --queue"},
		{"no address", queue.Cluster{}, "nats://host:port"},
		{"another scheme", queue.Cluster{URLs: []string{"http://127.0.0.1:80"}}, "nats://host:port"},
		{"a secret in the address", queue.Cluster{URLs: []string{"nats://me:secret@127.0.0.1:4222"}}, "--queue-creds"},
		{"a subject of another stream's", queue.Cluster{URLs: alone.urls, Prefix: "taken-", Replicas: 1}, "taken-ended"},
		{"too few servers", queue.Cluster{URLs: alone.urls, Prefix: "three-"}, "--queue-replicas"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			began := time.Now()
			_, err := queue.Open(t.Context(), queue.Options{Cluster: &tc.cluster})
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "secret@") {
				t.Errorf("Open = %v, want a word of %q", err, tc.want)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("said after %s", took)
			}
			t.Log(err)
		})
	}
}

// Those that are missing may be starting.
func TestClusterOfTooFew(t *testing.T) {
	t.Parallel()
	c := newCluster(t, t.TempDir(), 2)
	t.Cleanup(c.kill)
	two := c.options("")
	two.Replicas = 1
	open(t, queue.Options{Cluster: two}) // it is up
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	_, err := queue.Open(ctx, queue.Options{Cluster: c.options("three-")})
	if !errors.Is(err, queue.ErrUnavailable) || !strings.Contains(err.Error(), "too few servers") {
		t.Fatalf("Open = %v", err)
	}
}

func TestWarnings(t *testing.T) {
	c := sharedCluster(t)
	q := open(t, queue.Options{Cluster: c.options("good-")})
	if w := q.Warnings(); len(w) != 1 || !strings.Contains(w[0], "sync_interval: always") {
		t.Errorf("warnings of a good cluster: %q", w)
	}
	if q.Replicas() != 3 {
		t.Errorf("Replicas = %d", q.Replicas())
	}
	if w := open(t, queue.Options{Dir: t.TempDir()}).Warnings(); len(w) != 0 {
		t.Errorf("warnings of an embedded server: %q", w)
	}
	one := c.options("one-")
	one.Replicas = 1
	if w := open(t, queue.Options{Cluster: one}).Warnings(); !has(w, "one copy") {
		t.Errorf("warnings of one copy: %q", w)
	}
	if w := open(t, queue.Options{Cluster: c.options("one-")}).Warnings(); !has(w, "1 of the 3 copies") {
		t.Errorf("warnings of fewer copies than asked for: %q", w)
	}
}

func has(all []string, word string) bool {
	return slices.ContainsFunc(all, func(s string) bool { return strings.Contains(s, word) })
}
