package cache

import (
	"encoding/binary"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// openDir opens a directory that is none of the links to one.
func openDir(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

// flock locks an open file until it is closed or its process dies.
func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// seize opens the directory at path if nobody holds it and holds it alone. It
// returns nil if somebody does, or if it is not there.
func seize(path string) *os.File {
	f, err := openDir(path)
	if err != nil {
		return nil
	}
	if flock(f, unix.LOCK_EX|unix.LOCK_NB) != nil {
		f.Close()
		return nil
	}
	return f
}

// locked runs f with the lists as they are on disk, while no other process
// and no other goroutine changes them. Nothing slow belongs into f. What f
// throws away is removed after the lock is given back.
func (c *Cache) locked(f func(*state) error) error {
	trash, err := c.underLock(f)
	for _, t := range trash {
		err = errors.Join(err, t.remove())
	}
	return err
}

func (c *Cache) underLock(f func(*state) error) (trash []trash, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	file, err := os.OpenFile(c.path("lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if err := flock(file, unix.LOCK_EX); err != nil {
		return nil, err
	}
	generation, err := readGeneration(file)
	if err != nil {
		return nil, err
	}
	if c.state == nil || c.state.generation != generation {
		if c.state, err = c.load(); err != nil {
			return nil, err
		}
		c.state.generation = generation
	}
	s := c.state
	s.lock, s.changed = file, false
	err = f(s)
	trash, s.trash = s.trash, nil
	if err != nil {
		c.state = nil // f may have left it half changed
	}
	return trash, err
}

// The lock file holds a number that grows with each change, so that a process
// knows without reading all lists whether those in its memory are still true.
// It grows before the change: a process that dies between the two costs the
// others a reading.
func readGeneration(f *os.File) (uint64, error) {
	var b [8]byte
	if _, err := f.ReadAt(b[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

// change must be called before anything on disk is changed.
func (s *state) change() error {
	if s.changed {
		return nil
	}
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], s.generation+1)
	if _, err := s.lock.WriteAt(b[:], 0); err != nil {
		return err
	}
	s.generation++
	s.changed = true
	return nil
}

// A trash is a directory below tmp that this process holds alone.
type trash struct {
	path string
	held *os.File
}

func (t trash) remove() error {
	defer t.held.Close()
	return os.RemoveAll(t.path)
}
