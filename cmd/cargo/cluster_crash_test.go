package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/monochromegane/cargo/build"
)

// Servers, workers and NATS servers are killed, cut off and paused one after
// the other: no build that was accepted is lost, at most one attempt of each
// stores and finishes, and the site goes on by itself in time.
func TestCrashCluster(t *testing.T) {
	t.Parallel()
	conn, err := net.Dial("unix", defaultContainerd)
	require(t, "containerd", err)
	_ = conn.Close()
	_, _ = bin(t, "nats-server"), bin(t, "versitygw")
	if testing.Short() {
		t.Skip("it takes a minute and more")
	}
	if !inHub(t) {
		return
	}
	l := newLoop(t, shortHarms)
	l.rounds = max(l.rounds*3/10, shortHarms) // thirty where the embedded queue has a hundred
	const lease = 8 * time.Second
	s := newSite(t, l, lease, 2, 2)
	l.urls = s.urls
	watched := owners{}
	for _, w := range s.workers {
		watched[ownerKey(w.data)] = true
	}
	stop := l.watchOverlaps(watched)
	l.order()
	var deck []harm
	for round := 1; round <= l.rounds; round++ {
		l.round.Store(int64(round))
		random := l.random(round)
		if len(deck) == 0 {
			if deck = append(deck, harms...); l.rounds == shortHarms {
				deck = deck[:shortHarms]
			}
			random.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
		}
		s.suffer(deck[0], random)
		deck = deck[1:]
	}
	l.finish()
	stop()
	l.checkAll()
	s.checkStored()
	l.wantConsistent(s.env, append([]string{"--data-dir", t.TempDir()}, s.flags...)...)
	for _, url := range s.urls() {
		l.wantIdle(url)
	}
	for _, w := range s.workers {
		wantNothingLeft(t, w.data)
	}
	s.stop()
	for _, p := range s.programs() {
		l.wantSane(p.said())
	}
	for _, w := range s.workers {
		wantNone(t, w.data, w.data)
	}
	wantInNoFile(t, s.dir, l.token)
}

// suffer is one round: harm at a moment that random chooses, the recovery
// from it, its end, and the recovery from that.
func (s *site) suffer(h harm, random *rand.Rand) {
	l := s.loop
	l.exclusive.Store(h.kill)
	pause(s.t.Context(), time.Duration(random.IntN(2000))*time.Millisecond)
	running := map[*siteWorker]map[build.ID]bool{}
	for _, w := range s.workers {
		running[w] = w.running()
	}
	l.kills.Add(1)
	began := time.Now()
	victim, lift := h.do(s, random)
	s.t.Logf("round %d: %s", l.round.Load(), h.name)
	if h.kill {
		pause(s.t.Context(), h.hold(s, random))
		lift()
	}
	if !h.down {
		s.wantRecovery(h.name, began, running[victim])
	}
	if !h.kill {
		pause(s.t.Context(), h.hold(s, random)-time.Since(began))
		s.wantUnchanged(victim, lift)
		s.wantRecovery("the end of: "+h.name, time.Now(), nil)
	}
	s.settle()
}

// wantRecovery waits until a new build is accepted and one that was has ended,
// and the builds that were taken from a worker are with others or have ended.
func (s *site) wantRecovery(from string, began time.Time, taken map[build.ID]bool) {
	l := s.loop
	ctx, cancel := context.WithDeadline(s.t.Context(), began.Add(s.lease+10*time.Second))
	defer cancel()
	probe := &entry{order: l.newOrder(int(l.number.Add(1)))}
	probe.canceled = false
	l.clients.Go(func() { l.see(s.t.Context(), probe) })
	var missing []string
	for {
		missing = missing[:0]
		accepted, ended := false, false
		for _, e := range l.accepted() {
			accepted = accepted || e.n == probe.n
			ended = ended || e.ended.ID != "" && e.ended.FinishedAt.After(began)
			if taken[e.id] && !s.moved(ctx, e, began) {
				missing = append(missing, "build "+string(e.id)+" is still with a worker that is gone")
			}
		}
		if !accepted {
			missing = append(missing, "no new build was accepted")
		}
		if !ended {
			missing = append(missing, "no build has ended")
		}
		if len(missing) == 0 {
			s.t.Logf("recovered from: %s, in %v, with %d builds to take over", from, time.Since(began).Round(100*time.Millisecond), len(taken))
			return
		}
		if ctx.Err() != nil {
			l.problem("%s: after %v %q", from, time.Since(began).Round(time.Second), missing)
			return
		}
		pause(ctx, 200*time.Millisecond)
	}
}

// moved reports whether a build that ran at a time has ended or started anew since.
func (s *site) moved(ctx context.Context, e entry, since time.Time) bool {
	if e.ended.ID != "" {
		return true
	}
	a, ok := s.loop.ask(ctx, http.MethodGet, "/builds/"+string(e.id), e.token, http.StatusOK)
	var b build.Build
	return ok && json.Unmarshal(a.body, &b) == nil && (b.State.Ended() || b.State == build.Running && b.StartedAt.After(since))
}

// wantUnchanged takes back a harm, and checks that who wakes up changes nothing
// of what has ended meanwhile.
func (s *site) wantUnchanged(victim *siteWorker, lift func()) {
	type end struct {
		record build.Build
		stored stored
	}
	ends := func() map[build.ID]end {
		found, metas := map[build.ID]end{}, s.stored()
		for _, e := range s.loop.accepted() {
			if e.ended.ID != "" {
				found[e.id] = end{e.ended, metas[e.id]}
			}
		}
		return found
	}
	before := ends()
	var old map[build.ID]bool
	if victim != nil {
		old = victim.running()
	}
	lift()
	if victim == nil {
		return
	}
	const toTry = 3 * time.Second // for what is left to do when the containers have ended
	until(s.t, "the woken worker has given up its builds", func() bool {
		now := victim.running()
		for id := range old {
			if _, ended := before[id]; ended && now[id] {
				return false
			}
		}
		return true
	})
	pause(s.t.Context(), toTry)
	after := s.stored()
	for id, was := range before {
		if is := after[id]; is != was.stored {
			s.loop.problem("what is stored of build %s was %+v, and after a worker woke up %+v", id, was.stored, is)
		}
	}
	for _, e := range s.loop.accepted() {
		was, ended := before[e.id]
		if !ended {
			continue
		}
		if a, ok := s.loop.ask(s.t.Context(), http.MethodGet, "/builds/"+string(e.id), e.token, http.StatusOK); ok {
			var is build.Build
			if err := json.Unmarshal(a.body, &is); err != nil || !reflect.DeepEqual(is, was.record) {
				s.loop.problem("the record of build %s was %+v, and after a worker woke up %s (%v)", e.id, was.record, a.body, err)
			}
		}
	}
}

// Stored is what is stored of a build: which attempt did it, what, and when.
type stored struct {
	BuildID  build.ID       `json:"build_id"`
	Attempt  int            `json:"attempt"`
	Artifact build.Artifact `json:"artifact"`
	Created  string         `json:"created_at"`
}

// stored reads, from the S3 server's own directory, what is stored.
func (s *site) stored() map[build.ID]stored {
	found := map[build.ID]stored{}
	for _, name := range glob(s.objects, "meta/*") {
		text, err := os.ReadFile(name)
		var m stored
		if err == nil {
			err = json.Unmarshal(text, &m)
		}
		if err != nil {
			s.loop.problem("%s: %v", name, err)
		}
		found[m.BuildID] = m
	}
	return found
}

// checkStored checks that what is stored is what the records say, and nothing else.
func (s *site) checkStored() {
	found, archives := s.stored(), map[string]bool{}
	for _, e := range s.loop.accepted() {
		m, ok := found[e.id]
		switch {
		case e.ended.State != build.Succeeded:
		case !ok:
			s.loop.problem("build %s succeeded, and nothing is stored of it", e.id)
		case m.Attempt != e.ended.Attempt || m.Artifact != *e.ended.Artifact:
			s.loop.problem("build %s succeeded at attempt %d with %+v; stored is %+v", e.id, e.ended.Attempt, e.ended.Artifact, m)
		}
		archives[m.Artifact.SHA256] = true
	}
	for _, name := range glob(s.objects, "blobs/*") {
		text, err := os.ReadFile(name)
		if err != nil {
			s.loop.problem("%v", err)
		}
		if sum := sha256.Sum256(text); hex.EncodeToString(sum[:]) != filepath.Base(name) {
			s.loop.problem("%s does not have the content that its name says", name)
		}
	}
	for _, name := range glob(s.objects, "logs/*") {
		if text, err := os.ReadFile(name); err != nil || bytes.Contains(text, []byte(s.loop.token)) {
			s.loop.problem("%s holds a token (%v)", name, err)
		}
	}
}
