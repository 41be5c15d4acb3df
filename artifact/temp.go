package artifact

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

const tempPrefix = ".tmp-"

// A tempFile becomes a file of the directory when it is whole. The process
// that writes it holds a lock on it, so that sweep can tell it from what a
// dead process left.
type tempFile struct {
	*os.File
	dir string
}

func createTemp(dir string) (*tempFile, error) {
	for {
		name := filepath.Join(dir, tempPrefix+rand.Text())
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, err
		}
		t := &tempFile{f, dir}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
			t.discard()
			return nil, &fs.PathError{Op: "flock", Path: name, Err: err}
		}
		_, err = os.Lstat(name)
		if err == nil {
			return t, nil
		}
		f.Close()
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		// A sweep came between creating it and locking it.
	}
}

// place gives the file, which has been synced, its name, in place of what has
// it. After a power failure the name means the old content or the whole new
// one; it is the new one for certain when the directory has been synced.
func (t *tempFile) place(name string) error {
	return errors.Join(os.Rename(t.Name(), filepath.Join(t.dir, name)), t.Close())
}

// discard removes the file, and does nothing after place: names are not used twice.
func (t *tempFile) discard() {
	_ = os.Remove(t.Name())
	_ = t.Close()
}

// sweep removes the temporary files in dir that no living process holds.
func sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), tempPrefix) {
			continue
		}
		if err := sweepFile(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func sweepFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Remove(name)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
