// Package stdlib prepares the standard library: it compiles it once for each
// target, in a container with no repository in it, so that no build has to.
package stdlib

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/monochromegane/cargo/cache"
	"github.com/monochromegane/cargo/disk"
	"github.com/monochromegane/cargo/executor"
)

// Metrics are told how far a preparation is.
type Metrics interface {
	// LibraryPrepared: fraction goes from 0 to 1.
	LibraryPrepared(goos, goarch string, fraction float64)
}

// Options are what a Library works with. All are required.
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

// A Library is the standard library in every form that is asked for. Its
// methods are safe for concurrent use.
type Library struct {
	Options

	mu      sync.Mutex
	wanted  []cache.Platform        // in order, without repetition
	pending map[cache.Platform]bool // wanted, being prepared, or in vain
	arrived chan struct{}           // has one element when wanted has
}

// New returns a Library; Run makes it prepare what Want asks for.
func New(o Options) *Library {
	return &Library{Options: o, pending: map[cache.Platform]bool{}, arrived: make(chan struct{}, 1)}
}

// Want asks for the library of p and returns at once. One that was evicted is
// prepared again; one that cannot be compiled is not tried for ever, but once in
// the life of a Library.
func (l *Library) Want(p cache.Platform) {
	if l.Cache.Has(l.class(p)) {
		l.Metrics.LibraryPrepared(p.GOOS, p.GOARCH, 1)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pending[p] {
		return
	}
	l.pending[p] = true
	l.Metrics.LibraryPrepared(p.GOOS, p.GOARCH, 0)
	l.wanted = append(l.wanted, p)
	select {
	case l.arrived <- struct{}{}:
	default:
	}
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

// done lets p be wanted again: it may be evicted.
func (l *Library) done(p cache.Platform) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.pending, p)
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
		for p, ok := l.next(); ok && ctx.Err() == nil; p, ok = l.next() {
			if err := l.Prepare(ctx, p, true); err != nil && ctx.Err() == nil {
				l.Log.Warn("cannot prepare the standard library; builds compile it themselves", "platform", p.String(), "err", err)
			}
		}
	}
}

// timeout bounds the preparation for one target, which on a quiet machine of
// two cores takes a minute and half.
const timeout = 30 * time.Minute

// Prepare compiles the library for p, unless it is there. In the background it
// gives way to everything else on the machine.
func (l *Library) Prepare(ctx context.Context, p cache.Platform, background bool) error {
	if l.Cache.Has(l.class(p)) {
		l.Metrics.LibraryPrepared(p.GOOS, p.GOARCH, 1)
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("it took longer than %v", timeout))
	defer cancel()
	began := time.Now()
	l.Log.Info("preparing the standard library", "platform", p.String(), "toolchain", l.Toolchain.Version)
	d, err := l.Disks.Make(ctx, strings.ToLower("stdlib-"+rand.Text()))
	if err != nil {
		return err
	}
	defer func() {
		if err := d.Close(); err != nil {
			l.Log.Error("cannot remove a workspace", "err", err)
		}
	}()
	sealed, err := l.compile(ctx, d, p, background)
	if err != nil {
		return err
	}
	l.done(p)
	l.Metrics.LibraryPrepared(p.GOOS, p.GOARCH, 1)
	l.Log.Info("standard library prepared", "platform", p.String(), "files", sealed.Files, "bytes", sealed.Bytes, "seconds", int(time.Since(began).Seconds()))
	return nil
}

// goPath is what the container may write to.
const goPath = "/go"

// environment is that of every step here, but for the target.
var environment = []string{
	"CGO_ENABLED=0", "GOTOOLCHAIN=local", "GOENV=off", "GOFLAGS=", "GOPROXY=off", "GOWORK=off",
	"HOME=" + goPath + "/home", "GOPATH=" + goPath, "GOCACHE=" + goPath + "/cache", "GOTMPDIR=" + goPath + "/tmp",
}

func (l *Library) compile(ctx context.Context, d *disk.Disk, p cache.Platform, background bool) (cache.Sealed, error) {
	work, err := layOut(d.Dir())
	if err != nil {
		return cache.Sealed{}, err
	}
	run := func(out, progress io.Writer, args ...string) error {
		said := new(text)
		err := l.Executor.Run(ctx, executor.Step{
			ID:         stepID("stdlib"),
			Image:      l.Image,
			Args:       args,
			Env:        append(slices.Clone(environment), "GOOS="+p.GOOS, "GOARCH="+p.GOARCH),
			Mounts:     []executor.Mount{{Source: work, Target: goPath, Writable: true}},
			Limits:     l.Limits,
			Background: background,
			Stdout:     out,
			Stderr:     io.MultiWriter(said, progress),
		})
		if err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(said.b))
		}
		return nil
	}
	list := new(text)
	if err := run(list, io.Discard, "go", "list", "std"); err != nil {
		return cache.Sealed{}, err
	}
	progress := &progress{library: l, platform: p, of: bytes.Count(list.b, []byte{'\n'})}
	if err := run(io.Discard, progress, "go", "build", "-v", "-trimpath", "std"); err != nil {
		return cache.Sealed{}, err
	}
	return l.Cache.Append(ctx, l.class(p), filepath.Join(work, "cache"))
}

// layOut makes the directories of the build user below dir.
func layOut(dir string) (work string, err error) {
	work = filepath.Join(dir, "go")
	for _, d := range []string{work, filepath.Join(work, "cache"), filepath.Join(work, "home"), filepath.Join(work, "tmp")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return "", err
		}
		if err := os.Chown(d, executor.HostUID, executor.HostUID); err != nil {
			return "", err
		}
	}
	return work, nil
}

// progress counts the packages that go build -v names, one a line.
type progress struct {
	library  *Library
	platform cache.Platform
	done, of int
}

// progressEvery is how many packages are compiled between two lines of the log.
const progressEvery = 50

func (p *progress) Write(b []byte) (int, error) {
	for range bytes.Count(b, []byte{'\n'}) {
		p.done++
		if p.done%progressEvery == 0 {
			p.library.Log.Info("preparing the standard library", "platform", p.platform.String(), "packages", p.done, "of", p.of)
		}
	}
	// The rest is to keep what was compiled.
	p.library.Metrics.LibraryPrepared(p.platform.GOOS, p.platform.GOARCH, min(float64(p.done)/float64(max(p.of, 1)), 0.99))
	return len(b), nil
}

// stepID is a fresh one.
func stepID(doing string) string { return doing + "-" + rand.Text() }
