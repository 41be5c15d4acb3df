package queue

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/monochromegane/cargo/build"
)

// ownerOf says whose turn a build of r takes: the remote and the outermost
// group, so that nobody has more turns for having more repositories or
// subgroups. Hosts do not tell owners apart by case, so spelling one in many
// ways brings no turns either.
func ownerOf(r build.Repository) string {
	first, _, _ := strings.Cut(r.Owner, "/")
	return r.Remote + "/" + strings.ToLower(first)
}

// maxSpread bounds how far down the line a claim may look that has lost races.
const maxSpread = 15

// A standing is what an owner has in the view.
type standing struct {
	running int       // also those that are just being claimed
	line    []*entry  // the oldest that can be claimed, oldest first
	turn    time.Time // when it had its last one
	waits   time.Time // since when; of an owner with a claimable build
}

// before reports whether it is s's turn rather than o's. Who has fewest builds
// running comes first, so one owner's long builds do not hold all workers while
// another waits. Among those with as many, a turn puts an owner behind all who
// wait already, and whoever comes later goes behind it: nobody starves.
func (s *standing) before(o *standing) bool {
	return cmp.Or(
		cmp.Compare(s.running, o.running),
		s.waits.Compare(o.waits),
		older(s.line[0].rec.Build, o.line[0].rec.Build),
	) < 0
}

// next is the queued build whose turn it is, no longer claimable until hold;
// if there is none, arrived is closed when that may have changed.
//
// Other processes see the same line, and where they are many, all would reach
// for its head at once. Who loses a race therefore takes one of the next few
// whose turn comes then, the more the more races are lost.
func (v *view) next() (_ live, arrived <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := time.Now()
	skip := rand.IntN(v.spread + 1) //nolint:gosec // nobody gains by guessing it
	owners := v.standings(skip + 1)
	var chosen *entry
	for range skip + 1 {
		first := first(owners, now)
		if first == nil {
			break
		}
		chosen = first.line[0]
		first.line = first.line[1:]
		first.running++
		first.turn = now
	}
	// An owner without a live build waits again from its next one on.
	maps.DeleteFunc(v.turns, func(owner string, _ time.Time) bool { return owners[owner] == nil })
	if chosen == nil {
		return live{}, v.arrived
	}
	chosen.busy = true
	v.turns[chosen.owner] = now
	return chosen.live(), nil
}

// first is the owner whose turn it is, nil if nobody has a claimable build.
func first(owners map[string]*standing, now time.Time) (first *standing) {
	// What lies in the future was noted before the clock was set back, and says
	// nothing; the clocks of several machines may differ by a little.
	known := func(t time.Time) time.Time {
		if t.Round(0).After(now.Add(time.Minute).Round(0)) {
			return time.Time{}
		}
		return t
	}
	for _, s := range owners {
		if len(s.line) == 0 {
			continue
		}
		if s.waits = known(s.line[0].rec.Build.AcceptedAt); s.waits.Before(known(s.turn)) {
			s.waits = s.turn
		}
		if first == nil || s.before(first) {
			first = s
		}
	}
	return first
}

// standings are of all owners with a live build; n is how many of the claimable
// ones of each are looked for.
func (v *view) standings(n int) map[string]*standing {
	owners := map[string]*standing{}
	for _, e := range v.byID {
		s := owners[e.owner]
		if s == nil {
			s = &standing{turn: v.turns[e.owner]}
			owners[e.owner] = s
		}
		switch {
		case e.busy || e.rec.Build.State == build.Running:
			s.running++
		case e.claimable():
			s.queue(e, n)
		}
	}
	return owners
}

// queue puts e into the line at its place, unless n stand before it.
func (s *standing) queue(e *entry, n int) {
	at := len(s.line)
	for at > 0 && older(e.rec.Build, s.line[at-1].rec.Build) < 0 {
		at--
	}
	if at < n {
		s.line = slices.Insert(s.line, at, e)
		s.line = s.line[:min(n, len(s.line))]
	}
}

// raced tells how the race for a build of next ended.
func (v *view) raced(lost bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if lost {
		v.spread = min(2*v.spread+1, maxSpread)
	} else {
		v.spread = max(v.spread-1, 0)
	}
}
