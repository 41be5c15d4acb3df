// Package cache keeps what builds compiled, in layers that builds share
// without trusting each other.
//
// A layer is a directory in the form of a GOCACHE that never changes. A class
// is a list of layers: the standard library of one toolchain and platform, the
// shared class of a toolchain, the class of one repository. A build gets the
// layers of the classes that it may read beneath a fresh directory of its own;
// when it has succeeded, what it wrote there becomes the newest layer of the
// one class that it may append to: [Work.Appends].
//
// Each layer is complete: the output of every action in it lies in it too. So
// any layer can go without harm to another one, and an action that a class has
// never has to be appended again.
//
// On disk:
//
//	lock             held for each change; counts them
//	classes/*.json   the lists, by a hash of the class
//	layers/<id>/     the layers
//	tmp/             layers that are being made or removed
//	empty/           what lies beneath all layers
package cache

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultLimit is how many bytes a cache keeps where Options do not say.
const DefaultLimit = 20 << 30

// Options are how to open a cache.
type Options struct {
	Dir      string       // made if it is not there; nobody but Cargo writes below it
	Limit    int64        // bytes on disk; 0 means DefaultLimit
	UID, GID int          // of the build user, as the host sees them; both 0: whoever runs Cargo
	Log      *slog.Logger // nil discards

	boot string // instead of the kernel's
}

// A Cache is layers on a disk. Its methods are safe for concurrent use, and
// several processes may open the same directory. A process that is killed
// leaves only what the next Open, Append or Prune removes.
type Cache struct {
	dir      string
	limit    int64
	uid, gid int
	log      *slog.Logger
	boot     string

	mu    sync.Mutex // guards state; held with the lock file
	state *state

	unlisted atomic.Bool // a layer may be there for its leases alone

	verifying  sync.Mutex // a layer is verified once
	compacting sync.Mutex
	buffers    sync.Pool // of *[128 << 10]byte
}

// Open opens the cache in a directory and removes what processes that died
// have left in it.
func Open(o Options) (*Cache, error) {
	c := &Cache{limit: cmp.Or(o.Limit, DefaultLimit), uid: o.UID, gid: o.GID, log: o.Log, boot: o.boot}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if err := c.open(o.Dir); err != nil {
		return nil, fmt.Errorf("open build cache: %w", err)
	}
	return c, nil
}

func (c *Cache) open(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	c.dir = dir
	if c.boot == "" {
		boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return err
		}
		c.boot = strings.TrimSpace(string(boot))
	}
	for _, d := range []string{"classes", "layers", "tmp"} {
		if err := os.MkdirAll(c.path(d), 0o700); err != nil {
			return err
		}
	}
	if err := c.makeEmpty(); err != nil {
		return err
	}
	return c.locked((*state).sweep)
}

// makeEmpty makes the bottom of every stack: the directories that the go
// command would else make in each build, and the README that it would write.
func (c *Cache) makeEmpty() error {
	if err := c.makeDir(c.path("empty")); err != nil {
		return err
	}
	for i := range 256 {
		if err := c.makeDir(c.path("empty", shardName(i))); err != nil {
			return err
		}
	}
	readme, err := os.OpenFile(c.path("empty", "README"), os.O_RDONLY|os.O_CREATE, 0o444) //nolint:gosec // builds read it
	if err != nil {
		return err
	}
	return readme.Close()
}

func (c *Cache) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}

// makeDir makes a directory in which a build can make files once it lies in
// its overlay, or makes one so that is there.
func (c *Cache) makeDir(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if info.Mode() != fs.ModeDir|0o755 {
		if err := os.Chmod(path, 0o755); err != nil { //nolint:gosec // the build user must get in; the cache's own directory is closed to others
			return err
		}
	}
	return c.own(path)
}

func (c *Cache) own(path string) error {
	if c.uid == 0 && c.gid == 0 {
		return nil
	}
	return os.Lchown(path, c.uid, c.gid)
}

func shardName(i int) string { return hex.EncodeToString([]byte{byte(i)}) }

func newID() string {
	var b [idSize / 2]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// Prime gives a fresh upper directory what keeps the go command from spending
// a build's time on maintenance: without a note of the last one it walks all
// layers at the end of the build.
func (c *Cache) Prime(upper string) error {
	name := filepath.Join(upper, "trim.txt")
	now := strconv.FormatInt(time.Now().Unix(), 10)
	err := os.WriteFile(name, []byte(now), 0o644)
	if err == nil {
		err = c.own(name)
	}
	if err != nil {
		return fmt.Errorf("prime build cache: %w", err)
	}
	return nil
}

// Has reports whether class has a layer.
func (c *Cache) Has(class Class) bool {
	has := false
	err := c.locked(func(s *state) error {
		has = len(s.layers(class)) > 0
		return nil
	})
	return err == nil && has
}

// Bytes returns how much of the disk the layers take, as the limit counts it:
// in blocks of 4 KiB, and once where layers share a file. It is -1 if the
// cache cannot be read.
func (c *Cache) Bytes() int64 {
	var n int64
	err := c.locked(func(s *state) error {
		n = s.bytes()
		return nil
	})
	if err != nil {
		return -1
	}
	return n
}

// An Info describes a class.
type Info struct {
	Kind       Kind
	Toolchain  Toolchain
	Platform   Platform // of KindStandard only
	Repository string   // of KindRepository only
	Public     bool     // of KindRepository only
	Layers     int
	Files      int
	Bytes      int64
	Used       time.Time // last, to about a minute
}

// List describes the classes that have a layer, the last used one first.
func (c *Cache) List() ([]Info, error) {
	var all []Info
	err := c.locked(func(s *state) error {
		for class, l := range s.lists {
			used, err := s.used(class)
			if err != nil {
				return err
			}
			info := Info{class.kind, class.toolchain, class.platform, class.repository, class.public, len(l.Layers), 0, l.bytes(), used}
			for _, a := range l.Layers {
				info.Files += a.Files
			}
			all = append(all, info)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list build cache: %w", err)
	}
	slices.SortFunc(all, func(a, b Info) int {
		return cmp.Or(b.Used.Compare(a.Used), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Repository, b.Repository),
			cmp.Compare(a.Platform.String(), b.Platform.String()), cmp.Compare(a.Toolchain, b.Toolchain))
	})
	return all, nil
}
