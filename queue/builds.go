package queue

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/monochromegane/cargo/build"
)

// A Submission is a build that somebody asks for.
type Submission struct {
	Build  build.Build // with its ID and Key; the queue sets State and, if it is zero, AcceptedAt
	Sealed []byte      // the caller's token, kept until the build ends; may be empty
	Caller string      // whose Options.CallerLimit it counts for, until it ends; "" is nobody's
}

// Submit accepts s. A live build of the same key is returned instead, and
// counts for the caller who was first. What is returned without an error is on
// disk.
//
// ErrCallerFull and ErrFull if the limit of the caller's or of queued builds is
// reached; ErrUnavailable or ErrBroken if it cannot be accepted now. After any
// other error than the first two the build may or may not be there; calling
// again with the same ID is safe.
func (q *Queue) Submit(ctx context.Context, s Submission) (build.Build, error) {
	if !s.Build.ID.Valid() {
		return build.Build{}, fmt.Errorf("submit: %q is not a build id", s.Build.ID)
	}
	key := s.Build.Key.Digest()
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	turn := q.turn(key)
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
	case <-ctx.Done():
		return build.Build{}, context.Cause(ctx)
	case <-within.Done(): // those before it wait for the queue, each for as long
		return build.Build{}, fmt.Errorf("submit build %s: %w", s.Build.ID, q.explain(ErrUnavailable))
	}
	var b build.Build
	err := q.patiently(within, func() (err error) {
		b, err = q.accept(within, key, s)
		return err
	})
	if err != nil && !errors.Is(err, ErrFull) && !errors.Is(err, ErrCallerFull) {
		err = fmt.Errorf("submit build %s: %w", s.Build.ID, q.explain(err))
	}
	return b, err
}

func (q *Queue) accept(ctx context.Context, key string, s Submission) (build.Build, error) {
	b := s.Build
	if err := q.store.broken(); err != nil {
		return b, err
	}
	if done, err := q.record(ctx, b.ID); err == nil {
		return done.Build, nil // asked again after an unknown outcome
	} else if !errors.Is(err, ErrNotFound) {
		return b, err
	}
	for {
		if l, ok := q.view.key(key); ok && !l.rec.Build.State.Ended() {
			return l.rec.Build, nil
		} else if ok && l.rec.foreign() {
			return b, errForeign
		} else if ok {
			if err := q.retire(ctx, l); err != nil {
				return b, err
			}
		}
		r, err := q.create(ctx, key, s)
		if !errors.Is(err, jetstream.ErrKeyExists) {
			return r.Build, err
		}
		// Another process was first, or an earlier call whose outcome was unknown.
		if err := q.refresh(ctx, key, 0); err != nil {
			return b, err
		}
		if l, ok := q.view.key(key); r.Sealed && (!ok || l.rec.Build.ID != b.ID) {
			if err := q.store.tokens.erase(ctx, string(b.ID)); err != nil {
				return b, fmt.Errorf("erase its token: %w", err)
			}
		}
	}
}

// turn makes equal submits of this process queue up: one writes, the others
// then find its build, also when there was room for just one more.
func (q *Queue) turn(key string) chan struct{} {
	first, _ := hex.DecodeString(key[:2])
	return q.submit[first[0]]
}

// create writes the token before the record: a record is never without it.
func (q *Queue) create(ctx context.Context, key string, s Submission) (record, error) {
	r := record{Build: s.Build, Caller: s.Caller, Sealed: len(s.Sealed) > 0}
	r.Build.State = build.Queued
	if r.Build.AcceptedAt.IsZero() {
		r.Build.AcceptedAt = time.Now().UTC()
	}
	data, err := r.encode()
	if err != nil {
		return r, err
	}
	if err := q.view.reserve(r, q.limits); err != nil {
		return r, err
	}
	defer q.view.release(r.Build.ID)
	if r.Sealed {
		if _, err := q.store.tokens.put(ctx, string(r.Build.ID), s.Sealed, 0); err != nil {
			return r, fmt.Errorf("store its token: %w", err)
		}
	}
	rev, err := q.store.create(ctx, key, data)
	if err != nil {
		return r, err
	}
	return q.take(key, data, rev)
}

// Get returns the record of a build, live or ended, or ErrNotFound.
func (q *Queue) Get(ctx context.Context, id build.ID) (build.Build, error) {
	if !id.Valid() {
		return build.Build{}, ErrNotFound
	}
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var r record
	err := q.patiently(within, func() (err error) {
		if r, err = q.record(within, id); !errors.Is(err, ErrNotFound) {
			return err
		}
		// Another process may have accepted it a moment ago.
		if err := q.catchUp(within); err != nil {
			return err
		}
		r, err = q.record(within, id)
		return err
	})
	if err != nil && !errors.Is(err, ErrNotFound) {
		return build.Build{}, fmt.Errorf("get build %s: %w", id, q.explain(err))
	}
	return r.Build, err
}

// catchUp waits until the view has all that is in the store now.
func (q *Queue) catchUp(ctx context.Context) error {
	seq, err := q.newestOfAll(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, lagLimit)
	defer cancel()
	if !q.seen.wait(ctx, seq) {
		return fmt.Errorf("%w: this process is behind", ErrUnavailable)
	}
	return nil
}

func (q *Queue) newestOfAll(ctx context.Context) (seq uint64, err error) {
	if q.store.cluster != nil {
		return q.marks.wait(ctx, q.store.mark)
	}
	info, err := q.store.info(ctx, q.store.records)
	if err != nil {
		return 0, err
	}
	return info.State.LastSeq, nil
}

// record looks at the view once more after the store: a build leaves the view
// only after it has reached "ended", but one may have been submitted meanwhile.
func (q *Queue) record(ctx context.Context, id build.ID) (record, error) {
	if l, ok := q.view.id(id); ok {
		return l.rec, nil
	}
	data, _, err := q.store.ended.get(ctx, string(id))
	if errors.Is(err, ErrNotFound) {
		if l, ok := q.view.id(id); ok {
			return l.rec, nil
		}
	}
	if err != nil {
		return record{}, err
	}
	return decode(data)
}

// Wait blocks until the build has ended and returns its record.
func (q *Queue) Wait(ctx context.Context, id build.ID) (build.Build, error) {
	for {
		b, err := q.Get(ctx, id)
		if err != nil || b.State.Ended() {
			return b, err
		}
		l, ok := q.view.id(id)
		if !ok {
			continue // it has just ended
		}
		select {
		case <-l.ended:
		case <-ctx.Done():
			return build.Build{}, context.Cause(ctx)
		case <-q.ctx.Done():
			return build.Build{}, ErrClosed
		}
	}
}

// Cancel ends a queued build at once and asks the worker of a running one to
// stop; use Wait to learn when it has. ErrNotFound or ErrEnded if there is
// nothing to cancel.
func (q *Queue) Cancel(ctx context.Context, id build.ID) error {
	if b, err := q.Get(ctx, id); err != nil {
		return err
	} else if b.State.Ended() {
		return ErrEnded
	}
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ours := false
	r, err := q.update(within, id, func(r *record) error {
		switch {
		case r.Build.State.Ended():
			return ErrEnded
		case r.Build.State == build.Queued:
			ours = true
			r.cancel()
		default:
			r.Cancel = true
		}
		return nil
	})
	if errors.Is(err, ErrEnded) || errors.Is(err, ErrNotFound) { // it was there a moment ago
		if r, err := q.record(within, id); ours && err == nil && r.Build.State == build.Canceled {
			return nil // by a try that never knew
		}
		return ErrEnded
	}
	if err != nil {
		return fmt.Errorf("cancel build %s: %w", id, q.explain(err))
	}
	q.drop(ctx, r)
	return nil
}

// drop settles r, and tells of it if that was its end.
func (q *Queue) drop(ctx context.Context, r record) {
	if q.told != nil && r.Build.State.Ended() {
		q.told(r.Build)
	}
	q.settle(ctx, r)
}

// update applies change to the newest revision of a live record and stores the
// result, as often as it takes and until ctx ends. An error of change is
// returned as it is; with any other error but ErrNotFound the outcome is
// unknown. So it is between two tries: change must know its own work again.
func (q *Queue) update(ctx context.Context, id build.ID, change func(*record) error) (r record, err error) {
	var behind live // what the last try that failed was about
	err = q.patiently(ctx, func() error {
		if behind.key != "" {
			if err := q.refresh(ctx, behind.key, behind.rec.rev); err != nil {
				return err
			}
		}
		for {
			l, ok := q.view.id(id)
			if !ok {
				return ErrNotFound
			}
			if l.rec.foreign() {
				return errForeign
			}
			r = l.rec
			if err := change(&r); err != nil {
				return err
			}
			data, err := r.encode()
			if err != nil {
				return err
			}
			rev, err := q.store.update(ctx, l.key, data, l.rec.rev)
			if err == nil {
				r, err = q.take(l.key, data, rev)
				return err
			}
			behind = l
			if !errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
				return err
			}
			if err := q.refresh(ctx, l.key, l.rec.rev); err != nil {
				return err
			}
			if now, ok := q.view.id(id); ok && now.rec.rev == l.rec.rev {
				return errUnderWay
			}
		}
	})
	return r, err
}

// errUnderWay: a leader refuses what another write might go before, which it
// has only proposed. Without most of its followers it goes on so for seconds.
var errUnderWay = fmt.Errorf("%w: another write of the record is under way", ErrUnavailable)

// refresh reads a live record anew; rev is what the view had.
func (q *Queue) refresh(ctx context.Context, key string, rev uint64) error {
	m, err := q.store.last(ctx, q.store.records, q.store.key(key), rev)
	switch {
	case errors.Is(err, ErrNotFound):
		q.view.hide(key, rev)
		return nil
	case err != nil:
		return err
	case gone(m.Header):
		q.view.remove(key, m.Sequence)
		return nil
	}
	_, err = q.take(key, m.Data, m.Sequence)
	return err
}

// settle retires r if it has ended. That it has is on disk already, so an
// error here is for tend, which tries again, not for the caller.
func (q *Queue) settle(ctx context.Context, r record) {
	if !r.Build.State.Ended() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	if l, ok := q.view.id(r.Build.ID); ok {
		if err := q.retire(ctx, l); err != nil && q.ctx.Err() == nil {
			q.log.Warn("ended build stays among the live ones for now", "build", r.Build.ID, "err", err)
		}
	}
}

// retire moves an ended build out of "live". It may be done twice, at once or
// after a crash between any two of its steps.
func (q *Queue) retire(ctx context.Context, l live) error {
	id := string(l.rec.Build.ID)
	if err := q.keep(ctx, l.rec); err != nil {
		return fmt.Errorf("store ended build %s: %w", id, err)
	}
	if l.rec.Sealed {
		if err := q.store.tokens.erase(ctx, id); err != nil {
			return fmt.Errorf("erase the token of build %s: %w", id, err)
		}
	}
	err := q.store.purge(ctx, l.key, l.rec.rev)
	if errors.Is(err, jetstream.ErrKeyRevisionMismatch) { // somebody else has done it, or it runs again
		err = q.refresh(ctx, l.key, l.rec.rev)
	}
	if err != nil {
		return fmt.Errorf("purge ended build %s: %w", id, err)
	}
	return nil // the view forgets the build when the watch brings the purge
}

// keep writes an ended build into "ended", where it may stand already: from an
// earlier call, or as it ended before it was queued again under its id.
func (q *Queue) keep(ctx context.Context, r record) error {
	id := string(r.Build.ID)
	data, err := r.retired().encode()
	if err != nil {
		return err
	}
	var before uint64
	for {
		exists, err := q.store.ended.put(ctx, id, data, before)
		if err != nil || !exists {
			return err
		}
		there, seq, err := q.store.ended.get(ctx, id)
		if errors.Is(err, ErrNotFound) {
			before = 0 // it has just been pushed out
			continue
		}
		if err != nil {
			return err
		}
		if former, err := decode(there); err == nil && !r.supersedes(former) {
			return nil
		}
		before = seq
	}
}

// explain is ErrClosed or ErrBroken in place of what the store says then.
func (q *Queue) explain(err error) error {
	if q.ctx.Err() != nil {
		return ErrClosed
	}
	if broken := q.store.broken(); broken != nil {
		return broken
	}
	return err
}

const (
	maxPage = 100
	maxScan = 10_000 // ended records that one List reads
)

// A Filter selects builds. Its zero value selects all.
type Filter struct {
	State      build.State // "" means any
	PublicOnly bool
	After      build.ID // the last build of the page before
	Limit      int      // of the page; 0, or more than 100, means 100
}

func (f Filter) match(b build.Build) bool {
	return (f.State == "" || b.State == f.State) && (b.Public || !f.PublicOnly)
}

// List returns a page of builds and whether there may be more: first the live
// ones, those accepted last first, then the ended ones, those ended last
// first. One call looks at the next 10,000 ended builds at most.
// ErrNotFound if After is not known.
func (q *Queue) List(ctx context.Context, f Filter) (page []build.Build, more bool, err error) {
	if f.Limit <= 0 || f.Limit > maxPage {
		f.Limit = maxPage
	}
	all := q.view.all()
	first := 0
	var before uint64 // revision in "ended" to go on below; 0 means from the newest
	if f.After != "" {
		first = slices.IndexFunc(all, func(l live) bool { return l.rec.Build.ID == f.After }) + 1
		if first == 0 {
			first = len(all)
			if before, err = q.endedAt(ctx, f.After); err != nil {
				return nil, false, err
			}
		}
	}
	for _, l := range all[first:] {
		if !f.match(l.rec.Build) {
			continue
		}
		if len(page) == f.Limit {
			return page, true, nil
		}
		page = append(page, l.rec.Build)
	}
	if f.State != "" && !f.State.Ended() {
		return page, false, nil
	}
	page, more, err = q.listEnded(ctx, f, all, before, page)
	if err != nil {
		return nil, false, fmt.Errorf("list builds: %w", q.explain(err))
	}
	return page, more, nil
}

func (q *Queue) endedAt(ctx context.Context, id build.ID) (uint64, error) {
	if !id.Valid() {
		return 0, ErrNotFound
	}
	_, seq, err := q.store.ended.get(ctx, string(id))
	if err != nil && !errors.Is(err, ErrNotFound) {
		return 0, fmt.Errorf("list builds after %s: %w", id, q.explain(err))
	}
	return seq, err
}

// listEnded fills page from "ended", newest first, without those that were
// still in the view when the list began.
func (q *Queue) listEnded(ctx context.Context, f Filter, seen []live, before uint64, page []build.Build) ([]build.Build, bool, error) {
	info, err := q.store.info(ctx, q.store.ended.stream)
	if err != nil {
		return nil, false, err
	}
	if before == 0 {
		before = info.State.LastSeq + 1
	}
	last := max(info.State.FirstSeq, before-min(before, maxScan), 1)
	for seq := before - 1; seq >= last; seq-- {
		var m *jetstream.RawStreamMsg
		err := q.store.ask(ctx, func(ctx context.Context) (err error) {
			m, err = q.store.ended.stream.GetMsg(ctx, seq)
			return err
		})
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return nil, false, err
		}
		r, err := decode(m.Data)
		if err != nil {
			return nil, false, err
		}
		if !f.match(r.Build) || slices.ContainsFunc(seen, func(l live) bool { return l.rec.Build.ID == r.Build.ID }) {
			continue
		}
		if len(page) == f.Limit {
			return page, true, nil
		}
		page = append(page, r.Build)
	}
	return page, false, nil
}
