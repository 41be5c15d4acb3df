// Package disk is the bounded file system of one build, and the overlays on it.
//
// A disk is an ext4 file system in a file, mounted through a loop device, so
// the kernel itself refuses what is too much, whichever engine runs the build.
// The file has no name: once the last mount of it is gone, so are device and
// file, even if this process was killed. Nothing on a disk survives the build,
// so nothing is written to it with care: it has no journal and no barriers,
// and Close throws away what has not reached the machine's disk yet.
//
// Where that cannot be had, a disk is a plain directory that is measured.
//
// Project quotas are not used: in the initial user namespace, where Docker runs
// its containers, the owner of a file may give it to another project.
//
// The package needs root and mounts in the namespace of this process. That must
// be the one in which containerd and dockerd run: they bind what is below a
// disk into containers, and cannot see mounts of a private namespace.
package disk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Kind says how a disk is bounded. The set is closed: it is a metric label.
type Kind string

const (
	// Loop is a file system of its own; the kernel enforces the bound.
	Loop Kind = "loop"
	// Watch is a directory that is measured. It bounds nothing by itself: who
	// runs the build must end it when Exceeded says so.
	Watch Kind = "watch"
)

// DefaultLimit is what a disk holds if Options say nothing.
const DefaultLimit int64 = 10 << 30

// minLimit is what ext4 can reasonably be made on.
const minLimit int64 = 16 << 20

// Options for Open.
type Options struct {
	// Dir is where the disks are, each in a directory of its own, and what
	// backs them. It is made if it is not there. Only one Disks at a time may
	// use it.
	Dir string
	// Limit is the size of a disk in bytes, 0 for DefaultLimit. The machine
	// never holds more than that for it; the bookkeeping of the file system,
	// some 2 %, comes out of it.
	Limit int64
	// Kind is the kind that is wanted, or "" for the best one that works.
	Kind Kind
	// Log hears what no caller can be told; nil is for nothing.
	Log *slog.Logger
}

// Disks makes disks. It holds nothing that would have to be closed.
type Disks struct {
	dir      string
	limit    int64
	template *template // nil for kind Watch
	weakness string
	log      *slog.Logger
}

// Open removes what an earlier process left in o.Dir, and finds out by trying
// which kind works. Nothing that is not below o.Dir is touched, nor what is
// there and has no name that a disk could have.
func Open(ctx context.Context, o Options) (*Disks, error) {
	d := &Disks{limit: cmp.Or(o.Limit, DefaultLimit), log: o.Log}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if d.limit < minLimit {
		return nil, fmt.Errorf("a disk of %d bytes is too small: it needs %d", d.limit, minLimit)
	}
	if o.Dir == "" {
		return nil, errors.New("disks have no directory")
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	// The kernel tells of mounts by their real paths.
	dir, err := filepath.Abs(o.Dir)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return nil, err
	}
	d.dir = dir
	if err := sweep(dir); err != nil {
		return nil, fmt.Errorf("remove what was left in %s: %w", dir, err)
	}
	switch o.Kind {
	case "", Loop:
		err := d.tryLoop(ctx)
		if err == nil {
			return d, nil
		}
		if o.Kind == Loop || ctx.Err() != nil {
			return nil, fmt.Errorf("disks of kind loop: %w", err)
		}
		d.weakness = fmt.Sprintf("a build may write more than %d bytes before it is noticed and ended, as there are no loop disks here: %v", d.limit, err)
	case Watch:
		d.weakness = fmt.Sprintf("a build may write more than %d bytes before it is noticed and ended, as disks of kind watch were asked for", d.limit)
	default:
		return nil, fmt.Errorf("no such kind of disk: %q", o.Kind)
	}
	return d, nil
}

func (d *Disks) tryLoop(ctx context.Context) error {
	t, err := format(ctx, d.dir, d.limit)
	if err != nil {
		return err
	}
	d.template = t
	probe, err := d.Make(ctx, "probe")
	if err == nil {
		err = probe.Close()
	}
	if err != nil {
		d.template = nil
	}
	return err
}

// Kind is the one that was found to work.
func (d *Disks) Kind() Kind {
	if d.template == nil {
		return Watch
	}
	return Loop
}

// Weakness says in a sentence why the kernel does not enforce the limit, or is
// "" if it does.
func (d *Disks) Weakness() string { return d.weakness }

var validName = regexp.MustCompile(`^[a-z0-9-]{1,64}$`).MatchString

// Make makes an empty disk. The name must not be that of another one which is
// not closed. It is safe to call concurrently.
func (d *Disks) Make(ctx context.Context, name string) (_ *Disk, err error) {
	if !validName(name) {
		return nil, fmt.Errorf("not a name for a disk: %q", name)
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	disk := &Disk{dir: filepath.Join(d.dir, name), kind: d.Kind(), limit: d.limit, log: d.log, exceeded: make(chan struct{})}
	if err := os.Mkdir(disk.dir, 0o700); err != nil {
		return nil, err
	}
	switch disk.kind {
	case Loop:
		disk.root, err = d.template.mount(ctx, disk.dir)
		disk.mounts = []string{disk.dir}
	case Watch:
		disk.root, err = os.Open(disk.dir)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make disk %s: %w", name, err), os.Remove(disk.dir))
	}
	ctx, disk.stop = context.WithCancel(context.WithoutCancel(ctx))
	disk.watcher.Go(func() {
		switch disk.kind {
		case Loop:
			disk.watchSpace(ctx)
		case Watch:
			disk.watchTree(ctx)
		}
	})
	return disk, nil
}

// A Disk holds everything that one build writes. Its methods are safe to call
// concurrently.
type Disk struct {
	dir   string
	kind  Kind
	limit int64
	log   *slog.Logger

	used     atomic.Int64
	full     atomic.Bool
	exceeded chan struct{}

	stop    context.CancelFunc
	watcher sync.WaitGroup

	mu      sync.Mutex
	root    *os.File // dir; nil once Close was called
	mounts  []string // where, in the order of time
	removed bool
}

// Dir is a directory that only root may enter. A container may be given
// directories in it, but not Dir itself, as the overlays are there, too.
func (d *Disk) Dir() string { return d.dir }

// Full says whether the disk was full, of bytes or files, at any time since
// Make, even if it no longer is. The kernel does not tell, so it is looked at
// every 10 ms, and every millisecond when it gets close: a build that fills a
// disk and frees it again faster than that is missed. A disk of kind Watch is
// full once Exceeded is closed; that the machine's own disk is full is not seen.
func (d *Disk) Full() bool {
	if d.kind == Loop {
		d.lookAtSpace()
	}
	return d.full.Load()
}

// Exceeded is closed when a build on a disk of kind Watch has written more than
// the limit and must be ended. With any other kind that never happens.
func (d *Disk) Exceeded() <-chan struct{} { return d.exceeded }

// Usage returns how many bytes are used, and the limit. That is exact for kind
// Loop and as of the last measurement for kind Watch. A disk is full a little
// below the limit; see Options.
func (d *Disk) Usage() (used, limit int64) {
	if d.kind == Loop {
		d.lookAtSpace()
	}
	return d.used.Load(), d.limit
}

// Close removes the disk and all that is on it. No process should use it any
// more: one that does gets I/O errors from a disk of kind Loop, whose memory
// and space come free only when it ends. After an error Close may be called
// again; after success that does nothing.
func (d *Disk) Close() error {
	d.stop()
	d.watcher.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.removed {
		return nil
	}
	if d.root != nil {
		if d.kind == Loop {
			d.shutDown()
		}
		d.root.Close()
		d.root = nil
	}
	for n := len(d.mounts); n > 0; n-- {
		lazy, err := unmount(d.mounts[n-1])
		if err != nil {
			return fmt.Errorf("close disk: %w", err)
		}
		if lazy {
			d.log.Warn("a disk is still used by a process; its space comes free when that ends", "dir", d.mounts[n-1])
		}
		d.mounts = d.mounts[:n-1]
	}
	if err := remove(d.dir); err != nil {
		return fmt.Errorf("close disk: %w", err)
	}
	d.removed = true
	return nil
}

// shutDown makes the file system forget what it has not written yet, which
// unmounting would write for nobody: seconds for a big build. root was opened
// when the disk was mounted, so this cannot hit another file system.
func (d *Disk) shutDown() {
	const (
		shutdown = 0x8004587d // EXT4_IOC_SHUTDOWN of linux/ext4.h; x/sys/unix has no name for it
		noFlush  = 2          // EXT4_GOING_FLAGS_NOLOGFLUSH
	)
	if err := unix.IoctlSetPointerInt(int(d.root.Fd()), shutdown, noFlush); err != nil {
		d.log.Debug("a disk must be written before it is unmounted", "dir", d.dir, "err", err)
	}
}
