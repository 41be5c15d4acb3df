// Package stdlib prepares the standard library: it compiles it once for each
// target, in a container with no repository in it, so that no build has to.
package stdlib

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/monochromegane/cargo/cache"
	"github.com/monochromegane/cargo/disk"
	"github.com/monochromegane/cargo/executor"
)

// Metrics are told how far a preparation is.
type Metrics interface {
	// LibraryPrepared: fraction goes from 0 to 1, and back to 0 if the library
	// could not be prepared or is there no more.
	LibraryPrepared(goos, goarch string, fraction float64)
}

// Options are what a Library works with. All are required, but for Limits.
type Options struct {
	Executor  executor.Executor
	Image     string // the Ref of the builder image
	Toolchain Toolchain
	Cache     *cache.Cache
	Disks     *disk.Disks
	Limits    executor.Limits
	Metrics   Metrics
	Log       *slog.Logger
}

// A Library is the standard library for every target that is asked for. Its
// methods are safe for concurrent use, but for Run, which is to be called once.
type Library struct {
	Options

	mu      sync.Mutex
	wanted  []cache.Platform // in order, without repetition
	asked   map[cache.Platform]request
	arrived chan struct{} // has one element when wanted has
}

// A request is what became of the last wish for a platform.
type request struct {
	open  bool      // it waits, or is being prepared
	ended time.Time // if it is not open
}

// New returns a Library; Run makes it prepare what Want asks for.
func New(o Options) *Library {
	return &Library{Options: o, asked: map[cache.Platform]request{}, arrived: make(chan struct{}, 1)}
}

// pause is how long nothing is done about a platform after it was prepared:
// one that cannot be compiled, or that the cache has no room for, is not tried
// for ever.
const pause = time.Hour

// Want asks for the library of p and returns at once. Nothing follows where it
// is there already, is being prepared, or was within the last hour. As many
// wait at most as there are platforms.
func (l *Library) Want(p cache.Platform) {
	if l.has(p) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if r, ok := l.asked[p]; ok && (r.open || time.Since(r.ended) < pause) {
		return
	}
	l.Metrics.LibraryPrepared(p.GOOS, p.GOARCH, 0)
	l.asked[p] = request{open: true}
	l.wanted = append(l.wanted, p)
	select {
	case l.arrived <- struct{}{}:
	default:
	}
}

// has reports whether the library of p is there, and says so to the metrics.
func (l *Library) has(p cache.Platform) bool {
	has := l.Cache.Has(l.class(p))
	if has {
		l.Metrics.LibraryPrepared(p.GOOS, p.GOARCH, 1)
	}
	return has
}

func (l *Library) class(p cache.Platform) cache.Class { return cache.Standard(l.Toolchain.Version, p) }

func (l *Library) next() (cache.Platform, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.wanted) == 0 {
		return cache.Platform{}, false
	}
	p := l.wanted[0]
	l.wanted = l.wanted[1:]
	return p, true
}

func (l *Library) ended(p cache.Platform) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked[p] = request{ended: time.Now()}
}

// Run prepares what is wanted, one after the other and behind every build,
// until ctx ends.
func (l *Library) Run(ctx context.Context) {
	for {
		select {
		case <-l.arrived:
		case <-ctx.Done():
			return
		}
		for ctx.Err() == nil {
			p, ok := l.next()
			if !ok {
				break
			}
			if err := l.Prepare(ctx, p, true); err != nil && ctx.Err() == nil {
				l.Log.Warn("cannot prepare the standard library; builds compile it themselves", "platform", p.String(), "err", err)
			}
			l.ended(p)
		}
	}
}

// timeout bounds the preparation for one target, which takes a minute on a
// quiet machine of two cores, and much longer behind builds.
const timeout = 30 * time.Minute

// Prepare compiles the library for p, unless it is there. In the background it
// gives way to everything else on the machine. It works beside a Prepare of
// the same platform, also one of another process; if both end in the same
// moment, the cache keeps both until it compacts them.
func (l *Library) Prepare(ctx context.Context, p cache.Platform, background bool) error {
	if l.has(p) {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("it took longer than %v", timeout))
	defer cancel()
	began := time.Now()
	l.Log.Info("preparing the standard library", "platform", p.String(), "toolchain", l.Toolchain.Version)
	sealed, err := l.compile(ctx, p, background)
	if errors.Is(err, cache.ErrTooLarge) {
		err = fmt.Errorf("%w, which is a fourth of --cache-limit", err)
	}
	if err != nil {
		l.Metrics.LibraryPrepared(p.GOOS, p.GOARCH, 0)
		return err
	}
	l.Metrics.LibraryPrepared(p.GOOS, p.GOARCH, 1)
	l.Log.Info("standard library prepared", "platform", p.String(), "files", sealed.Files, "bytes", sealed.Bytes, "seconds", int(time.Since(began).Seconds()))
	return nil
}

// compile compiles the library on a disk of its own and keeps it.
func (l *Library) compile(ctx context.Context, p cache.Platform, background bool) (cache.Sealed, error) {
	d, err := l.Disks.Make(ctx, strings.ToLower("stdlib-"+rand.Text()))
	if err != nil {
		return cache.Sealed{}, err
	}
	defer func() {
		if err := d.Close(); err != nil {
			l.Log.Error("cannot remove a workspace", "err", err)
		}
	}()
	c := &compiler{Library: l, platform: p, background: background}
	if err := c.layOut(d.Dir()); err != nil {
		return cache.Sealed{}, err
	}
	if err := c.run(ctx); err != nil {
		return cache.Sealed{}, err
	}
	return l.Cache.Append(ctx, l.class(p), c.cacheDir())
}
