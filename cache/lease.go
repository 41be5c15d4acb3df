package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Lease keeps layers from being removed, until Release or the end of the
// process.
type Lease struct {
	cache  *Cache
	layers []string
	held   []*os.File
}

// Layers returns the absolute paths of the layers, top first. The last one is
// always there, empty but for the directories that the go command expects.
func (l *Lease) Layers() []string { return l.layers }

// Release gives the layers back, and removes those that were evicted meanwhile.
// No overlay may use them any more. A second call does nothing.
func (l *Lease) Release() {
	held := len(l.held) > 0
	for _, f := range l.held {
		f.Close()
	}
	l.layers, l.held = nil, nil
	if held && l.cache.unlisted.Swap(false) {
		if err := l.cache.locked((*state).sweep); err != nil {
			l.cache.log.Warn("could not remove cache layers that were evicted", "err", err)
		}
	}
}

// hold adds a layer; the cache's lock is held.
func (l *Lease) hold(c *Cache, a layer) (path string, err error) {
	path = c.layerPath(a.ID)
	f, err := openDir(path)
	if err != nil {
		return "", err
	}
	l.cache = c
	l.held = append(l.held, f)
	l.layers = append(l.layers, path)
	return path, flock(f, unix.LOCK_SH)
}

// Lease holds the layers of classes, in that order, and notes that they are
// used. The caller releases it.
//
// Nothing is forced to the disk when a layer is made, so the first lease of a
// layer after the machine has started verifies it, which takes about a second
// for 500 MB; what was torn is dropped.
func (c *Cache) Lease(classes ...Class) (*Lease, error) {
	for {
		l, stale, err := c.lease(classes)
		if err == nil && len(stale) == 0 {
			c.touch(classes)
			l.layers = append(l.layers, c.path("empty"))
			return l, nil
		}
		for _, s := range stale {
			err = errors.Join(err, c.verify(s))
		}
		l.Release()
		if err != nil {
			return nil, fmt.Errorf("lease build cache: %w", err)
		}
	}
}

// A staleLayer was last known to be whole before the machine started.
type staleLayer struct {
	class Class
	layer
}

func (c *Cache) lease(classes []Class) (*Lease, []staleLayer, error) {
	l := &Lease{}
	var stale []staleLayer
	err := c.locked(func(s *state) error {
		for _, class := range classes {
			for _, a := range s.layers(class) {
				if _, err := l.hold(c, a); err != nil {
					return err
				}
				if !c.whole(a) {
					stale = append(stale, staleLayer{class, a})
				}
			}
		}
		return nil
	})
	return l, stale, err
}

func (c *Cache) whole(a layer) bool { return a.Boot == c.boot && a.UID == c.uid && a.GID == c.gid }

// touchEvery is how exact the time of a class's last use is.
const touchEvery = time.Minute

// touch notes that classes are used now. A class that has just gone is no
// error: there is nothing to note.
func (c *Cache) touch(classes []Class) {
	now := time.Now()
	for _, class := range classes {
		name := c.listPath(class)
		if info, err := os.Stat(name); err == nil && now.Sub(info.ModTime()).Abs() >= touchEvery {
			_ = os.Chtimes(name, now, now)
		}
	}
}

// verify removes from a layer what is not whole and gives it to the build
// user. The layer is held, but nobody uses it before it is verified.
func (c *Cache) verify(stale staleLayer) error {
	c.verifying.Lock()
	defer c.verifying.Unlock()
	wanted := false
	err := c.locked(func(s *state) error {
		for _, a := range s.layers(stale.class) {
			wanted = wanted || a.ID == stale.ID && !c.whole(a)
		}
		return nil
	})
	if err != nil || !wanted {
		return err
	}
	found, err := c.examine(stale.ID)
	if err != nil {
		return fmt.Errorf("verify layer %s: %w", stale.ID, err)
	}
	if found.Files != stale.Files {
		c.log.Warn("dropped files of a cache layer that were torn", "class", stale.class.String(), "files", stale.Files-found.Files)
	}
	return c.locked(func(s *state) error {
		layers := s.layers(stale.class)
		kept := layers[:0]
		for _, a := range layers {
			if a.ID == stale.ID {
				found.Sealed = a.Sealed
				a = found
			}
			if a.Files > 0 {
				kept = append(kept, a)
			}
		}
		return s.save(stale.class, kept)
	})
}

// examine reads a whole layer, and removes what is not an output that is what
// its name says, or an action that has such an output in this layer.
func (c *Cache) examine(name string) (layer, error) {
	root, err := openDir(c.layerPath(name))
	if err != nil {
		return layer{}, err
	}
	defer root.Close()
	if err := c.own(root.Name()); err != nil {
		return layer{}, err
	}
	x := &examiner{cache: c, root: root, good: map[id]int64{}}
	for _, kind := range []byte{outputFile, actionFile} {
		err := eachShard(context.Background(), func(ctx context.Context, i int) error { return x.shard(ctx, i, kind) })
		if err != nil {
			return layer{}, err
		}
	}
	return layer{ID: name, Files: x.files, Bytes: x.bytes, Boot: c.boot, UID: c.uid, GID: c.gid}, nil
}

type examiner struct {
	cache *Cache
	root  *os.File

	mu    sync.Mutex
	good  map[id]int64 // outputs and their sizes
	files int
	bytes int64
}

func (x *examiner) shard(ctx context.Context, i int, kind byte) error {
	s, err := openShard(x.root, i, false)
	if s == nil || err != nil {
		return err
	}
	defer s.dir.Close()
	path := filepath.Join(x.root.Name(), shardName(i))
	if kind == actionFile {
		if err := x.cache.own(path); err != nil {
			return err
		}
	}
	return s.each(ctx, func(name string) error {
		of, k, ok := parseName(s.number, name)
		if ok && k != kind {
			return nil
		}
		if ok {
			var err error
			if ok, err = x.entry(ctx, s, of, kind, name); err != nil {
				return err
			}
		}
		if !ok {
			return os.RemoveAll(filepath.Join(path, name))
		}
		if kind == actionFile {
			return x.cache.own(filepath.Join(path, name))
		}
		return nil
	})
}

func (x *examiner) entry(ctx context.Context, s *shard, of id, kind byte, name string) (ok bool, err error) {
	size := int64(entrySize)
	if kind == actionFile {
		var e entry
		e, err = s.action(of, name)
		x.mu.Lock()
		made, found := x.good[e.output]
		x.mu.Unlock()
		ok = err == nil && found && made == e.size
	} else {
		var f *os.File
		if f, size, err = s.open(name); err == nil {
			ok, err = x.cache.isOutput(ctx, io.Discard, f, of, size)
			f.Close()
		}
	}
	if errors.Is(err, errNotEntry) {
		return false, nil
	}
	if !ok || err != nil {
		return false, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if kind == outputFile {
		x.good[of] = size
	}
	x.files++
	x.bytes += onDisk(size)
	return true, nil
}
