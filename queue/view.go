package queue

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/monochromegane/cargo/build"
)

// A view is the live builds in memory, as far as this process has seen them.
// Revisions only grow, so it does not matter who tells it of a change first:
// the writer or the watch.
type view struct {
	mu       sync.Mutex
	byKey    map[string]*entry
	byID     map[build.ID]*entry
	counts   map[build.State]int
	callers  map[string]int       // builds of each that are reserved, queued or running
	reserved map[build.ID]string  // submits on their way, and whose they are
	turns    map[string]time.Time // when each owner's build was last handed out
	spread   int                  // how many builds further than the next one a claim may look
	strays   map[string]time.Time // names of claims that may have been written unknown to us, and since when
	arrived  chan struct{}        // closed, and replaced, when a build becomes claimable
	heard    hearing
}

type entry struct {
	key   string
	owner string // whose turn it takes
	rec   record
	seen  time.Duration // when this revision of rec was first seen, in time of view.heard
	gone  bool          // purged; kept for a while, so that no late word of an older revision brings it back
	left  time.Time     // since when
	ended chan struct{} // closed when the build has ended
	busy  bool          // a Claim of this process is writing
	claim *Claim        // what this process holds
}

func newView() *view {
	return &view{
		byKey:    map[string]*entry{},
		byID:     map[build.ID]*entry{},
		counts:   map[build.State]int{},
		callers:  map[string]int{},
		reserved: map[build.ID]string{},
		turns:    map[string]time.Time{},
		strays:   map[string]time.Time{},
		arrived:  make(chan struct{}),
	}
}

// put takes over a record unless a newer one is known.
func (v *view) put(key string, r record) {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := v.byKey[key]
	if e != nil && r.rev <= e.rec.rev {
		return
	}
	again := e != nil && e.rec.Build.State.Ended() && !r.Build.State.Ended() // by Requeue; who waited for its end has it
	if e != nil && (e.gone || e.rec.Build.ID != r.Build.ID || again) {
		v.unlink(e)
		e = nil
	}
	if e == nil {
		e = &entry{key: key, owner: ownerOf(r.Build.Repository), ended: make(chan struct{})}
		v.byKey[key], v.byID[r.Build.ID] = e, e
		v.unreserve(r.Build.ID)
	} else {
		v.tally(e.rec, -1)
	}
	was := e.rec.Build.State
	e.rec, e.seen = r, v.heard.now()
	v.tally(r, 1)
	if r.Build.State.Ended() && !was.Ended() {
		close(e.ended)
	}
	if r.Build.State == build.Running && was != build.Running {
		v.turns[e.owner] = time.Now() // also when another process has taken it
	}
	if e.claim != nil {
		e.claim.observe(r)
	}
	if e.claimable() {
		v.announce()
	}
}

// remove forgets what was purged at rev.
func (v *view) remove(key string, rev uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := v.byKey[key]
	if e == nil {
		e = &entry{key: key, gone: true, left: time.Now()}
		v.byKey[key] = e
	}
	if rev > e.rec.rev {
		v.unlink(e)
		e.rec = record{rev: rev}
	}
}

// hide is remove when the revision of the purge is not known.
func (v *view) hide(key string, rev uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if e := v.byKey[key]; e != nil && e.rec.rev == rev {
		v.unlink(e)
	}
}

// forget drops what was purged longer ago than anybody could speak of it, and
// the turns of owners without a live build: next does that too, but who only
// accepts builds never calls it.
func (v *view) forget() {
	v.mu.Lock()
	defer v.mu.Unlock()
	live := map[string]bool{}
	for _, e := range v.byID {
		live[e.owner] = true
	}
	maps.DeleteFunc(v.turns, func(owner string, _ time.Time) bool { return !live[owner] })
	maps.DeleteFunc(v.byKey, func(_ string, e *entry) bool { return e.gone && time.Since(e.left) > markerTTL })
	maps.DeleteFunc(v.strays, func(_ string, since time.Time) bool { return time.Since(since) > markerTTL })
}

// reset forgets everything.
func (v *view) reset() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, e := range v.byKey {
		v.unlink(e)
	}
	clear(v.byKey)
}

func (v *view) unlink(e *entry) {
	if e.gone {
		return
	}
	e.gone, e.left = true, time.Now()
	delete(v.byID, e.rec.Build.ID)
	v.tally(e.rec, -1)
	if !e.rec.Build.State.Ended() {
		close(e.ended)
	}
	if e.claim != nil {
		e.claim.end(ErrLeaseLost)
	}
}

func (v *view) announce() {
	close(v.arrived)
	v.arrived = make(chan struct{})
}

func (e *entry) claimable() bool {
	return !e.gone && !e.busy && e.claim == nil && e.rec.Build.State == build.Queued && !e.rec.foreign()
}

// A live is what the view knows of one build.
type live struct {
	key   string
	rec   record
	ended <-chan struct{}
}

func (e *entry) live() live { return live{key: e.key, rec: e.rec, ended: e.ended} }

func (v *view) key(key string) (live, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if e := v.byKey[key]; e != nil && !e.gone {
		return e.live(), true
	}
	return live{}, false
}

func (v *view) id(id build.ID) (live, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if e := v.byID[id]; e != nil {
		return e.live(), true
	}
	return live{}, false
}

// all are the live builds, those accepted last first.
func (v *view) all() []live {
	v.mu.Lock()
	all := make([]live, 0, len(v.byID))
	for _, e := range v.byID {
		all = append(all, e.live())
	}
	v.mu.Unlock()
	slices.SortFunc(all, func(a, b live) int { return -older(a.rec.Build, b.rec.Build) })
	return all
}

func older(a, b build.Build) int {
	return cmp.Or(a.AcceptedAt.Compare(b.AcceptedAt), cmp.Compare(a.ID, b.ID))
}

func (v *view) count(s build.State) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.counts[s]
}

// tally counts a record n times more.
func (v *view) tally(r record, n int) {
	v.counts[r.Build.State] += n
	if !r.Build.State.Ended() {
		v.charge(r.Caller, n)
	}
}

func (v *view) charge(caller string, n int) {
	if v.callers[caller] += n; v.callers[caller] == 0 {
		delete(v.callers, caller)
	}
}

// limits are how many builds may be queued, and how many of one caller queued
// or running, which is any number if it is 0.
type limits struct{ queued, caller int }

// reserve holds a place for a submit, until its record is in the view or
// release gives the place up.
func (v *view) reserve(r record, max limits) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if n := v.callers[r.Caller]; r.Caller != "" && max.caller > 0 && n >= max.caller {
		return fmt.Errorf("%w: %d of yours are queued or running, and no caller may have more than %d; wait for one to end, or cancel one", ErrCallerFull, n, max.caller)
	}
	if v.counts[build.Queued]+len(v.reserved) >= max.queued {
		return ErrFull
	}
	v.reserved[r.Build.ID] = r.Caller
	v.charge(r.Caller, 1)
	return nil
}

func (v *view) release(id build.ID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.unreserve(id)
}

func (v *view) unreserve(id build.ID) {
	if caller, ok := v.reserved[id]; ok {
		delete(v.reserved, id)
		v.charge(caller, -1)
	}
}

// holders names who has the claim of each running build.
func (v *view) holders() map[build.ID]string {
	v.mu.Lock()
	defer v.mu.Unlock()
	held := make(map[build.ID]string, v.counts[build.Running])
	for id, e := range v.byID {
		if e.rec.Build.State == build.Running {
			held[id] = e.rec.Worker
		}
	}
	return held
}

// hold ends what next began: c is the claim, or nil if it came to nothing.
func (v *view) hold(id build.ID, c *Claim) {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := v.byID[id]
	if e == nil {
		if c != nil {
			c.end(ErrLeaseLost)
		}
		return
	}
	e.busy, e.claim = false, c
	if c != nil {
		c.observe(e.rec)
	} else if e.claimable() {
		v.announce()
	}
}

// drop ends the hold of c.
func (v *view) drop(c *Claim) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if e := v.byID[c.build.ID]; e != nil && e.claim == c {
		e.claim = nil
		if e.claimable() {
			v.announce()
		}
	}
}

// held reports whether this process itself is at work on the build.
func (e *entry) held() bool { return e.busy || e.claim != nil && !e.claim.lapsed() }

// stray remembers a claim whose writing had an unknown outcome: if it turns up,
// nobody works on it.
func (v *view) stray(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.strays[name] = time.Now()
}

// straying are the builds with such a claim.
func (v *view) straying() []live {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.strays) == 0 {
		return nil
	}
	var found []live
	for _, e := range v.byID {
		if _, ok := v.strays[e.rec.Claim]; ok && e.rec.Build.State == build.Running {
			found = append(found, e.live())
		}
	}
	return found
}

// abandoned are the running builds that nobody in this process holds and for
// which dead says that their worker is gone.
func (v *view) abandoned(dead func(r record, unchanged time.Duration) bool) []live {
	v.mu.Lock()
	defer v.mu.Unlock()
	var found []live
	for _, e := range v.byID {
		if e.rec.Build.State == build.Running && !e.held() && !e.rec.foreign() && dead(e.rec, v.heard.passed()-e.seen) {
			found = append(found, e.live())
		}
	}
	return found
}

// unretired are the ended builds that were still in "live" some time ago.
func (v *view) unretired(since time.Duration) []live {
	v.mu.Lock()
	defer v.mu.Unlock()
	var found []live
	for _, e := range v.byID {
		if e.rec.Build.State.Ended() && !e.rec.foreign() && v.heard.passed()-e.seen >= since {
			found = append(found, e.live())
		}
	}
	return found
}
