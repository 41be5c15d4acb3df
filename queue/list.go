package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/monochromegane/cargo/build"
)

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
