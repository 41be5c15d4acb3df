package queue

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/monochromegane/cargo/build"
)

// These tests play another process, older or newer, that writes to the same
// store; the lock keeps a real one out.

func openTest(t *testing.T, lease time.Duration) *Queue {
	t.Helper()
	q, err := Open(t.Context(), Options{Dir: t.TempDir(), Worker: "w", Lease: lease, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.Close() })
	return q
}

func testBuild() build.Build {
	return build.Build{ID: build.NewID(), Key: build.Key{Commit: "c", Image: "i"}}
}

func claimed(t *testing.T, q *Queue) *Claim {
	t.Helper()
	if _, err := q.Submit(t.Context(), Submission{Build: testBuild()}); err != nil {
		t.Fatal(err)
	}
	c, err := q.Claim(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func ends(t *testing.T, c *Claim, want error) {
	t.Helper()
	select {
	case <-c.Context().Done():
	case <-time.After(time.Minute):
		t.Fatal("the claim goes on")
	}
	if cause := context.Cause(c.Context()); !errors.Is(cause, want) {
		t.Errorf("cause = %v, want %v", cause, want)
	}
}

// write stores a record as another process would, whatever its form.
func write(t *testing.T, q *Queue, key string, rec any) {
	t.Helper()
	data, err := json.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.store.live.Put(t.Context(), key, data); err != nil {
		t.Fatal(err)
	}
}

func TestClaimIsRenewed(t *testing.T) {
	q := openTest(t, 6*time.Second)
	c := claimed(t, q)
	w, err := q.store.live.WatchAll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Stop() }()
	renewals := -1 // the claim itself
	for e := range w.Updates() {
		if e == nil {
			continue
		}
		if renewals++; renewals == 2 {
			break
		}
	}
	if c.Context().Err() != nil || q.Running() != 1 {
		t.Errorf("the renewed claim ended: %v", context.Cause(c.Context()))
	}
}

func TestAnotherWorkerTakesTheBuild(t *testing.T) {
	q := openTest(t, 0)
	c := claimed(t, q)
	l, _ := q.view.id(c.build.ID)
	theirs := l.rec
	theirs.Worker, theirs.Claim = "other", "other's"
	write(t, q, l.key, theirs)
	ends(t, c, ErrLeaseLost)
	b := c.Build()
	b.State = build.Succeeded
	if err := c.Finish(t.Context(), b); !errors.Is(err, ErrLeaseLost) {
		t.Errorf("Finish = %v, want ErrLeaseLost", err)
	}
	if got, err := q.Get(t.Context(), b.ID); err != nil || got.State != build.Running {
		t.Errorf("the other worker's build is %s, %v", got.State, err)
	}
}

// The loser of a race for the lease may learn of it only from its own write.
func TestFinishIsACompareAndSet(t *testing.T) {
	q := openTest(t, 0)
	b, err := q.Submit(t.Context(), Submission{Build: testBuild()})
	if err != nil {
		t.Fatal(err)
	}
	l, _ := q.view.id(b.ID)
	deaf := &Queue{store: q.store, view: newView(), lease: q.lease, worker: "deaf", log: q.log, ctx: q.ctx} // has no watch
	deaf.view.put(l.key, l.rec)
	c, err := deaf.Claim(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := q.refresh(t.Context(), l.key, 0); err != nil {
		t.Fatal(err)
	}
	l, _ = q.view.id(b.ID)
	if err := q.lose(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	b = c.Build()
	b.State = build.Succeeded
	if err := c.Finish(t.Context(), b); !errors.Is(err, ErrLeaseLost) {
		t.Errorf("Finish = %v, want ErrLeaseLost", err)
	}
	if got, err := q.Get(t.Context(), b.ID); err != nil || got.State != build.Queued {
		t.Errorf("the build is %s, %v; want queued", got.State, err)
	}
}

// An observer that has decided too early finds a newer revision.
func TestRenewalBeatsTheObserver(t *testing.T) {
	q := openTest(t, 0)
	c := claimed(t, q)
	l, _ := q.view.id(c.build.ID)
	if err := c.Confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := q.lose(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	if c.Context().Err() != nil || q.Running() != 1 {
		t.Errorf("a renewed claim was taken away: %v", context.Cause(c.Context()))
	}
}

func TestStoreDoesNotAnswer(t *testing.T) {
	q := openTest(t, time.Second)
	c := claimed(t, q)
	q.store.conn.Close()
	ends(t, c, ErrLeaseLost)
	b := c.Build()
	b.State = build.Succeeded
	if err := c.Finish(t.Context(), b); !errors.Is(err, ErrLeaseLost) {
		t.Errorf("Finish = %v, want ErrLeaseLost", err)
	}
}

func TestAnotherProcessSubmittedFirst(t *testing.T) {
	q := openTest(t, 0)
	theirs, ours := testBuild(), testBuild()
	theirs.State, theirs.AcceptedAt = build.Queued, time.Now().UTC()
	write(t, q, theirs.Digest(), record{Version: 1, Build: theirs})
	got, err := q.Submit(t.Context(), Submission{Build: ours, Sealed: []byte("sealed")})
	if err != nil || got.ID != theirs.ID {
		t.Errorf("Submit = %s, %v; want %s", got.ID, err, theirs.ID)
	}
	if names, err := q.store.tokens.names(t.Context()); err != nil || len(names) != 0 {
		t.Errorf("tokens left: %v, %v", names, err)
	}
}

// Who waits behind equal submits that the queue does not answer is told so in
// the time of one, however many there are.
func TestManyEqualSubmitsOfAQueueThatIsAway(t *testing.T) {
	t.Parallel()
	q := openTest(t, 0)
	q.store.conn.Close()
	began := time.Now()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if _, err := q.Submit(t.Context(), Submission{Build: testBuild()}); !errors.Is(err, ErrUnavailable) {
				t.Errorf("Submit = %v, want ErrUnavailable", err)
			}
		})
	}
	all.Wait()
	if took := time.Since(began); took > 2*patience {
		t.Errorf("it took %v", took)
	}
}

// The first call had an unknown outcome: its record is there, unseen as yet.
func TestSubmitAgainKeepsTheToken(t *testing.T) {
	q := openTest(t, 0)
	b := testBuild()
	b.State = build.Queued
	if _, err := q.store.tokens.put(t.Context(), string(b.ID), []byte("sealed"), 0); err != nil {
		t.Fatal(err)
	}
	write(t, q, b.Digest(), record{Version: 1, Build: b, Sealed: true})
	if got, err := q.Submit(t.Context(), Submission{Build: b, Sealed: []byte("sealed again")}); err != nil || got.ID != b.ID {
		t.Fatalf("Submit = %s, %v", got.ID, err)
	}
	if c, err := q.Claim(t.Context()); err != nil || string(c.Sealed()) != "sealed" {
		t.Errorf("Claim = %q, %v", c.Sealed(), err)
	}
}

func TestRecordsOfNewerPrograms(t *testing.T) {
	q := openTest(t, 0)
	b := testBuild()
	b.State = build.Queued
	write(t, q, b.Digest(), map[string]any{"v": 1, "build": b, "priority": 3, "tags": []string{"x"}})
	c, err := q.Claim(t.Context()) // waits for the watch to bring it
	if err != nil || c.Build().ID != b.ID {
		t.Fatalf("a field that is not known: %v", err)
	}
	if err := c.Requeue(t.Context()); err != nil {
		t.Fatal(err)
	}

	foreign := testBuild()
	foreign.State, foreign.Version = build.Queued, "v2"
	write(t, q, foreign.Digest(), map[string]any{"v": recordVersion + 1, "build": foreign})
	if c, err = q.Claim(t.Context()); err != nil || c.Build().ID != b.ID {
		t.Fatalf("Claim = %v", err)
	}
	for deadline := time.Now().Add(time.Minute); q.Depth() != 1; { // until the watch has brought it
		if time.Now().After(deadline) {
			t.Fatal("the record of a newer program is not seen")
		}
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if c, err := q.Claim(ctx); err == nil {
		t.Errorf("claimed build %s of a newer program", c.Build().ID)
	}
	if got, err := q.Get(t.Context(), foreign.ID); err != nil || got.ID != foreign.ID {
		t.Errorf("Get = %s, %v", got.ID, err)
	}
	if err := q.Cancel(t.Context(), foreign.ID); err == nil {
		t.Error("Cancel changed a record of a newer program")
	}

	ended := testBuild()
	ended.State, ended.Version = build.Succeeded, "v3"
	write(t, q, ended.Digest(), map[string]any{"v": recordVersion + 1, "build": ended})
	for deadline := time.Now().Add(time.Minute); len(q.view.all()) != 3; { // until the watch has brought it
		if time.Now().After(deadline) {
			t.Fatal("the ended record of a newer program is not seen")
		}
		time.Sleep(time.Millisecond)
	}
	again := ended
	again.ID, again.State = build.NewID(), build.Queued
	if _, err := q.Submit(t.Context(), Submission{Build: again}); !errors.Is(err, errForeign) {
		t.Errorf("Submit in the place of an ended record of a newer program: %v", err)
	}
}

// An earlier start's retention is no reason to forget anything now.
func TestRetentionIsTakenBack(t *testing.T) {
	dir := t.TempDir()
	for _, retention := range []time.Duration{0, time.Second, time.Hour, 0} {
		q, err := Open(t.Context(), Options{Dir: dir, Worker: "w", Retention: retention})
		if err != nil {
			t.Fatal(err)
		}
		info, err := q.store.ended.stream.Info(t.Context())
		if err != nil || info.Config.MaxAge != retention || info.Config.MaxBytes != endedBytes {
			t.Errorf("ended records are kept for %s (%v), want %s", info.Config.MaxAge, err, retention)
		}
		if err := q.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
