package queue

import (
	"cmp"
	"maps"
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

// A standing is what an owner has in the view.
type standing struct {
	running int       // also those that are just being claimed
	oldest  *entry    // that can be claimed
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
		older(s.oldest.rec.Build, o.oldest.rec.Build),
	) < 0
}

// next is the queued build whose turn it is, no longer claimable until hold;
// if there is none, arrived is closed when that may have changed.
func (v *view) next() (_ live, arrived <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	owners := v.standings()
	var first *standing
	for owner, s := range owners {
		if s.oldest == nil {
			continue
		}
		if s.waits = s.oldest.rec.Build.AcceptedAt; s.waits.Before(v.turns[owner]) {
			s.waits = v.turns[owner]
		}
		if first == nil || s.before(first) {
			first = s
		}
	}
	// An owner without a live build waits again from its next one on.
	maps.DeleteFunc(v.turns, func(owner string, _ time.Time) bool { return owners[owner] == nil })
	if first == nil {
		return live{}, v.arrived
	}
	first.oldest.busy = true
	v.turns[first.oldest.owner] = time.Now()
	return first.oldest.live(), nil
}

func (v *view) standings() map[string]*standing {
	owners := map[string]*standing{}
	for _, e := range v.byID {
		s := owners[e.owner]
		if s == nil {
			s = &standing{}
			owners[e.owner] = s
		}
		switch {
		case e.busy || e.rec.Build.State == build.Running:
			s.running++
		case e.claimable() && (s.oldest == nil || older(e.rec.Build, s.oldest.rec.Build) < 0):
			s.oldest = e
		}
	}
	return owners
}
