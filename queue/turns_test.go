package queue_test

import (
	"fmt"
	"strings"
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
func TestRunningBuildsCount(t *testing.T) {
	l := newLine(t)
	l.submit("a", "a", "a", "b", "b")
	got, held := l.claims(4)
	if want := []string{"a v1", "b v4", "a v2", "b v5"}; !cmp.Equal(got, want) {
		t.Errorf("claimed %q, want %q", got, want)
	}
	finishAll(t, held[1:]) // a has one running, and waits since its second turn
	l.now = time.Now().UTC()
	l.submit("b", "c")
	got, _ = l.claims(3)
	if want := []string{"b v6", "c v7", "a v3"}; !cmp.Equal(got, want) {
		t.Errorf("claimed %q while one of a runs, want %q", got, want)
	}
}

// New owners, however many, are no reason for one who waits to wait for ever.
func TestNewcomersGoBehindWhoWaits(t *testing.T) {
	l := newLine(t)
	l.submit("a", "a")
	turns := 0
	for i := range 4 {
		for j := range 2 {
			b := newBuild("v1")
			b.Owner = fmt.Sprint("new", i, j)
			submit(t, l.q, b, nil)
		}
		got, held := l.claims(1)
		if strings.HasPrefix(got[0], "a ") {
			turns++
		}
		finishAll(t, held)
	}
	if turns != 2 { // its first, and one as soon as those are served who came before that
		t.Errorf("%d turns in four while two newcomers come for each", turns)
	}
}

// A clock that is set back by an hour starves nobody.
func TestTurnsWhenTheClockIsSetBack(t *testing.T) {
	l := newLine(t)
	l.now = time.Now().Add(time.Hour).UTC() // as accepted before
	l.submit("a", "a")
	l.now = time.Now().Add(-time.Hour).UTC()
	l.submit("b", "b", "b")
	var got []string
	for range 4 {
		g, held := l.claims(1)
		got = append(got, g...)
		finishAll(t, held)
	}
	if want := []string{"a v1", "b v3", "a v2", "b v4"}; !cmp.Equal(got, want) {
		t.Errorf("claimed %q, want %q", got, want)
	}
}
