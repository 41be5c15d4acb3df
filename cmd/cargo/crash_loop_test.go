package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

// A loop does harm round after round while clients ask for builds, and then
// checks what became of those. Its seed decides everything that is chosen: the
// builds, what is done to them and when.
type loop struct {
	t      *testing.T
	seed   uint64
	rounds int
	host   *gitsrctest.Host
	token  string          // of the private repositories
	urls   func() []string // of API servers, of which some may answer
	client *http.Client

	round  atomic.Int64
	kills  atomic.Int64 // of workers, so far
	number atomic.Int64 // of the newest order
	ends   atomic.Int64 // of builds, that were seen
	wrong  atomic.Int64 // how often something was

	exclusive atomic.Bool // no build may run twice at once
	logsBreak bool        // the disk that they are written to does

	clients sync.WaitGroup
	over    chan struct{} // closed: no new orders
	mu      sync.Mutex
	entries []*entry
}

// inFlight is how many builds are accepted and have not ended, at any time.
const inFlight = 20

// newLoop takes the seed and the number of rounds from the environment, where
// CARGO_TEST_SEED and CARGO_TEST_ROUNDS say any.
func newLoop(t *testing.T, rounds int) *loop {
	t.Helper()
	l := &loop{t: t, seed: uint64(time.Now().UnixNano()) % 1e9, rounds: rounds, host: gitsrctest.New(t), over: make(chan struct{})}
	for name, set := range map[string]func(uint64){
		"CARGO_TEST_SEED":   func(n uint64) { l.seed = n },
		"CARGO_TEST_ROUNDS": func(n uint64) { l.rounds = int(n) },
	} {
		if text := os.Getenv(name); text != "" {
			n, err := strconv.ParseUint(text, 10, 63)
			if err != nil {
				t.Fatalf("%s=%q: %v", name, text, err)
			}
			set(n)
		}
	}
	l.token = fmt.Sprintf("s3cret-Token-%016x", l.seed)
	l.client = &http.Client{
		Timeout:   time.Minute,
		Transport: &http.Transport{MaxIdleConnsPerHost: 2 * inFlight, DialContext: (&net.Dialer{Timeout: 2 * time.Second}).DialContext},
	}
	t.Cleanup(l.client.CloseIdleConnections)
	t.Logf("seed %d, %d rounds; CARGO_TEST_SEED=%d plays them again", l.seed, l.rounds, l.seed)
	return l
}

// random is what decides round n.
func (l *loop) random(n int) *rand.Rand { return rand.New(rand.NewPCG(l.seed+1, uint64(n))) }

// problem is something that must not be. It may be called from any goroutine
// of the loop.
func (l *loop) problem(format string, args ...any) {
	const most = 50 // more say nothing new
	if n := l.wrong.Add(1); n <= most {
		l.t.Errorf("seed %d, round %d: %s", l.seed, l.round.Load(), fmt.Sprintf(format, args...))
	}
}

// A server that is killed at any moment loses no build that it accepted, runs
// none twice at once, stores nothing that is torn or wrong, and its next start
// leaves nothing of it.
func TestCrashEmbedded(t *testing.T) {
	conn, err := net.Dial("unix", defaultContainerd)
	require(t, "containerd", err)
	_ = conn.Close()
	rounds := 5
	if testing.Short() {
		rounds = 2
	}
	l := newLoop(t, rounds)
	data := t.TempDir()
	var url atomic.Value
	l.urls = func() []string { return []string{url.Load().(string)} }
	s := newServer(t, "containerd", data, l.host, "--concurrency", "6", "--address-rate", "0", "--log-level", "warn")
	url.Store(s.url)

	l.exclusive.Store(true)
	stop := l.watchOverlaps(owners{ownerKey(data): true})
	l.order()
	var left remains
	kill := func() {
		l.kills.Add(1)
		s.kill()
		l.wantSane(s.stderr.String())
		left.add(l, data)
	}
	for round := 1; round <= l.rounds; round++ {
		l.round.Store(int64(round))
		random := l.random(round)
		if random.IntN(5) == 0 { // at its start
			kill()
			s.launch()
			time.Sleep(time.Duration(random.IntN(1500)) * time.Millisecond)
		} else {
			l.awaitEnds(random.IntN(8))
			time.Sleep(time.Duration(random.IntN(1000)) * time.Millisecond)
		}
		kill()
		s.start()
		url.Store(s.url)
		left.wantGone(l, data)
	}
	l.finish()
	stop()
	l.checkAll()
	l.wantConsistent(nil, "--data-dir", data)
	l.wantIdle(s.url)
	wantNothingLeft(t, data)
	s.wantKept(data)
	if code := s.stop(); code != 0 {
		l.problem("SIGTERM: exit status %d", code)
	}
	l.wantSane(s.stderr.String())
	wantNone(t, data, data)
	wantInNoFile(t, data, l.token)
}
