package queue

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/monochromegane/cargo/build"
)

// failed is a build of one version that has ended as lost or internal.
func failed(t *testing.T, q *Queue, b build.Build, reason build.Reason) build.Build {
	t.Helper()
	if _, err := q.Submit(t.Context(), Submission{Build: b, Caller: "c"}); err != nil {
		t.Fatal(err)
	}
	c, err := q.Claim(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	code := 1
	b = c.Build()
	b.State, b.Reason, b.Message, b.ExitCode, b.Executor = build.Failed, reason, "m", &code, "docker"
	b.Phases, b.Artifact = []build.Phase{{Name: build.PhaseFetch}}, &build.Artifact{Name: "a"}
	if err := c.Finish(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	return b
}

func publicBuild(version string) build.Build {
	b := testBuild()
	b.Version, b.Public = version, true
	return b
}

func requeue(t *testing.T, q *Queue, id build.ID) build.Build {
	t.Helper()
	b, err := q.Requeue(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func nextClaim(t *testing.T, q *Queue, id build.ID, attempt int) *Claim {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := q.Claim(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if b := c.Build(); b.ID != id || b.Attempt != attempt {
		t.Fatalf("claimed build %s, attempt %d; want %s, %d", b.ID, b.Attempt, id, attempt)
	}
	return c
}

func mustFinish(t *testing.T, c *Claim, s build.State) {
	t.Helper()
	b := c.Build()
	b.State = s
	if err := c.Finish(t.Context(), b); err != nil {
		t.Fatal(err)
	}
}

func TestRequeueARunningBuild(t *testing.T) {
	q := openTest(t, 0)
	b := testBuild() // private
	if _, err := q.Submit(t.Context(), Submission{Build: b, Sealed: []byte("sealed")}); err != nil {
		t.Fatal(err)
	}
	c := nextClaim(t, q, b.ID, 1)
	if got := requeue(t, q, b.ID); got.State != build.Queued || !got.StartedAt.IsZero() || got.Attempt != 1 {
		t.Errorf("requeued: %+v", got)
	}
	ends(t, c, ErrLeaseLost)
	done := c.Build()
	done.State = build.Succeeded
	if err := c.Finish(t.Context(), done); !errors.Is(err, ErrLeaseLost) {
		t.Errorf("Finish = %v, want ErrLeaseLost", err)
	}
	if l, _ := q.view.id(b.ID); l.rec.Lost != 0 {
		t.Errorf("%d workers are said to be lost", l.rec.Lost)
	}
	c = nextClaim(t, q, b.ID, 2)
	if string(c.Sealed()) != "sealed" {
		t.Errorf("its token is %q", c.Sealed())
	}
	mustFinish(t, c, build.Succeeded)
}

func TestRequeueABuildThatWasToBeCanceled(t *testing.T) {
	var told []build.Build
	q, err := Open(t.Context(), Options{Dir: t.TempDir(), Worker: "w", Dropped: func(b build.Build) { told = append(told, b) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.Close() })
	c := claimed(t, q)
	if err := q.Cancel(t.Context(), c.Build().ID); err != nil {
		t.Fatal(err)
	}
	if got := requeue(t, q, c.Build().ID); got.State != build.Canceled || len(told) != 1 {
		t.Errorf("requeued: %+v; %d told", got, len(told))
	}
}

// A worker that hands back what was to be canceled ends it, as nobody else does.
func TestHandBackABuildThatWasToBeCanceled(t *testing.T) {
	var told []build.Build
	q, err := Open(t.Context(), Options{Dir: t.TempDir(), Worker: "w", Dropped: func(b build.Build) { told = append(told, b) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.Close() })
	for _, beforehand := range []bool{false, true} { // the renewal has done it before Requeue is asked again
		c := claimed(t, q)
		if err := q.Cancel(t.Context(), c.Build().ID); err != nil {
			t.Fatal(err)
		}
		if beforehand {
			c.want((*record).giveBack, false)
			if c.beat() {
				t.Error("the renewal goes on")
			}
		}
		told = nil
		if err := c.Requeue(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(told) != 1 || told[0].State != build.Canceled {
			t.Errorf("told of %+v", told)
		}
	}
}

func TestRequeueAFailedBuild(t *testing.T) {
	for _, reason := range []build.Reason{build.ReasonLost, build.ReasonInternal} {
		q := openTest(t, 0)
		b := failed(t, q, publicBuild("v1"), reason)
		got := requeue(t, q, b.ID)
		if got.State != build.Queued || got.Reason != "" || got.Message != "" || got.ExitCode != nil || got.Executor != "" ||
			got.Phases != nil || got.Artifact != nil || !got.StartedAt.IsZero() || !got.FinishedAt.IsZero() || !got.AcceptedAt.Equal(b.AcceptedAt) {
			t.Errorf("requeued: %+v", got)
		}
		if now, err := q.Get(t.Context(), b.ID); err != nil || now.State != build.Queued {
			t.Errorf("Get = %s, %v", now.State, err)
		}
		waited := make(chan build.Build, 1)
		go func() {
			w, _ := q.Wait(context.Background(), b.ID)
			waited <- w
		}()
		for lost := range 2 { // it may lose as many workers as any other
			c := nextClaim(t, q, b.ID, 2+lost)
			l, _ := q.view.id(b.ID)
			q.view.drop(c) // as if another process held it
			if err := q.lose(t.Context(), l); err != nil {
				t.Fatal(err)
			}
		}
		mustFinish(t, nextClaim(t, q, b.ID, 4), build.Succeeded)
		select {
		case w := <-waited:
			if w.State != build.Succeeded {
				t.Errorf("Wait returned a build that is %s", w.State)
			}
		case <-time.After(time.Minute):
			t.Fatal("Wait does not return")
		}
		listedOnce(t, q, b.ID, build.Succeeded)
	}
}

// listedOnce fails the test unless the build stands so among the ended ones.
func listedOnce(t *testing.T, q *Queue, id build.ID, s build.State) {
	t.Helper()
	comes(t, "the build leaves the live ones", func() bool { _, ok := q.view.id(id); return !ok })
	if b, err := q.Get(t.Context(), id); err != nil || b.State != s {
		t.Errorf("Get = %s, %v; want %s", b.State, err, s)
	}
	page, _, err := q.List(t.Context(), Filter{})
	if err != nil || len(page) != 1 || page[0].ID != id || page[0].State != s {
		t.Errorf("List = %+v, %v; want it once, %s", page, err, s)
	}
}

// Each end counts, also one without another attempt.
func TestRequeueAndCancel(t *testing.T) {
	q := openTest(t, 0)
	b := failed(t, q, publicBuild("v1"), build.ReasonLost)
	requeue(t, q, b.ID)
	if err := q.Cancel(t.Context(), b.ID); err != nil {
		t.Fatal(err)
	}
	listedOnce(t, q, b.ID, build.Canceled)
}

// The last end counts, also if another process moves an earlier one so late.
func TestRequeueTwice(t *testing.T) {
	q := openTest(t, 0)
	b := failed(t, q, publicBuild("v1"), build.ReasonLost)
	var late []live
	for n := 1; n <= 3; n++ {
		requeue(t, q, b.ID)
		c := nextClaim(t, q, b.ID, n+1)
		l, _ := q.view.id(b.ID)
		done := c.Build()
		done.State, done.Reason = build.Failed, build.ReasonInternal
		l.rec.Build = done
		late = append(late, l)
		if err := c.Finish(t.Context(), done); err != nil {
			t.Fatal(err)
		}
	}
	for _, l := range slices.Backward(late) {
		if err := q.retire(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	listedOnce(t, q, b.ID, build.Failed)
	if got, err := q.Get(t.Context(), b.ID); err != nil || got.Attempt != 4 {
		t.Errorf("its last attempt is %d, %v; want 4", got.Attempt, err)
	}
}

// A watch may bring only the newest of what happened to a key: not that a build
// left the live ones before it was queued again.
func TestRequeueSeenFromAfar(t *testing.T) {
	q := openTest(t, 0)
	b := publicBuild("v1")
	b.State, b.Reason = build.Failed, build.ReasonLost
	v := newView()
	v.put("k", record{Build: b, rev: 1})
	b.State, b.Reason = build.Queued, ""
	v.put("k", record{Build: b, Again: 1, rev: 3})
	q.view = v
	waited := make(chan build.State, 1)
	go func() {
		w, _ := q.Wait(context.Background(), b.ID)
		waited <- w.State
	}()
	l, ok := v.id(b.ID)
	select {
	case <-l.ended:
		t.Error("who waits for its end is told of the one before")
	default:
	}
	b.State = build.Succeeded
	v.put("k", record{Build: b, Again: 1, rev: 4})
	if s := <-waited; !ok || s != build.Succeeded {
		t.Errorf("Wait returned a build that is %q", s)
	}
}

func TestRefusedRequeues(t *testing.T) {
	q := openTest(t, 0)
	refused := func(id build.ID, words string) {
		t.Helper()
		_, err := q.Requeue(t.Context(), id)
		if !errors.Is(err, ErrNotRequeued) || !strings.Contains(err.Error(), words) {
			t.Errorf("Requeue = %v; want words on %q", err, words)
		}
	}
	for _, id := range []build.ID{build.NewID(), "", "*"} {
		if _, err := q.Requeue(t.Context(), id); !errors.Is(err, ErrNotFound) {
			t.Errorf("Requeue(%q) = %v", id, err)
		}
	}
	for s, words := range map[build.State]string{build.Succeeded: "succeeded", build.Canceled: "canceled"} {
		c := claimed(t, q)
		mustFinish(t, c, s)
		refused(c.Build().ID, words)
	}
	refused(failed(t, q, publicBuild("v1"), build.ReasonExit).ID, "exit")
	private := testBuild()
	refused(failed(t, q, private, build.ReasonLost).ID, "POST")

	b := failed(t, q, publicBuild("v2"), build.ReasonLost)
	other := publicBuild("v2")
	if _, err := q.Submit(t.Context(), Submission{Build: other}); err != nil {
		t.Fatal(err)
	}
	refused(b.ID, string(other.ID))
	refused(other.ID, "queued already")
	mustFinish(t, nextClaim(t, q, other.ID, 1), build.Succeeded)
	requeue(t, q, b.ID) // nobody is in its way now

	foreign := publicBuild("v3")
	foreign.State, foreign.Reason = build.Failed, build.ReasonLost
	data, err := json.Marshal(map[string]any{"v": recordVersion + 1, "build": foreign})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.store.ended.put(t.Context(), string(foreign.ID), data, 0); err != nil {
		t.Fatal(err)
	}
	refused(foreign.ID, "newer")
}

// Wherever a crash falls, the next start finds the build in one piece, and
// whoever calls again gets what the call would have given.
func TestCrashOfARequeue(t *testing.T) {
	ended := publicBuild("v1")
	ended.State, ended.Reason, ended.Attempt = build.Failed, build.ReasonLost, 3
	ended.AcceptedAt, ended.FinishedAt = time.Now().UTC(), time.Now().UTC()
	again := ended
	again.State, again.Reason, again.FinishedAt = build.Queued, "", time.Time{}
	for name, tc := range map[string]struct {
		live, ended *record
		want        build.State
	}{
		"before it":            {live: &record{Build: ended, Lost: 3, Caller: "c"}, want: build.Failed},
		"between its writes":   {ended: &record{Build: ended}, want: build.Failed},
		"after it":             {live: &record{Build: again, Again: 1}, ended: &record{Build: ended}, want: build.Queued},
		"before the next move": {live: &record{Build: ended, Again: 1}, ended: &record{Build: ended}, want: build.Failed},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			restart := func(q *Queue) *Queue {
				if q != nil {
					if err := q.Close(); err != nil {
						t.Fatal(err)
					}
				}
				q, err := Open(t.Context(), Options{Dir: dir, Worker: "w"})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = q.Close() })
				return q
			}
			q := restart(nil)
			if tc.ended != nil {
				if _, err := q.store.ended.put(t.Context(), string(ended.ID), mustEncode(t, *tc.ended), 0); err != nil {
					t.Fatal(err)
				}
			}
			if tc.live != nil {
				if _, err := q.store.create(t.Context(), ended.Key.Digest(), mustEncode(t, *tc.live)); err != nil {
					t.Fatal(err)
				}
			}
			q = restart(q)
			if b, err := q.Get(t.Context(), ended.ID); err != nil || b.State != tc.want {
				t.Fatalf("after the crash: %s, %v; want %s", b.State, err, tc.want)
			}
			if tc.want != build.Queued {
				requeue(t, q, ended.ID)
			}
			q = restart(q)
			mustFinish(t, nextClaim(t, q, ended.ID, 4), build.Succeeded)
			listedOnce(t, q, ended.ID, build.Succeeded)
			listedOnce(t, restart(q), ended.ID, build.Succeeded)
		})
	}
}

// It has ended, but is not moved yet: by us, in the meantime by another process, or never.
func TestRequeueBeforeItIsMoved(t *testing.T) {
	q := openTest(t, 0)
	b := publicBuild("v1")
	b.State, b.Reason, b.Attempt = build.Failed, build.ReasonLost, 3
	b.AcceptedAt, b.FinishedAt = time.Now().UTC(), time.Now().UTC()
	rev, err := q.store.create(t.Context(), b.Digest(), mustEncode(t, record{Build: b, Sealed: true}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.take(b.Digest(), mustEncode(t, record{Build: b, Sealed: true}), rev); err != nil {
		t.Fatal(err)
	}
	stale, _ := q.view.id(b.ID)
	requeue(t, q, b.ID)
	if err := q.retire(t.Context(), stale); err != nil { // another process does it late
		t.Fatal(err)
	}
	if now, err := q.Get(t.Context(), b.ID); err != nil || now.State != build.Queued {
		t.Errorf("a late move of its first end made it %s, %v", now.State, err)
	}
	mustFinish(t, nextClaim(t, q, b.ID, 4), build.Succeeded)
	listedOnce(t, q, b.ID, build.Succeeded)
	if err := q.retire(t.Context(), stale); err != nil {
		t.Fatal(err)
	}
	listedOnce(t, q, b.ID, build.Succeeded)
}

func TestRequeuesAtOnce(t *testing.T) {
	q := openTest(t, 0)
	b := failed(t, q, publicBuild("v1"), build.ReasonLost)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			got, err := q.Requeue(context.Background(), b.ID)
			if err == nil && got.State != build.Queued || err != nil && !errors.Is(err, ErrNotRequeued) {
				t.Errorf("Requeue = %+v, %v", got, err)
			}
		})
	}
	wg.Wait()
	if q.Depth() != 1 {
		t.Errorf("%d builds are queued", q.Depth())
	}
	mustFinish(t, nextClaim(t, q, b.ID, 2), build.Succeeded)
	listedOnce(t, q, b.ID, build.Succeeded)
}

// Another process did it, or an earlier try of ours whose answer was lost; the
// watch has not brought it.
func TestRequeueThatWasDone(t *testing.T) {
	q := openTest(t, 0)
	b := failed(t, q, publicBuild("v1"), build.ReasonLost)
	comes(t, "the build leaves the live ones", func() bool { _, ok := q.view.id(b.ID); return !ok })
	deaf := &Queue{store: q.store, view: newView(), lease: q.lease, worker: "deaf", log: q.log, ctx: q.ctx} // has no watch
	requeue(t, q, b.ID)
	if got := requeue(t, deaf, b.ID); got.State != build.Queued || got.ID != b.ID {
		t.Errorf("requeued: %+v", got)
	}
}

// What another worker has claimed by the time is not taken from that one.
func TestRequeueThatComesLate(t *testing.T) {
	q := openTest(t, 0)
	c := claimed(t, q)
	late, _ := q.view.id(c.Build().ID)
	requeue(t, q, c.Build().ID)
	ends(t, c, ErrLeaseLost)
	_ = c.Requeue(t.Context()) // as the holder of a lost claim does
	c = nextClaim(t, q, c.Build().ID, 2)
	if b, err := q.takeAway(t.Context(), late); !errors.Is(err, ErrNotRequeued) {
		t.Errorf("requeued: %+v, %v", b, err)
	}
	mustFinish(t, c, build.Succeeded)
	if b, err := q.takeAway(t.Context(), late); !errors.Is(err, ErrNotRequeued) {
		t.Errorf("requeued: %+v, %v", b, err)
	}
}
