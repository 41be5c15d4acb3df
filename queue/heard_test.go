package queue

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/monochromegane/cargo/build"
)

func TestHearing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hearing{gap: 3 * time.Second}
		wait := func(d time.Duration) {
			time.Sleep(d)
			h.sign(time.Now())
		}
		want := func(passed, now time.Duration) {
			t.Helper()
			if h.passed() != passed || h.now() != now {
				t.Errorf("passed, now = %s, %s; want %s, %s", h.passed(), h.now(), passed, now)
			}
		}
		want(0, 0)
		h.sign(time.Now())
		wait(time.Second)
		wait(3 * time.Second)
		want(4*time.Second, 4*time.Second)
		time.Sleep(2 * time.Second)
		want(4*time.Second, 6*time.Second) // what is seen now does not count from before
		wait(time.Hour)                    // the queue was away, or this process stood still
		want(4*time.Second, 4*time.Second)
		wait(time.Second)
		want(5*time.Second, 5*time.Second)
	})
}

// The build of a silent worker is taken when the lease has run out, in time
// in which the queue was heard.
func TestSilenceCountsOnlyWhileTheQueueIsHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newView()
		v.heard.gap = time.Second
		v.heard.sign(time.Now())
		b := testBuild()
		b.State = build.Running
		v.put("k", record{Build: b, rev: 1})
		silent := func() bool {
			return len(v.abandoned(func(_ record, d time.Duration) bool { return d >= time.Minute })) == 1
		}
		for range 59 {
			time.Sleep(time.Second)
			v.heard.sign(time.Now())
		}
		time.Sleep(time.Hour)
		v.heard.sign(time.Now())
		if silent() {
			t.Error("an outage was held against the worker")
		}
		time.Sleep(time.Second)
		v.heard.sign(time.Now())
		if !silent() {
			t.Error("a minute of silence is not enough")
		}
	})
}

func TestTokenIsGone(t *testing.T) {
	q := openTest(t, 0)
	b := testBuild()
	if _, err := q.Submit(t.Context(), Submission{Build: b, Sealed: []byte("sealed")}); err != nil {
		t.Fatal(err)
	}
	if err := q.store.tokens.erase(t.Context(), string(b.ID)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	claims := make(chan error, 1)
	go func() { _, err := q.Claim(ctx); claims <- err }()
	soon, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	got, err := q.Wait(soon, b.ID)
	if err != nil || got.State != build.Failed || got.Reason != build.ReasonInternal || got.Message == "" {
		t.Errorf("the build is %+v, %v", got, err)
	}
	cancel()
	if err := <-claims; !errors.Is(err, context.Canceled) {
		t.Errorf("Claim = %v", err)
	}
	retired(t, q, b.ID)
	if names, err := q.store.tokens.names(t.Context()); err != nil || len(names) > 0 {
		t.Errorf("left in place of the token: %q, %v", names, err)
	}
}

// A build that had ended runs again under its id, and ends again.
func TestEndedAgain(t *testing.T) {
	q := openTest(t, 0)
	b := testBuild()
	former := b
	former.State, former.Reason, former.Attempt = build.Failed, build.ReasonLost, 3
	if err := q.keep(t.Context(), record{Build: former}); err != nil {
		t.Fatal(err)
	}
	b.State, b.Attempt = build.Queued, 3
	write(t, q, b.Digest(), record{Version: 1, Build: b})
	c, err := q.Claim(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := q.Get(t.Context(), b.ID); err != nil || got.State != build.Running {
		t.Errorf("while it runs it is %s, %v", got.State, err)
	}
	b = c.Build()
	b.State = build.Succeeded
	if err := c.Finish(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	retired(t, q, b.ID)
	if got, err := q.Get(t.Context(), b.ID); err != nil || got.State != build.Succeeded || got.Attempt != 4 {
		t.Errorf("it ended as %s at attempt %d, %v", got.State, got.Attempt, err)
	}
	if err := q.keep(t.Context(), record{Build: former}); err != nil { // a late word of the former end
		t.Fatal(err)
	}
	if got, err := q.Get(t.Context(), b.ID); err != nil || got.State != build.Succeeded {
		t.Errorf("now it is %s, %v", got.State, err)
	}
	if page, _, err := q.List(t.Context(), Filter{}); err != nil || len(page) != 1 {
		t.Errorf("List = %d builds, %v", len(page), err)
	}
}

// retired waits until a build has left the view.
func retired(t *testing.T, q *Queue, id build.ID) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if _, ok := q.view.id(id); !ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the build stays in the view")
		}
	}
}

// A claim that was written without its writer knowing is taken back at once,
// and counts as no lost worker.
func TestStrayClaim(t *testing.T) {
	q := openTest(t, 12*time.Second)
	b := testBuild()
	b.State, b.Attempt = build.Running, 1
	q.view.stray("unknown")
	write(t, q, b.Digest(), record{Version: 1, Build: b, Worker: "w", Claim: "unknown"})
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
	defer cancel()
	c, err := q.Claim(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if l, _ := q.view.id(b.ID); l.rec.Lost != 0 || c.Build().Attempt != 2 {
		t.Errorf("%d workers lost at attempt %d", l.rec.Lost, c.Build().Attempt)
	}
}

// The queue was away for so long that the work was given up: then it may not
// finish, and no worker was lost.
func TestLapsedClaim(t *testing.T) {
	for _, by := range []string{"requeue", "finish"} {
		t.Run(by, func(t *testing.T) {
			q := openTest(t, 0)
			c := claimed(t, q)
			c.end(errLapsed)
			b := c.Build()
			b.State = build.Succeeded
			switch by {
			case "requeue":
				if err := c.Requeue(t.Context()); err != nil {
					t.Errorf("Requeue = %v", err)
				}
			case "finish":
				if err := c.Finish(t.Context(), b); !errors.Is(err, ErrLeaseLost) {
					t.Errorf("Finish = %v, want ErrLeaseLost", err)
				}
				c.beat()
			}
			again, err := q.Claim(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if l, _ := q.view.id(b.ID); l.rec.Lost != 0 || again.Build().Attempt != 2 {
				t.Errorf("%d workers lost at attempt %d", l.rec.Lost, again.Build().Attempt)
			}
		})
	}
}

// Whatever happens to the consumer, what others write is seen.
func TestWatchIsStartedAnew(t *testing.T) {
	q := openTest(t, 0)
	seen := func() {
		t.Helper()
		b := testBuild()
		b.State, b.Version = build.Queued, string(b.ID)
		write(t, q, b.Digest(), record{Version: 1, Build: b})
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			if _, ok := q.view.id(b.ID); ok {
				return
			}
			if time.Now().After(deadline) {
				t.Fatal("a build of another process is not seen")
			}
		}
	}
	seen()
	names := q.store.records.ConsumerNames(t.Context())
	for name := range names.Name() {
		if err := q.store.records.DeleteConsumer(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	seen()
	if err := q.store.conn.ForceReconnect(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); !q.store.conn.IsConnected(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not connected again")
		}
	}
	seen()
}

// A build of the view that is not in the listing is gone, and one that is newer
// than the listing is not.
func TestListingRemovesWhatIsGone(t *testing.T) {
	q := openTest(t, 0)
	kept := claimed(t, q)
	ghost := testBuild()
	ghost.State, ghost.Version = build.Queued, "ghost"
	q.view.put(ghost.Digest(), record{Build: ghost, rev: 1})
	q.store.watched.end(errReconnected)
	retired(t, q, ghost.ID)
	if _, ok := q.view.id(kept.Build().ID); !ok || kept.Context().Err() != nil {
		t.Errorf("a build that is there was removed: %v", context.Cause(kept.Context()))
	}
}

// A build that another process has moved to the ended ones leaves the view, also
// where the word of it never comes: its marker may be gone, as when a clock was set.
func TestRetiredElsewhere(t *testing.T) {
	q := openTest(t, 0)
	claimed(t, q)
	ghost := testBuild()
	ghost.State, ghost.Version = build.Canceled, "ghost"
	q.view.put(ghost.Digest(), record{Build: ghost, rev: 1})
	l, _ := q.view.id(ghost.ID)
	if err := q.retire(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	if _, ok := q.view.id(ghost.ID); ok {
		t.Error("it is still among the live ones, and would be retired for ever")
	}
}

// A late word of an older revision does not bring a purged build back.
func TestLateWord(t *testing.T) {
	v := newView()
	b := testBuild()
	b.State = build.Queued
	v.put("k", record{Build: b, rev: 1})
	v.remove("k", 3)
	v.put("k", record{Build: b, rev: 2})
	if _, ok := v.id(b.ID); ok {
		t.Error("a purged build is back")
	}
	v.put("k", record{Build: b, rev: 4})
	if _, ok := v.id(b.ID); !ok {
		t.Error("a build that was submitted after the purge is missing")
	}
	v.remove("never seen", 9)
	v.put("never seen", record{Build: testBuild(), rev: 8})
	if _, ok := v.key("never seen"); ok {
		t.Error("a build that was purged before it was seen is there")
	}
}

// A server that claims nothing sees the builds of ever new owners start elsewhere.
func TestOwnersAreForgotten(t *testing.T) {
	v := newView()
	for i := range uint64(100) {
		b := testBuild()
		b.Owner, b.State = fmt.Sprint("owner", i), build.Running
		key := fmt.Sprint("k", i)
		v.put(key, record{Build: b, rev: 2*i + 1})
		if i > 0 {
			v.remove(key, 2*i+2)
		}
	}
	v.forget()
	if _, ok := v.turns[ownerOf(build.Repository{Owner: "owner0"})]; len(v.turns) != 1 || !ok {
		t.Errorf("turns of %d owners are remembered; one has a build", len(v.turns))
	}
}

// A token without a record, as of a build that could not be accepted while the
// disk was full, is left alone until it is old, by this process's own clock.
func TestOrphans(t *testing.T) {
	q := openTest(t, 0)
	id := build.NewID()
	if _, err := q.store.tokens.put(t.Context(), string(id), []byte("sealed"), 0); err != nil {
		t.Fatal(err)
	}
	look := func(want bool) {
		t.Helper()
		q.inspect(t.Context())
		if _, _, err := q.store.tokens.get(t.Context(), string(id)); errors.Is(err, ErrNotFound) == want {
			t.Errorf("get = %v", err)
		}
	}
	old := func() {
		o := q.orphans[string(id)]
		o.since = o.since.Add(-orphanAge)
		q.orphans[string(id)] = o
	}
	look(true)
	look(true)
	old()
	if err := q.store.tokens.erase(t.Context(), string(id)); err != nil {
		t.Fatal(err)
	}
	if _, err := q.store.tokens.put(t.Context(), string(id), []byte("sealed"), 0); err != nil { // submitted again
		t.Fatal(err)
	}
	look(true)
	old()
	look(false)
}

// A process that hears nothing of what others accept must not erase their tokens.
func TestOrphanOnlyForWhoIsBehind(t *testing.T) {
	t.Parallel()
	q := openTest(t, 0)
	b := testBuild()
	if _, err := q.Submit(t.Context(), Submission{Build: b, Sealed: []byte("sealed")}); err != nil {
		t.Fatal(err)
	}
	_, seq, err := q.store.tokens.get(t.Context(), string(b.ID))
	if err != nil {
		t.Fatal(err)
	}
	if err := q.catchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	q.view.reset()
	q.seen.reset()
	q.orphans = orphans{string(b.ID): {seq: seq, since: time.Now().Add(-orphanAge)}}
	if err := q.eraseOrphans(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("eraseOrphans = %v, want ErrUnavailable", err)
	}
	if _, _, err := q.store.tokens.get(t.Context(), string(b.ID)); err != nil {
		t.Errorf("the token of a live build: %v", err)
	}
}

func TestCompare(t *testing.T) {
	s := &store{prefix: clusterPrefix, replicas: 3, cluster: &Cluster{}}
	live, ended, tokens := s.configs(time.Hour)
	for name, c := range map[string]struct {
		want   jetstream.StreamConfig
		change func(*jetstream.StreamConfig)
		bad    bool
	}{
		"live":                    {live, func(*jetstream.StreamConfig) {}, false},
		"ended":                   {ended, func(*jetstream.StreamConfig) {}, false},
		"tokens":                  {tokens, func(*jetstream.StreamConfig) {}, false},
		"five copies":             {live, func(c *jetstream.StreamConfig) { c.Replicas = 5 }, false},
		"one copy":                {live, func(c *jetstream.StreamConfig) { c.Replicas = 1 }, true},
		"in memory":               {live, func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage }, true},
		"async":                   {tokens, func(c *jetstream.StreamConfig) { c.PersistMode = jetstream.AsyncPersistMode }, true},
		"work queue":              {live, func(c *jetstream.StreamConfig) { c.Retention = jetstream.WorkQueuePolicy }, true},
		"direct reads":            {tokens, func(c *jetstream.StreamConfig) { c.AllowDirect = true }, true},
		"forgets live builds":     {live, func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour }, true},
		"forgets tokens":          {tokens, func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour }, true},
		"discards live builds":    {live, func(c *jetstream.StreamConfig) { c.Discard, c.MaxBytes = jetstream.DiscardOld, 1<<20 }, true},
		"another retention":       {ended, func(c *jetstream.StreamConfig) { c.MaxAge = 2 * time.Hour }, true},
		"another subject":         {ended, func(c *jetstream.StreamConfig) { c.Subjects = []string{"other"} }, true},
		"a subject more":          {ended, func(c *jetstream.StreamConfig) { c.Subjects = append([]string{"other"}, c.Subjects...) }, false},
		"history":                 {live, func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 5 }, true},
		"tokens cannot be erased": {tokens, func(c *jetstream.StreamConfig) { c.DenyDelete = true }, true},
		"builds cannot be purged": {live, func(c *jetstream.StreamConfig) { c.AllowRollup = false }, true},
	} {
		got := c.want
		c.change(&got)
		if w := compare(got, c.want); len(w) > 0 != c.bad {
			t.Errorf("%s: warnings %q", name, w)
		}
	}
}
