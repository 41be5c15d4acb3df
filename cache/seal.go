package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync/atomic"
	"time"
)

// ErrTooLarge says that a build left more in its cache than a layer may hold.
var ErrTooLarge = errors.New("too much for a cache layer")

// maxNames bounds how much of what a build left is looked at: several times
// what the largest programs leave.
const maxNames = 1 << 17

// Sealed is what became of what a build left.
type Sealed struct {
	Files   int   // in the new layer; if 0, there is none
	Bytes   int64 // of the new layer, on disk
	Skipped int   // what the go command would not have left there, or what nothing leads to
}

// Append makes what a build left in upper the newest layer of class, but for
// what the class has already. No process may write in upper any more; whatever
// a build put there, only entries of the go command's cache are taken, and
// only outputs that are what their names say. It returns ErrTooLarge for more
// than a fourth of the cache's limit or half a million files, and leaves the
// class as it was, as after any error.
//
// A class that grew long is compacted and what is over the limit removed
// before it returns; that failing is logged and no error.
func (c *Cache) Append(ctx context.Context, class Class, upper string) (Sealed, error) {
	sealed, err := c.append(ctx, class, upper)
	if err != nil {
		return Sealed{}, fmt.Errorf("append to the %s: %w", class, err)
	}
	if err := c.tidy(ctx, class); err != nil {
		c.log.Warn("could not tidy the build cache", "class", class.String(), "err", err)
	}
	return sealed, nil
}

func (c *Cache) append(ctx context.Context, class Class, upper string) (Sealed, error) {
	if class == (Class{}) {
		return Sealed{}, errors.New("no class is given")
	}
	own, others, held, err := c.sources(class)
	if err != nil {
		return Sealed{}, err
	}
	defer held.Release()
	d, err := c.newDraft()
	if err != nil {
		return Sealed{}, err
	}
	defer d.discard()
	s := &sealer{draft: d, own: own, others: slices.Concat(own, others)}
	s.names.Store(maxNames)
	s.bytes.Store(c.limit / 4)
	sealed, err := s.seal(ctx, upper)
	if err != nil || sealed.Files == 0 {
		return sealed, err
	}
	err = c.locked(func(st *state) error {
		a, err := d.commit(st, time.Now())
		if err != nil {
			return err
		}
		return st.save(class, append([]layer{a}, st.layers(class)...))
	})
	return sealed, err
}

// sources holds the layers that an output may be copied from, which are known
// to be whole: those of the class, and those that builds which append to it
// read.
func (c *Cache) sources(class Class) (own, others []string, held *Lease, err error) {
	held = &Lease{}
	err = c.locked(func(s *state) error {
		for other, l := range s.lists {
			if !other.readable(class) {
				continue
			}
			for _, a := range l.Layers {
				if !c.whole(a) {
					continue
				}
				path, err := held.hold(c, a)
				switch {
				case err != nil:
					return err
				case other == class:
					own = append(own, path)
				default:
					others = append(others, path)
				}
			}
		}
		return nil
	})
	if err != nil {
		held.Release()
		return nil, nil, nil, err
	}
	return own, others, held, nil
}

// A sealer makes a draft of what a build left.
type sealer struct {
	draft       *draft
	own, others []string // layers
	names       atomic.Int64
	bytes       atomic.Int64
	left        [256]leftover
	wanted      [256]map[id]int64 // outputs; their size once they are in the draft, before that -1
}

// A leftover is what a build left in one shard. Only one goroutine at a time
// has it.
type leftover struct {
	seen    int
	fresh   []entry     // actions to add
	known   []id        // the outputs of actions that the class has
	outputs map[id]bool // names; true once the class or the draft has it
}

func (s *sealer) seal(ctx context.Context, upper string) (Sealed, error) {
	root, err := openDir(upper)
	if err != nil {
		return Sealed{}, err
	}
	defer root.Close()
	skipped, err := s.rootNames(ctx, root)
	if err != nil {
		return Sealed{}, err
	}
	if err := eachShard(ctx, func(ctx context.Context, i int) error { return s.scan(ctx, root, i) }); err != nil {
		return Sealed{}, err
	}
	s.want()
	if err := eachShard(ctx, func(ctx context.Context, i int) error { return s.copyOutputs(ctx, root, i) }); err != nil {
		return Sealed{}, err
	}
	var added atomic.Int64
	err = eachShard(ctx, func(ctx context.Context, i int) error { return s.addActions(ctx, i, &added) })
	if err != nil {
		return Sealed{}, err
	}
	for i := range s.left {
		l := &s.left[i]
		skipped += l.seen - len(l.known)
		for _, good := range l.outputs {
			if good {
				skipped--
			}
		}
	}
	return Sealed{int(s.draft.files.Load()), s.draft.bytes.Load(), skipped - int(added.Load())}, nil
}

// charge counts what a build makes us look at.
func charge(left *atomic.Int64, n int64, what string) error {
	if left.Add(-n) < 0 {
		return fmt.Errorf("%w: more %s than one build may add", ErrTooLarge, what)
	}
	return nil
}

// rootNames counts what has no place at the root of a GOCACHE.
func (s *sealer) rootNames(ctx context.Context, root *os.File) (skipped int, err error) {
	err = eachName(ctx, root, func(name string) error {
		switch name {
		case "README", "trim.txt", "testexpire.txt", "fuzz":
		default:
			if !isShardName(name) {
				skipped++
			}
		}
		return charge(&s.names, 1, "files")
	})
	return skipped, err
}

func isShardName(name string) bool {
	digit := func(c byte) bool { return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' }
	return len(name) == 2 && digit(name[0]) && digit(name[1])
}

// scan reads the names of a shard and the actions in it.
func (s *sealer) scan(ctx context.Context, root *os.File, i int) error {
	l := &s.left[i]
	l.outputs = map[id]bool{}
	dir, err := openShard(root, i, true)
	if errors.Is(err, errNotEntry) {
		l.seen++
		return nil
	}
	if dir == nil || err != nil {
		return err
	}
	defer dir.dir.Close()
	return dir.each(ctx, func(name string) error {
		l.seen++
		if err := charge(&s.names, 1, "files"); err != nil {
			return err
		}
		of, kind, ok := parseName(dir.number, name)
		switch {
		case !ok:
			return nil
		case kind == outputFile:
			l.outputs[of] = false
			return nil
		}
		e, err := dir.action(of, name)
		if errors.Is(err, errNotEntry) {
			return nil
		}
		if err != nil {
			return err
		}
		known, err := s.isKnown(e)
		if known {
			l.known = append(l.known, e.output)
		} else if err == nil {
			l.fresh = append(l.fresh, e)
		}
		return err
	})
}

// isKnown reports whether the class says the same of the action. If it says
// something else, the newer entry is the one that a build should find.
func (s *sealer) isKnown(e entry) (bool, error) {
	for _, path := range s.own {
		text, err := os.ReadFile(path + "/" + e.action.name(actionFile))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, err
		}
		old, err := parseEntry(text)
		return err == nil && old.output == e.output && old.size == e.size, nil
	}
	return false, nil
}

// want sorts the outputs of all actions into shards.
func (s *sealer) want() {
	for i := range s.wanted {
		s.wanted[i] = map[id]int64{}
	}
	for i := range s.left {
		for _, e := range s.left[i].fresh {
			s.wanted[e.output[0]][e.output] = -1
		}
		for _, output := range s.left[i].known {
			if l := s.left[output[0]].outputs; mentions(l, output) {
				l[output] = true
			}
		}
	}
}

func mentions(m map[id]bool, of id) bool { _, ok := m[of]; return ok }

func (s *sealer) copyOutputs(ctx context.Context, root *os.File, i int) error {
	wanted, l := s.wanted[i], &s.left[i]
	if len(wanted) == 0 {
		return nil
	}
	dir, err := openShard(root, i, true)
	if err != nil && !errors.Is(err, errNotEntry) {
		return err
	}
	if dir != nil {
		defer dir.dir.Close()
	}
	for output := range wanted {
		size := int64(-1)
		if mentions(l.outputs, output) && dir != nil {
			if size, err = s.copyOutput(ctx, dir, output); err != nil {
				return err
			}
			l.outputs[output] = size >= 0
		}
		if size < 0 {
			if size, err = s.copyFromLayers(ctx, output); err != nil {
				return err
			}
		}
		wanted[output] = size
	}
	return nil
}

// copyOutput returns the size of the output, or -1 if there is none.
func (s *sealer) copyOutput(ctx context.Context, dir *shard, output id) (int64, error) {
	f, size, err := dir.open(output.name(outputFile)[3:])
	if errors.Is(err, errNotEntry) {
		return -1, nil
	}
	if err != nil {
		return -1, err
	}
	defer f.Close()
	if err := charge(&s.bytes, onDisk(size), "bytes"); err != nil {
		return -1, err
	}
	if ok, err := s.draft.addOutput(ctx, output, f, size); err != nil || !ok {
		return -1, err
	}
	return size, nil
}

// copyFromLayers copies an output that the build did not write because a layer
// beneath it had it.
func (s *sealer) copyFromLayers(ctx context.Context, output id) (int64, error) {
	for _, path := range s.others {
		size, err := s.copyFromLayer(ctx, path, output)
		if size >= 0 || err != nil {
			return size, err
		}
	}
	return -1, nil
}

func (s *sealer) copyFromLayer(ctx context.Context, path string, output id) (int64, error) {
	root, err := openDir(path)
	if err != nil {
		return -1, err
	}
	defer root.Close()
	dir, err := openShard(root, int(output[0]), false)
	if dir == nil || err != nil {
		return -1, err
	}
	defer dir.dir.Close()
	return s.copyOutput(ctx, dir, output)
}

// addActions adds the actions whose outputs are there, and counts them.
func (s *sealer) addActions(ctx context.Context, i int, added *atomic.Int64) error {
	for _, e := range s.left[i].fresh {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if size := s.wanted[e.output[0]][e.output]; size != e.size {
			continue
		}
		if err := charge(&s.bytes, block, "bytes"); err != nil {
			return err
		}
		if err := s.draft.addAction(e); err != nil {
			return err
		}
		added.Add(1)
	}
	return nil
}
