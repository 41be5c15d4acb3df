package modproxy

import (
	"cmp"
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
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A cache keeps files and directories on disk, by name, within a number of
// bytes; those that were not asked for the longest go first.
//
// A file is entries/HH/NAME-SUM, both SHA-256 in hex, of the name and of the
// content. It is read through once before it is handed out, so one that a
// crash tore or a disk spoilt is dropped, not served: that is why nothing here
// is fsynced. A directory is trees/HH/NAME-SUM-SIZE-BOOT or views/..., SUM
// being what its maker says of it and BOOT the boot of this machine in which
// it was last known to be whole: a loss of power can tear it, nothing else
// does. The modification time of each is its last use, within touchEvery.
type cache struct {
	dir   string
	boot  string // of a name: no slashes, no dashes
	limit int64

	mu      sync.Mutex
	entries map[digest]*list.Element // of *entry; nil until loaded
	uses    *list.List               // most recent first
	bytes   int64
	views   int
	trash   []string // in tempDir, for sweep
}

type digest [sha256.Size]byte

// block is what a file's bytes are rounded up to on disk, and what a directory
// takes; an inode takes less.
const block = 4096

func blocks(n int64) int64 { return (n + block - 1) / block * block }

// An area is where entries of one kind lie.
type area string

const (
	areaFiles area = "entries"
	areaTrees area = "trees"
	areaViews area = "views" // which are made of hard links into trees
)

type entry struct {
	area      area
	name, sum digest
	size      int64 // on disk
	used      time.Time

	// Of a directory only.
	boot  string
	holds int      // eviction passes it over while there are any
	parts []*entry // the trees of a view, which holds them: a link keeps the bytes of what is removed
}

const (
	touchEvery = time.Hour
	// maxEntries bounds the index in memory, which takes some 300 bytes each.
	maxEntries = 100_000
	// maxViews keeps the links to one file below what file systems can count: 65,000 for ext4.
	maxViews = 20_000
)

// errCache is wrapped by errors of this server's own disk.
var errCache = errors.New("module cache")

func cacheError(err error) error { return fmt.Errorf("%w: %w", errCache, err) }

func (c *cache) path(e *entry) string {
	name := hex.EncodeToString(e.name[:])
	file := name + "-" + hex.EncodeToString(e.sum[:])
	if e.area != areaFiles {
		file += "-" + strconv.FormatInt(e.size, 10) + "-" + e.boot
	}
	return filepath.Join(c.dir, string(e.area), name[:2], file)
}

func (c *cache) tempDir() string { return filepath.Join(c.dir, "tmp") }

// get returns the file of that name, open, or an error that wraps
// fs.ErrNotExist, or one of the disk if it cannot be read now. Eviction does not disturb it.
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
	if trouble(err) != nil { // it may be as good as it was
		return nil, cacheError(err)
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
	c.touch(el)
	return *el.Value.(*entry), nil
}

// touch marks an entry as the one used last, and what a view is made of after
// the view, so that a view goes before its trees do.
func (c *cache) touch(el *list.Element) {
	c.uses.MoveToFront(el)
	e := el.Value.(*entry)
	if now := time.Now(); now.Sub(e.used) > touchEvery {
		e.used = now
		_ = os.Chtimes(c.path(e), now, now) // a worse order after a restart is all it would cost
	}
	for _, part := range e.parts {
		if el := c.entries[part.name]; el != nil {
			c.touch(el)
		}
	}
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
	size, err := copyTo(ctx, io.MultiWriter(f, h), r)
	if err != nil {
		return nil, err
	}
	e := &entry{area: areaFiles, name: sha256.Sum256([]byte(name)), sum: digest(h.Sum(nil)), size: blocks(size), used: time.Now()}
	if err := c.add(e, f.Name()); err != nil {
		return nil, cacheError(err)
	}
	return f, nil
}

// pass returns what r has to give as an open file that has no name, so that
// nothing is left of it when it is closed or this process ends.
func (c *cache) pass(ctx context.Context, r io.Reader) (*os.File, error) {
	f, err := os.CreateTemp(c.tempDir(), "pass-")
	if err != nil {
		return nil, cacheError(err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, cacheError(err)
	}
	if _, err := copyTo(ctx, f, r); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// maxSpare bounds a file that is handed out from memory, in bytes. Most are
// smaller by far.
const maxSpare = 1 << 20

// spare is what r has to give as an open file in memory, for want of a disk.
func spare(ctx context.Context, r io.ReadSeeker) (*os.File, error) {
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("module", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "module")
	n, err := io.Copy(f, io.LimitReader(reader{ctx, r}, maxSpare+1))
	if err == nil && n > maxSpare {
		err = errTooLarge
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// copyTo tells an error of this server's disk from one of r's.
func copyTo(ctx context.Context, w io.Writer, r io.Reader) (int64, error) {
	n, err := io.Copy(w, reader{ctx, r})
	if _, disk := errors.AsType[*fs.PathError](err); disk {
		err = cacheError(err)
	}
	return n, err
}

// add moves the file temp into its place and makes room for it. The newest
// entry itself stays even if it is larger than the limit.
func (c *cache) add(e *entry, temp string) error {
	defer c.sweep()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.load(); err != nil {
		return err
	}
	if err := c.move(e, temp); err != nil {
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

func (c *cache) move(e *entry, temp string) error {
	path := c.path(e)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.Rename(temp, path)
}

func (c *cache) shrink() {
	for c.bytes > c.limit || c.uses.Len() > maxEntries || c.views > maxViews {
		el := c.victim()
		if el == nil {
			return
		}
		c.remove(el)
	}
}

// victim is what goes next: neither what is held nor the one used last.
func (c *cache) victim() *list.Element {
	for el := c.uses.Back(); el != c.uses.Front(); el = el.Prev() {
		if e := el.Value.(*entry); e.holds == 0 && (e.area == areaViews || c.views <= maxViews) {
			return el
		}
	}
	return nil
}

// size is what is kept, in bytes.
func (c *cache) size() (int64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.load()
	return c.bytes, err
}

func (c *cache) enlist(e *entry) {
	c.entries[e.name] = c.uses.PushFront(e)
	c.bytes += e.size
	if e.area == areaViews {
		c.views++
	}
	for _, part := range e.parts {
		part.holds++
	}
}

func (c *cache) unlist(el *list.Element) {
	e := c.uses.Remove(el).(*entry)
	delete(c.entries, e.name)
	c.bytes -= e.size
	if e.area == areaViews {
		c.views--
	}
	for _, part := range e.parts {
		part.holds--
	}
}

// remove deletes an entry. Whoever has its file open goes on reading it; of a
// directory the files are left to sweep.
func (c *cache) remove(el *list.Element) {
	c.unlist(el)
	e := el.Value.(*entry)
	if e.area == areaFiles {
		_ = os.Remove(c.path(e))
	} else {
		c.discard(c.path(e))
	}
}

// load reads the index from the directory, once.
func (c *cache) load() error {
	if c.entries != nil {
		return nil
	}
	var found []*entry
	for _, a := range []area{areaFiles, areaTrees, areaViews} {
		es, err := c.read(a)
		if err != nil {
			return cacheError(err)
		}
		found = append(found, es...)
	}
	stale := func(e *entry) bool { return e.area == areaViews && e.boot != c.boot }
	slices.SortFunc(found, func(a, b *entry) int {
		switch { // those that are of no use go first, and each view before its trees
		case stale(a) != stale(b) && stale(a):
			return -1
		case stale(a) != stale(b):
			return 1
		}
		return cmp.Or(a.used.Compare(b.used), -strings.Compare(string(a.area), string(b.area)))
	})
	c.entries, c.uses = make(map[digest]*list.Element, len(found)), list.New()
	for _, e := range found {
		if el := c.entries[e.name]; el != nil { // a crash came between the new content and the old one's end
			c.remove(el)
		}
		c.enlist(e)
	}
	for _, e := range found {
		if el := c.entries[e.name]; el != nil && el.Value.(*entry) == e && e.area == areaViews && !stale(e) && !c.assemble(e) {
			c.remove(el)
		}
	}
	c.shrink()
	return nil
}

// read lists an area. What it does not know goes.
func (c *cache) read(a area) (found []*entry, err error) {
	root := filepath.Join(c.dir, string(a))
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		if filepath.Dir(path) == root {
			if d.IsDir() {
				return nil
			}
			return os.Remove(path)
		}
		e, ok := parseEntry(a, d.Name())
		if !ok || d.IsDir() != (a != areaFiles) {
			err = os.RemoveAll(path)
		} else if fi, ferr := d.Info(); ferr != nil {
			err = ferr
		} else {
			if e.used = fi.ModTime(); a == areaFiles {
				e.size = blocks(fi.Size())
			}
			found = append(found, e)
		}
		if err == nil && d.IsDir() {
			return fs.SkipDir
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return found, err
}

func parseEntry(a area, file string) (*entry, bool) {
	parts := strings.Split(file, "-")
	if a == areaFiles && len(parts) != 2 || a != areaFiles && len(parts) != 4 {
		return nil, false
	}
	e := &entry{area: a}
	ok := parseDigest(&e.name, parts[0]) && parseDigest(&e.sum, parts[1])
	if ok && a != areaFiles {
		var err error
		e.size, err = strconv.ParseInt(parts[2], 10, 64)
		e.boot = parts[3]
		ok = err == nil && e.size >= 0
	}
	return e, ok
}

func parseDigest(d *digest, s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == len(d) && copy(d[:], b) == len(b)
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
