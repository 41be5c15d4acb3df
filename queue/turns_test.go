package queue_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/queue"
)

// A line of builds is submitted as the owner's, in this order.
type line struct {
	t   testing.TB
	q   *queue.Queue
	n   int
	now time.Time
}

func newLine(t testing.TB) *line {
	return &line{t: t, q: open(t, queue.Options{Dir: t.TempDir()}), now: time.Now().Add(-time.Hour).UTC()}
}

func (l *line) submit(owners ...string) {
	l.t.Helper()
	for _, owner := range owners {
		l.n++
		b := newBuild(fmt.Sprint("v", l.n))
		b.Owner = owner
		b.Name = fmt.Sprint("r", l.n) // many repositories bring no more turns
		b.AcceptedAt = l.now.Add(time.Duration(l.n) * time.Second)
		submit(l.t, l.q, b, nil)
	}
}

// claims takes n builds and returns their owners and numbers.
func (l *line) claims(n int) (got []string, held []*queue.Claim) {
	l.t.Helper()
	for range n {
		c := claim(l.t, l.q)
		got = append(got, c.Build().Owner+" "+c.Build().Version)
		held = append(held, c)
	}
	return got, held
}

func finishAll(t testing.TB, claims []*queue.Claim) {
	t.Helper()
	for _, c := range claims {
		finish(t, c, build.Succeeded)
	}
}

func TestOneOwnerDoesNotStarveAnother(t *testing.T) {
	l := newLine(t)
	for range 500 {
		l.submit("a")
	}
	l.submit("b")
	got, held := l.claims(1) // one worker
	finishAll(t, held)
	second, held := l.claims(1)
	finishAll(t, held)
	if want := []string{"a v1", "b v501"}; !cmp.Equal(append(got, second...), want) {
		t.Errorf("claimed %q, then %q; want %q", got, second, want)
	}
}

func TestTurnsGoRound(t *testing.T) {
	for _, tc := range []struct {
		name   string
		queued []string
		want   []string // claimed by one worker
	}{
		{"three owners", []string{"a", "a", "a", "b", "b", "c"}, []string{"a v1", "b v4", "c v6", "a v2", "b v5", "a v3"}},
		{"one owner, whatever the case", []string{"Me", "mE", "b"}, []string{"Me v1", "b v3", "mE v2"}},
		{"a group and what is in it", []string{"g/x", "g/y", "g", "b"}, []string{"g/x v1", "b v4", "g/y v2", "g v3"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLine(t)
			l.submit(tc.queued...)
			var got []string
			for range tc.want {
				g, held := l.claims(1)
				got = append(got, g...)
				finishAll(t, held)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("order (-want +got):\n%s", diff)
			}
		})
	}
}

// Who has a build running lets others go first, though they came later.
func TestRunningBuildsCountAsTurns(t *testing.T) {
	l := newLine(t)
	l.submit("a", "a", "a", "b", "b")
	got, held := l.claims(4)
	if want := []string{"a v1", "b v4", "a v2", "b v5"}; !cmp.Equal(got, want) {
		t.Errorf("claimed %q, want %q", got, want)
	}
	finishAll(t, held)

	l.submit("c")
	_, ofC := l.claims(2) // a v3 first, which waits longest, then c
	l.submit("c", "d")
	if got, _ := l.claims(2); got[0] != "d v8" || got[1] != "c v7" {
		t.Errorf("claimed %q while one of c runs", got)
	}
	finishAll(t, ofC)
}

// Two owners that come again and again are no reason for a third to wait for ever.
func TestNewcomersGoBehindWhoWaits(t *testing.T) {
	l := newLine(t)
	seen := map[string]int{}
	l.submit("a", "a", "a", "a")
	for range 9 {
		for _, owner := range []string{"b", "c"} { // one each, new as soon as the last is done
			if seen[owner] == seen[owner+" submitted"] {
				b := newBuild(fmt.Sprint("w", owner, seen[owner]))
				b.Owner = owner
				submit(t, l.q, b, nil)
				seen[owner+" submitted"]++
			}
		}
		_, held := l.claims(1)
		seen[held[0].Build().Owner]++
		finishAll(t, held)
	}
	if seen["a"] < 3 || seen["b"] < 2 || seen["c"] < 2 {
		t.Errorf("turns taken: %v", seen)
	}
}
