package disk

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// treePeriod is how often the free space of the machine's disk is looked at.
	treePeriod = 100 * time.Millisecond
	// idlePeriod is how often a tree is measured that seems not to grow: what
	// others free meanwhile hides what it takes.
	idlePeriod = 5 * time.Second
	// rest is how much longer than a measurement nothing is measured.
	rest = 10
	// maxDepth is how deep directories may lie in each other to be measured.
	maxDepth = 256
)

// errUnmeasurable is of a tree that is over every limit.
var errUnmeasurable = errors.New("too many or too deep directories")

// watchTree measures the directory until ctx is done or it is over the limit.
// Walking is dear, so that is only done when the machine's disk has lost as
// much space as the tree had left, or after a while.
func (d *Disk) watchTree(ctx context.Context) {
	tick := time.NewTicker(treePeriod)
	defer tick.Stop()
	var freeThen int64
	var ended time.Time
	var took time.Duration
	failing := false
	for first := true; ; first = false {
		free, err := d.free()
		quiet := time.Since(ended)
		couldBeOver := d.used.Load()+max(0, freeThen-free) > d.limit
		if first || quiet > rest*took && (couldBeOver || quiet > idlePeriod) {
			start := time.Now()
			var walked error
			if walked = d.measure(ctx); walked == nil {
				freeThen = free
			}
			err = errors.Join(err, walked)
			ended = time.Now()
			took = ended.Sub(start)
		}
		if d.full.Load() {
			close(d.exceeded)
			return
		}
		if failing != (err != nil) && ctx.Err() == nil {
			failing = err != nil
			if failing {
				d.log.Error("a disk cannot be measured, so its limit does not hold", "dir", d.dir, "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// free is the free space of the file system that the directory is on, in bytes.
func (d *Disk) free() (int64, error) {
	var s unix.Statfs_t
	err := unix.Fstatfs(int(d.root.Fd()), &s)
	return int64(s.Bfree) * s.Bsize, err
}

// measure walks the tree and notes its size, and whether that is too much.
func (d *Disk) measure(ctx context.Context) error {
	m := measurement{ctx: ctx, bytes: d.limit, files: files(d.limit)}
	var st unix.Stat_t
	err := unix.Fstat(int(d.root.Fd()), &st)
	if err == nil {
		m.dev = st.Dev
		err = m.directory(int(d.root.Fd()), ".", 0)
	}
	over := errors.Is(err, errUnmeasurable)
	if err == nil || over {
		d.used.Store(d.limit - m.bytes)
	}
	if over {
		d.full.Store(true)
		return nil
	}
	return err
}

// A measurement counts what is left of bytes and files.
type measurement struct {
	ctx   context.Context
	dev   uint64
	bytes int64
	files int64
}

func (m *measurement) directory(parent int, name string, depth int) error {
	if depth > maxDepth {
		return errUnmeasurable
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) { // the build goes on meanwhile
		return nil
	}
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(1024)
		if errors.Is(err, io.EOF) || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if m.ctx.Err() != nil {
			return context.Cause(m.ctx)
		}
		for _, n := range names {
			if err := m.entry(fd, n, depth); err != nil {
				return err
			}
		}
	}
}

func (m *measurement) entry(parent int, name string, depth int) error {
	var st unix.Stat_t
	err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Dev != m.dev { // an overlay; what it takes is in its upper directory
		return nil
	}
	directory := st.Mode&unix.S_IFMT == unix.S_IFDIR
	names := int64(1)
	if !directory {
		names = max(1, int64(st.Nlink)) // each of them counts for its share of the file
	}
	m.bytes -= st.Blocks * 512 / names
	m.files--
	if m.bytes < 0 || m.files < 0 {
		return errUnmeasurable
	}
	if directory {
		return m.directory(parent, name, depth+1)
	}
	return nil
}
