package modproxy

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A hold keeps a directory of the cache in its place until it is closed.
type hold struct {
	cache *cache
	entry *entry
	dir   string // where it is
	// whole is false of a directory of an earlier boot of the machine, which
	// may be torn: confirm it, or forget it.
	whole bool
}

// Close ends the hold, which is done once.
func (h *hold) Close() error {
	defer h.cache.sweep()
	h.cache.mu.Lock()
	defer h.cache.mu.Unlock()
	h.entry.holds--
	h.cache.shrink()
	return nil
}

// hold holds the directory of that name, or returns fs.ErrNotExist.
func (c *cache) hold(name digest) (*hold, error) {
	defer c.sweep()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.load(); err != nil {
		return nil, err
	}
	el := c.entries[name]
	if el == nil {
		return nil, fs.ErrNotExist
	}
	e := el.Value.(*entry)
	if _, err := os.Lstat(c.path(e)); err != nil {
		c.remove(el)
		return nil, fs.ErrNotExist
	}
	c.touch(el)
	return c.newHold(e), nil
}

func (c *cache) newHold(e *entry) *hold {
	e.holds++
	return &hold{cache: c, entry: e, dir: c.path(e), whole: e.boot == c.boot}
}

// keep moves the directory temp into the cache, as e. If there is one of that
// name already, it stays and temp goes. What e is made of must be held.
func (c *cache) keep(e *entry, temp string) (*hold, error) {
	defer c.sweep()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.load(); err != nil {
		return nil, err
	}
	if el := c.entries[e.name]; el != nil {
		c.trash = append(c.trash, temp)
		return c.newHold(el.Value.(*entry)), nil
	}
	e.boot, e.used = c.boot, time.Now()
	if err := c.move(e, temp); err != nil {
		return nil, cacheError(err)
	}
	c.enlist(e)
	c.touch(c.entries[e.name])
	h := c.newHold(e)
	c.shrink()
	return h, nil
}

// confirm says that a directory of an earlier boot is whole.
func (h *hold) confirm() error {
	c := h.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	h.whole = true
	h.entry.boot = c.boot
	path := c.path(h.entry)
	if path == h.dir {
		return nil
	}
	if err := os.Rename(h.dir, path); err != nil {
		return cacheError(err)
	}
	h.dir = path
	return nil
}

// forget removes a directory which is torn, and ends the hold.
func (h *hold) forget() {
	c := h.cache
	c.mu.Lock()
	if el := c.entries[h.entry.name]; el != nil && el.Value.(*entry) == h.entry {
		c.remove(el)
	}
	c.mu.Unlock()
	h.Close()
}

// partsFile is where a view says of which trees it is made.
const partsFile = "trees"

// assemble finds the trees of a view that a former process made.
func (c *cache) assemble(e *entry) bool {
	b, err := os.ReadFile(filepath.Join(c.path(e), partsFile))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		var name digest
		if !parseDigest(&name, strings.TrimSuffix(line, "\n")) || c.entries[name] == nil {
			e.parts = nil
			return false
		}
		e.parts = append(e.parts, c.entries[name].Value.(*entry))
	}
	for _, part := range e.parts {
		part.holds++
	}
	return true
}

// discard takes a directory away at once and leaves its files to sweep: there
// may be many, and everybody waits for the lock that the caller has.
func (c *cache) discard(path string) {
	temp, err := os.MkdirTemp(c.tempDir(), "old-")
	if err == nil {
		err = os.Rename(path, filepath.Join(temp, "dir"))
		c.trash = append(c.trash, temp)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.trash = append(c.trash, path)
	}
}

// sweep deletes what was discarded. What it cannot delete now goes when the
// next process starts.
func (c *cache) sweep() {
	c.mu.Lock()
	trash := slices.Clone(c.trash)
	c.trash = nil
	c.mu.Unlock()
	for _, path := range trash {
		_ = os.RemoveAll(path)
	}
}
