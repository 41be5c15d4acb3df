package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A draft is a layer in the making. Its methods may be called at the same time
// for different shards.
type draft struct {
	cache *Cache
	id    string
	dir   string
	held  *os.File // locked, so that nobody sweeps it
	made  [256]bool
	files atomic.Int64
	bytes atomic.Int64
}

// future is the time of each file's last change. The go command writes a new
// time on each file that it uses where that is older than an hour, and in an
// overlay this copies the file; and it removes what it thinks unused for five
// days. The year is the last one that all file systems can write.
var future = time.Unix(1<<31-1, 0)

// block is what the smallest file takes of a disk.
const block = 4 << 10

func onDisk(size int64) int64 { return (size + block - 1) / block * block }

func (c *Cache) newDraft() (*draft, error) {
	d := &draft{cache: c, id: newID()}
	d.dir = c.path("tmp", d.id)
	err := c.locked(func(*state) (err error) {
		if err := c.makeDir(d.dir); err != nil {
			return err
		}
		d.held, err = openDir(d.dir)
		if err != nil {
			return err
		}
		return flock(d.held, unix.LOCK_EX)
	})
	if err != nil {
		if d.held != nil {
			d.held.Close()
		}
		return nil, err
	}
	return d, nil
}

// discard removes what was not committed.
func (d *draft) discard() {
	if d.held == nil {
		return
	}
	if err := os.RemoveAll(d.dir); err != nil {
		d.cache.log.Warn("left a draft of a cache layer for the next start to remove", "err", err)
	}
	d.held.Close()
}

// commit makes the draft a layer; a list must name it before the lock is given
// back.
func (d *draft) commit(s *state, sealed time.Time) (layer, error) {
	if err := s.change(); err != nil {
		return layer{}, err
	}
	if err := os.Rename(d.dir, d.cache.layerPath(d.id)); err != nil {
		return layer{}, err
	}
	d.held.Close()
	d.held = nil
	return layer{d.id, int(d.files.Load()), d.bytes.Load(), sealed.UTC().Round(0), d.cache.boot, d.cache.uid, d.cache.gid}, nil
}

func (d *draft) path(shard byte, name string) (string, error) {
	dir := filepath.Join(d.dir, shardName(int(shard)))
	if !d.made[shard] {
		if err := d.cache.makeDir(dir); err != nil {
			return "", err
		}
		d.made[shard] = true
	}
	return filepath.Join(dir, name), nil
}

// create makes a file with what write writes, unless write says that it must
// not stay.
func (d *draft) create(of id, kind byte, size int64, write func(io.Writer) (bool, error)) (bool, error) {
	path, err := d.path(of[0], filepath.Base(of.name(kind)))
	if err != nil {
		return false, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, modeOf(kind))
	if err != nil {
		return false, err
	}
	keep, err := write(f)
	if err == nil && keep {
		err = d.finish(f, kind)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return false, err
	}
	if !keep {
		return false, os.Remove(path)
	}
	if err := os.Chtimes(path, future, future); err != nil {
		return false, err
	}
	d.files.Add(1)
	d.bytes.Add(onDisk(size))
	return true, nil
}

// modeOf keeps everybody from writing an output. An action stays the build
// user's: the go command writes that of a link each time, into its overlay,
// and others where the output is not what it needs.
func modeOf(kind byte) fs.FileMode {
	if kind == outputFile {
		return 0o444
	}
	return 0o644
}

// finish gives a file its mode and owner. Where it has them already, this
// saves a fifth of a layer's time.
func (d *draft) finish(f *os.File, kind byte) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Mode() != modeOf(kind) {
		if err := f.Chmod(modeOf(kind)); err != nil {
			return err
		}
	}
	if c := d.cache; kind == actionFile && (c.uid != 0 || c.gid != 0) {
		return f.Chown(c.uid, c.gid)
	}
	return nil
}

func (d *draft) addAction(e entry) error {
	_, err := d.create(e.action, actionFile, entrySize, func(w io.Writer) (bool, error) {
		_, err := w.Write(e.text())
		return true, err
	})
	return err
}

// addOutput copies an output of size bytes and reports whether it is what its
// name says.
func (d *draft) addOutput(ctx context.Context, output id, r io.Reader, size int64) (bool, error) {
	return d.create(output, outputFile, size, func(w io.Writer) (bool, error) {
		return d.cache.isOutput(ctx, w, r, output, size)
	})
}

// link adds everything in a layer that the draft has not got.
func (d *draft) link(ctx context.Context, a layer) error {
	root, err := openDir(d.cache.layerPath(a.ID))
	if err != nil {
		return err
	}
	defer root.Close()
	files, bytes := int64(a.Files), a.Bytes
	for i := range 256 {
		s, err := openShard(root, i, false)
		if err != nil {
			return fmt.Errorf("layer %s: %w", a.ID, err)
		}
		if s == nil {
			continue
		}
		err = s.each(ctx, func(name string) error {
			from := filepath.Join(root.Name(), shardName(i), name)
			to, err := d.path(s.number, name)
			if err != nil {
				return err
			}
			err = os.Link(from, to)
			if !errors.Is(err, fs.ErrExist) {
				return err
			}
			info, err := os.Lstat(from)
			if err == nil {
				files--
				bytes -= onDisk(info.Size())
			}
			return err
		})
		s.dir.Close()
		if err != nil {
			return err
		}
	}
	d.files.Add(files)
	d.bytes.Add(bytes)
	return nil
}
