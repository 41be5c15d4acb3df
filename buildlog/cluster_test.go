package buildlog_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/buildlog"
)

// A cluster is three NATS servers on loopback, each with so much room.
type cluster struct {
	servers [3]*server.Server
	options [3]server.Options
}

func newCluster(t testing.TB, room int64) *cluster {
	t.Helper()
	c := &cluster{}
	var routes []*url.URL
	for i := range c.options {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		closed(t, l)
		routes = append(routes, &url.URL{Scheme: "nats", Host: fmt.Sprintf("127.0.0.1:%d", port)})
		c.options[i] = server.Options{
			ServerName: fmt.Sprintf("node%d", i), Host: "127.0.0.1", Port: -1, StoreDir: t.TempDir(), JetStreamMaxStore: room,
			Cluster: server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: port},
		}
	}
	var starting sync.WaitGroup
	for i := range c.options {
		c.options[i].Routes = routes
		starting.Go(func() { c.servers[i] = serve(t, c.options[i]) })
	}
	starting.Wait()
	wait(t, "a leader that has heard of every server", func() bool {
		return slices.ContainsFunc(c.servers[:], func(s *server.Server) bool {
			return s.JetStreamIsLeader() && len(s.JetStreamClusterPeers()) == len(c.servers)
		})
	})
	return c
}

func (c *cluster) connect(t testing.TB) jetstream.JetStream {
	t.Helper()
	var urls []string
	for _, s := range c.servers {
		urls = append(urls, s.ClientURL())
	}
	return connect(t, strings.Join(urls, ","))
}

// leader is the server that leads a stream, or -1.
func (c *cluster) leader(stream string) int {
	return slices.IndexFunc(c.servers[:], func(s *server.Server) bool {
		return s.Running() && s.JetStreamIsStreamLeader(server.DEFAULT_GLOBAL_ACCOUNT, stream)
	})
}

// numbered writes lines with rising numbers until stop is closed, and then
// tells how many.
func numbered(w *buildlog.Writer, stop <-chan struct{}) <-chan int {
	written := make(chan int, 1)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				written <- n
				return
			case <-time.After(time.Millisecond):
				say(w, "line %d", n)
			}
		}
	}()
	return written
}

// all wants a log of just the lines 0 to n-1.
func all(t testing.TB, text string, n int) {
	t.Helper()
	got := messages(t, text)
	for i := range min(n, len(got)) {
		if got[i] != fmt.Sprintf("line %d", i) {
			t.Fatalf("message %d is %q", i, got[i])
		}
	}
	if len(got) != n {
		t.Errorf("%d lines, want %d", len(got), n)
	}
}

// The leader of the stream is killed under a writer and two followers, one
// after another goes; then two servers at once, and come back.
func TestCluster(t *testing.T) {
	t.Parallel()
	c, a := newCluster(t, 4<<30), newArchive()
	three := func(o *buildlog.SharedOptions) { o.Replicas = 3 }
	worker, api, other := newMachine(t, c.connect(t), a, three), newMachine(t, c.connect(t), a, three), newMachine(t, c.connect(t), a, three)
	b, done, stopped := attempt(build.NewID(), 1), make(chan struct{}), make(chan struct{})
	w := worker.create(t, b)
	tails := []*tail{api.follow(t, b.ID, 0, done), other.follow(t, b.ID, 0, done)}
	written := numbered(w, stopped)
	grow := func(why string) {
		from := len(worker.text(t, b.ID))
		wait(t, "a line "+why, func() bool {
			return min(len(tails[0].String()), len(tails[1].String())) > from
		})
	}
	grow("at the start")
	for range 2 {
		var leader int
		wait(t, "a leader", func() bool { leader = c.leader("logs"); return leader >= 0 })
		stop(c.servers[leader])
		grow("after the leader is gone")
		c.restart(t, leader)
	}
	stop(c.servers[0])
	stop(c.servers[1])
	say(w, "line of no quorum") // is not waited for
	c.restart(t, 0)
	c.restart(t, 1)
	grow("after the quorum was gone")
	close(stopped)
	n := <-written
	worker.end(t, w, b)
	close(done)
	text := strings.Builder{}
	for l := range strings.Lines(api.read(t, b.ID, 0)) {
		if !strings.Contains(l, "line of no quorum") {
			text.WriteString(l)
		}
	}
	all(t, text.String(), n)
	for _, f := range tails {
		f.is(t, other.read(t, b.ID, 0))
	}
}

// text is what the local file holds.
func (m machine) text(t testing.TB, id build.ID) string {
	t.Helper()
	text, _ := read(t, m.local, id, 0)
	return text
}

func (c *cluster) restart(t testing.TB, i int) {
	t.Helper()
	c.servers[i] = serve(t, c.options[i])
}

// NATS goes away and comes back: the build does not notice, its log catches
// up, followers go on.
func TestRestart(t *testing.T) {
	t.Parallel()
	o := server.Options{ServerName: "one", Host: "127.0.0.1", Port: -1, StoreDir: t.TempDir()}
	s := serve(t, o)
	url := s.ClientURL()
	o.Port = s.Addr().(*net.TCPAddr).Port
	a := newArchive()
	worker, api := newMachine(t, connect(t, url), a), newMachine(t, connect(t, url), a)
	b, done := attempt(build.NewID(), 1), make(chan struct{})
	w := worker.create(t, b)
	f := api.follow(t, b.ID, 0, done)
	n := 0
	for round := range 3 {
		say(w, "line %d", n)
		n++
		f.sees(t, fmt.Sprintf("line %d", n-1))
		stop(s)
		began := time.Now()
		for range 20_000 {
			say(w, "line %d", n)
			n++
		}
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("without NATS, logging took %s", d)
		}
		if round == 0 {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			if _, err := api.Read(ctx, b.ID, 0, &strings.Builder{}); !errors.Is(err, buildlog.ErrUnavailable) {
				t.Errorf("Read = %v", err)
			}
			if err := worker.Keep(ctx, b); !errors.Is(err, buildlog.ErrUnavailable) {
				t.Errorf("Keep = %v", err)
			}
			if _, err := api.Create(ctx, attempt(b.ID, 2), 0); !errors.Is(err, buildlog.ErrUnavailable) {
				t.Errorf("Create of a second attempt = %v", err)
			}
			cancel()
			first := attempt(build.NewID(), 1)
			say(worker.create(t, first), "the first attempt asks nobody")
		}
		s = serve(t, o)
	}
	worker.end(t, w, b)
	close(done)
	text := api.read(t, b.ID, 0)
	all(t, text, n)
	f.is(t, text)
}

// A lossy JetStream loses messages, answers, or both orders of them.
type lossy struct {
	jetstream.JetStream
	mu    sync.Mutex
	rand  *rand.Rand
	lost  int
	later sync.WaitGroup
}

func (l *lossy) PublishMsg(ctx context.Context, m *nats.Msg, o ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fate := l.rand.IntN(6)
	if fate < 3 {
		l.lost++
	}
	switch fate {
	case 0: // the message is lost
	case 1: // the answer is lost
		_, _ = l.JetStream.PublishMsg(ctx, m, o...)
	case 2: // the message comes late, perhaps after it was sent again
		again := &nats.Msg{Subject: m.Subject, Header: m.Header, Data: slices.Clone(m.Data)}
		pause := time.Duration(l.rand.IntN(100)) * time.Millisecond
		l.later.Go(func() {
			time.Sleep(pause)
			_, _ = l.JetStream.PublishMsg(context.WithoutCancel(ctx), again, o...)
		})
	default:
		return l.JetStream.PublishMsg(ctx, m, o...)
	}
	return nil, context.DeadlineExceeded
}

// However many answers are lost, each line comes once.
func TestUnknownOutcome(t *testing.T) {
	t.Parallel()
	js, a := embedded(t), newArchive()
	seed := rand.Uint64()
	t.Log("seed", seed)
	l := &lossy{JetStream: js, rand: rand.New(rand.NewPCG(seed, 0))}
	defer l.later.Wait()
	workers, api := []machine{newMachine(t, l, a), newMachine(t, l, a)}, newMachine(t, js, a)
	id, done := build.NewID(), make(chan struct{})
	f := api.follow(t, id, 0, done)
	n := 0
	const attempts = 6
	for i := range attempts {
		b, worker := attempt(id, i+1), workers[i%2]
		w := worker.create(t, b)
		for range 10 {
			for range 3 {
				say(w, "line %d", n)
				n++
			}
			f.sees(t, fmt.Sprintf("line %d\"", n-1))
		}
		for range 5 { // only Close sees that these are shipped
			say(w, "line %d", n)
			n++
		}
		closed(t, w)
		if i == attempts-1 {
			must(t, worker.Keep(t.Context(), b))
			must(t, worker.Drop(t.Context(), b))
		}
	}
	close(done)
	text := api.read(t, id, 0)
	all(t, text, n)
	f.is(t, text)
	if l.lost == 0 {
		t.Error("nothing was lost")
	}
}

// Consumers are removed under their followers.
func TestLostConsumer(t *testing.T) {
	t.Parallel()
	js, a := embedded(t), newArchive()
	m := newMachine(t, js, a)
	b, done := attempt(build.NewID(), 1), make(chan struct{})
	w := m.create(t, b)
	f := m.follow(t, b.ID, 0, done)
	n := 0
	for range 3 {
		say(w, "line %d", n)
		f.sees(t, fmt.Sprintf("line %d", n))
		n++
		s, err := js.Stream(t.Context(), "logs")
		must(t, err)
		names := s.ConsumerNames(t.Context())
		for name := range names.Name() {
			must(t, s.DeleteConsumer(t.Context(), name))
		}
	}
	m.end(t, w, b)
	close(done)
	text := m.read(t, b.ID, 0)
	all(t, text, n)
	f.is(t, text)
}
