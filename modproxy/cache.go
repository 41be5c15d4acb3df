package modproxy

import (
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// A cache keeps files on disk, by name, within a number of bytes; those that
// were not asked for the longest go first.
//
// An entry is the file entries/HH/NAME-SUM, both SHA-256 in hex, of the name
// and of the content. It is read through once before it is handed out, so one
// that a crash tore or a disk spoilt is dropped, not served: that is why
// nothing here is fsynced. Its modification time is its last use, within
// touchEvery.
type cache struct {
	dir   string
	limit int64

	mu      sync.Mutex
	entries map[digest]*list.Element // of *entry; nil until loaded
	uses    *list.List               // most recent first
	bytes   int64
}

type digest [sha256.Size]byte

type entry struct {
	name, sum digest
	size      int64
	used      time.Time
}

const (
	touchEvery = time.Hour
	// maxEntries bounds the index in memory, which takes some 200 bytes each.
	maxEntries = 100_000
)

// errCache is wrapped by errors of this server's own disk.
var errCache = errors.New("module cache")

func cacheError(err error) error { return fmt.Errorf("%w: %w", errCache, err) }

func (c *cache) path(e *entry) string {
	name := hex.EncodeToString(e.name[:])
	return filepath.Join(c.dir, "entries", name[:2], name+"-"+hex.EncodeToString(e.sum[:]))
}

func (c *cache) tempDir() string { return filepath.Join(c.dir, "tmp") }

// get returns the file of that name, open, or an error that wraps
// fs.ErrNotExist. Eviction does not disturb it.
func (c *cache) get(name string) (*os.File, error) {
	e, err := c.use(sha256.Sum256([]byte(name)))
	if err != nil {
		return nil, err
	}
	f, err := os.Open(c.path(&e))
	if err == nil {
		h := sha256.New()
		if _, err = io.Copy(h, f); err == nil && digest(h.Sum(nil)) == e.sum {
			return f, nil
		}
		f.Close()
	}
	c.drop(e)
	return nil, fmt.Errorf("%w: lost or spoilt", fs.ErrNotExist)
}

// use marks an entry as the one used last and returns a copy of it.
func (c *cache) use(name digest) (entry, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.load(); err != nil {
		return entry{}, err
	}
	el := c.entries[name]
	if el == nil {
		return entry{}, fs.ErrNotExist
	}
	c.uses.MoveToFront(el)
	e := el.Value.(*entry)
	if now := time.Now(); now.Sub(e.used) > touchEvery {
		e.used = now
		_ = os.Chtimes(c.path(e), now, now) // a worse order after a restart is all it would cost
	}
	return *e, nil
}

func (c *cache) drop(e entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if el := c.entries[e.name]; el != nil && el.Value.(*entry).sum == e.sum {
		c.remove(el)
	}
}

// put keeps what r has to give under that name and returns it, open.
func (c *cache) put(ctx context.Context, name string, r io.Reader) (_ *os.File, err error) {
	f, err := os.CreateTemp(c.tempDir(), "put-")
	if err != nil {
		return nil, cacheError(err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	h := sha256.New()
	size, err := io.Copy(io.MultiWriter(f, h), reader{ctx, r})
	if err != nil {
		if _, disk := errors.AsType[*fs.PathError](err); disk {
			err = cacheError(err)
		}
		return nil, err
	}
	e := &entry{name: sha256.Sum256([]byte(name)), sum: digest(h.Sum(nil)), size: size, used: time.Now()}
	if err := c.add(e, f.Name()); err != nil {
		return nil, cacheError(err)
	}
	return f, nil
}

// add moves the file temp into its place and makes room for it. The newest
// entry itself stays even if it is larger than the limit.
func (c *cache) add(e *entry, temp string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.load(); err != nil {
		return err
	}
	path := c.path(e)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	if el := c.entries[e.name]; el != nil {
		if old := el.Value.(*entry); old.sum != e.sum {
			c.remove(el)
		} else {
			c.unlist(el)
		}
	}
	c.enlist(e)
	c.shrink()
	return nil
}

func (c *cache) shrink() {
	for c.uses.Len() > 1 && (c.bytes > c.limit || c.uses.Len() > maxEntries) {
		c.remove(c.uses.Back())
	}
}

func (c *cache) enlist(e *entry) {
	c.entries[e.name] = c.uses.PushFront(e)
	c.bytes += e.size
}

func (c *cache) unlist(el *list.Element) {
	e := c.uses.Remove(el).(*entry)
	delete(c.entries, e.name)
	c.bytes -= e.size
}

// remove deletes an entry. Whoever has its file open goes on reading it.
func (c *cache) remove(el *list.Element) {
	c.unlist(el)
	_ = os.Remove(c.path(el.Value.(*entry)))
}

// load reads the index from the directory, once.
func (c *cache) load() error {
	if c.entries != nil {
		return nil
	}
	var found []*entry
	err := filepath.WalkDir(filepath.Join(c.dir, "entries"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		e, ok := parseEntry(d.Name())
		if !ok {
			return os.Remove(path)
		}
		e.size, e.used = fi.Size(), fi.ModTime()
		found = append(found, e)
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return cacheError(err)
	}
	slices.SortFunc(found, func(a, b *entry) int { return a.used.Compare(b.used) })
	c.entries, c.uses = make(map[digest]*list.Element, len(found)), list.New()
	for _, e := range found {
		if el := c.entries[e.name]; el != nil { // a crash came between the new content and the old one's end
			c.remove(el)
		}
		c.enlist(e)
	}
	c.shrink()
	return nil
}

func parseEntry(file string) (*entry, bool) {
	name, sum, _ := strings.Cut(file, "-")
	e := new(entry)
	n, err := hex.DecodeString(name)
	s, err2 := hex.DecodeString(sum)
	ok := err == nil && err2 == nil && copy(e.name[:], n) == len(n) && copy(e.sum[:], s) == len(s) && len(n) == len(e.name) && len(s) == len(e.sum)
	return e, ok
}

// reader stops when its context does.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
