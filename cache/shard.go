package cache

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"runtime"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// A shard is one of the 256 directories of a GOCACHE. A build may have made
// it: nothing in it is what its name says before it has been looked at.
//
// os.Root does not help: it keeps a link from leading out, but follows it. One
// element at a time and O_NOFOLLOW follows none.
type shard struct {
	dir     *os.File
	number  byte
	foreign bool // one link to each file, or it is also something else
}

// openShard opens shard i of the tree at root. It returns nil if that is not
// there, and errNotEntry if it is not a directory.
func openShard(root *os.File, i int, foreign bool) (*shard, error) {
	fd, err := openat(root, shardName(i), unix.O_DIRECTORY)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, fs.ErrPermission):
		return nil, errNotEntry
	case err != nil:
		return nil, err
	}
	return &shard{os.NewFile(fd, shardName(i)), byte(i), foreign}, nil
}

var errNotEntry = errors.New("not a file of the go command's cache")

func openat(dir *os.File, name string, flags int) (uintptr, error) {
	for {
		fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return uintptr(fd), err
		}
	}
}

// open opens an entry of the shard and returns its size. What is not a plain
// file of its own is errNotEntry and is not opened: to open a device may
// already do something.
func (s *shard) open(name string) (*os.File, int64, error) {
	var before, after unix.Stat_t
	err := unix.Fstatat(int(s.dir.Fd()), name, &before, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil || !s.plain(&before) {
		return nil, 0, notEntry(err)
	}
	fd, err := openat(s.dir, name, 0)
	if err != nil {
		return nil, 0, notEntry(err)
	}
	if err = unix.Fstat(int(fd), &after); err == nil && s.plain(&after) && after.Dev == before.Dev && after.Ino == before.Ino {
		return os.NewFile(fd, name), after.Size, nil
	}
	_ = unix.Close(int(fd))
	return nil, 0, notEntry(err)
}

func (s *shard) plain(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFREG && (st.Nlink == 1 || !s.foreign)
}

// notEntry tells what a build may have put there from what is our trouble.
func notEntry(err error) error {
	if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) ||
		errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return errNotEntry
	}
	return err
}

// action reads the entry of an action. A file that is not such an entry, or is
// another action's, is errNotEntry.
func (s *shard) action(action id, name string) (entry, error) {
	f, size, err := s.open(name)
	if err != nil {
		return entry{}, err
	}
	defer f.Close()
	if size != entrySize {
		return entry{}, errNotEntry
	}
	var text [entrySize]byte
	if _, err := io.ReadFull(f, text[:]); err != nil {
		return entry{}, notWhole(err)
	}
	e, err := parseEntry(text[:])
	if err != nil || e.action != action {
		return entry{}, errNotEntry
	}
	return e, nil
}

func notWhole(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errNotEntry
	}
	return err
}

// each calls f with the name of everything in the shard.
func (s *shard) each(ctx context.Context, f func(name string) error) error {
	return eachName(ctx, s.dir, f)
}

func eachName(ctx context.Context, dir *os.File, f func(name string) error) error {
	for {
		all, err := dir.Readdirnames(1024)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, name := range all {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			if err := f(name); err != nil {
				return err
			}
		}
	}
}

// eachShard calls f for all 256 shards, a few at once.
func eachShard(ctx context.Context, f func(ctx context.Context, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(runtime.GOMAXPROCS(0), 8) {
		g.Go(func() error {
			for i := next.Add(1) - 1; i < 256; i = next.Add(1) - 1 {
				if err := f(ctx, int(i)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// isOutput reports whether what w gets from r, size bytes, has the hash that
// its name says.
func (c *Cache) isOutput(ctx context.Context, w io.Writer, r io.Reader, output id, size int64) (bool, error) {
	buffer, ok := c.buffers.Get().(*[128 << 10]byte)
	if !ok {
		buffer = new([128 << 10]byte)
	}
	defer c.buffers.Put(buffer)
	sum := sha256.New()
	for left := size; left > 0; {
		if err := context.Cause(ctx); err != nil {
			return false, err
		}
		n, err := io.ReadFull(r, buffer[:min(left, int64(len(buffer)))])
		if err != nil {
			if errors.Is(notWhole(err), errNotEntry) {
				return false, nil
			}
			return false, err
		}
		sum.Write(buffer[:n])
		if _, err := w.Write(buffer[:n]); err != nil {
			return false, err
		}
		left -= int64(n)
	}
	return id(sum.Sum(nil)) == output, nil
}
