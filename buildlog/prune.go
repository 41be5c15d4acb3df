package buildlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/monochromegane/cargo/build"
)

const suffix = ".jsonl"

// maxOldest is how many logs one Prune removes at most for the limit's sake.
const maxOldest = 10_000

// An old is a log that may go.
type old struct {
	id      build.ID
	size    int64
	written time.Time // last
}

// Prune removes the logs that were last written longer ago than
// Options.Retention and then, oldest first, as many as it takes for all of
// them to be within Options.Limit. It leaves alone a log that somebody writes
// or follows, and files that are no logs; whoever reads a log reads it to its
// end. What is far beyond the limit takes several calls. It returns how many
// logs it removed, and the cause of ctx if that ended it before it was through.
// A log that cannot be removed does not keep the others: the first such error
// comes back at the end.
func (s *Store) Prune(ctx context.Context, now time.Time) (removed int, err error) {
	if s.retention <= 0 && s.limit <= 0 {
		return 0, nil
	}
	p := pruner{store: s, ctx: ctx, expiry: now.Add(-s.retention)}
	dirs, err := os.ReadDir(s.dir)
	for _, d := range dirs {
		if err == nil && d.IsDir() && len(d.Name()) == 2 {
			err = p.dir(d.Name())
		}
	}
	if err == nil && s.limit > 0 {
		err = p.shrink()
	}
	if err == nil {
		err = p.failed
	}
	if err != nil {
		return p.removed, fmt.Errorf("prune the logs in %s: %w", s.dir, err)
	}
	return p.removed, nil
}

type pruner struct {
	store   *Store
	ctx     context.Context
	expiry  time.Time
	oldest  []old // that are left; only if there is a limit
	bytes   int64 // of all logs that are there
	removed int
	failed  error // the first to remove one
}

// dir looks at the logs of one directory.
func (p *pruner) dir(prefix string) error {
	const batch = 256 // names read at a time
	d, err := os.Open(filepath.Join(p.store.dir, prefix))
	if err != nil {
		return err
	}
	defer d.Close()
	for {
		if p.ctx.Err() != nil {
			return context.Cause(p.ctx)
		}
		entries, err := d.ReadDir(batch)
		for _, e := range entries {
			name, ok := strings.CutSuffix(e.Name(), suffix)
			if id := build.ID(name); ok && id.Valid() && name[:2] == prefix && e.Type().IsRegular() {
				p.log(id, e)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (p *pruner) log(id build.ID, e fs.DirEntry) {
	info, err := e.Info()
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) && p.failed == nil {
			p.failed = err
		}
		return
	}
	o := old{id, info.Size(), info.ModTime()}
	p.bytes += o.size
	if p.store.retention > 0 && o.written.Before(p.expiry) && p.remove(o) {
		return
	}
	if p.store.limit <= 0 {
		return
	}
	if len(p.oldest) == 2*maxOldest {
		p.sort()
	}
	p.oldest = append(p.oldest, o)
}

func (p *pruner) sort() {
	slices.SortFunc(p.oldest, func(a, b old) int { return a.written.Compare(b.written) })
	p.oldest = p.oldest[:min(len(p.oldest), maxOldest)]
}

// shrink removes the oldest logs beyond the limit.
func (p *pruner) shrink() error {
	p.sort()
	for _, o := range p.oldest {
		if p.bytes <= p.store.limit {
			return nil
		}
		if p.ctx.Err() != nil {
			return context.Cause(p.ctx)
		}
		p.remove(o)
	}
	return nil
}

func (p *pruner) remove(o old) bool {
	ok, err := p.store.removeUnused(o)
	if err != nil && p.failed == nil {
		p.failed = err
	}
	if ok {
		p.removed++
		p.bytes -= o.size
	}
	return ok
}

// removeUnused removes a log unless it is in use, or was since it was looked at.
func (s *Store) removeUnused(o old) (bool, error) {
	path, err := s.path(o.id)
	if err != nil {
		return false, err
	}
	s.mu.Lock() // nobody begins to write or follow it meanwhile
	defer s.mu.Unlock()
	if s.tails[o.id] != nil {
		return false, nil
	}
	info, err := os.Lstat(path)
	if err == nil && (info.Size() != o.size || !info.ModTime().Equal(o.written)) {
		return false, nil
	}
	if err == nil {
		err = os.Remove(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
