package artifact

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A holding is what the store knows of a slot.
type holding struct {
	slot string
	sum  string    // of the blob that the record names; "" if it names none
	size int64     // of the record, on disk
	used time.Time // the record's time, as this process saw it last
}

// A content is a blob in the directory, or one that records name in vain.
type content struct {
	size  int64 // on disk
	names int   // records that name it
}

// An index is what is in the directory of a store.
type index struct {
	slots  map[string]holding
	blobs  map[string]content
	unused []string // blobs that no record named when they were noted
	size   int64    // of all records and blobs, on disk
}

// block is what the smallest file takes of a disk.
const block = 4 << 10

func onDisk(size int64) int64 { return (size + block - 1) / block * block }

// note takes in that a slot holds h, whose blob has blobSize bytes.
func (x *index) note(h holding, blobSize int64) {
	old, had := x.slots[h.slot]
	x.slots[h.slot] = h
	x.size += h.size - old.size
	if h.sum != "" {
		b := x.blobs[h.sum]
		x.size += blobSize - b.size
		x.blobs[h.sum] = content{blobSize, b.names + 1}
	}
	if had {
		x.release(old.sum)
	}
}

// forget takes in that a slot is gone.
func (x *index) forget(slot string) {
	h := x.slots[slot]
	delete(x.slots, slot)
	x.size -= h.size
	x.release(h.sum)
}

func (x *index) release(sum string) {
	if sum == "" {
		return
	}
	b := x.blobs[sum]
	b.names--
	x.blobs[sum] = b
	if b.names == 0 {
		x.unused = append(x.unused, sum)
	}
}

// exclusively runs f while no other Put and no other process changes the
// directory, with s.index as the directory is. After an error of f, the index
// is read anew the next time.
//
// Whoever changes the directory writes a word of his own into the lock file
// before. Where another word stands than this process has written, another
// process has been there, and the index is of no use any more.
func (s *Store) exclusively(ctx context.Context, f func() error) error {
	return s.locked(ctx, func(lock *os.File) error {
		word := rand.Text()
		found := make([]byte, len(word))
		n, _ := lock.ReadAt(found, 0) // what cannot be read is not the word of this process
		known := s.word != "" && string(found[:n]) == s.word
		s.word = ""
		if _, err := lock.WriteAt([]byte(word), 0); err != nil {
			return err
		}
		if !known {
			if err := s.scan(); err != nil {
				return err
			}
		}
		err := f()
		s.bytes.Store(s.index.size)
		if err == nil {
			s.word = word
		}
		return err
	})
}

// lockPatience is how long another process may have the lock. It is had for
// milliseconds, unless whoever has it is stopped.
const lockPatience = 30 * time.Second

// locked runs f while nobody else, in this process or another, runs one. It
// waits for that until ctx ends, and not for ever.
func (s *Store) locked(ctx context.Context, f func(lock *os.File) error) error {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	lock, err := os.OpenFile(s.lock, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close() // lets go of it
	if err := takeLock(ctx, lock); err != nil {
		return err
	}
	return f(lock)
}

// takeLock asks again and again: nothing ends a system call that waits.
func takeLock(ctx context.Context, lock *os.File) error {
	const longest = 50 * time.Millisecond
	pause := time.Millisecond
	for began := time.Now(); ; pause = min(2*pause, longest) {
		err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, syscall.EINTR):
		case !errors.Is(err, syscall.EWOULDBLOCK):
			return &fs.PathError{Op: "flock", Path: lock.Name(), Err: err}
		case time.Since(began) > lockPatience:
			return fmt.Errorf("%w: another process has had %s for %v; see whether it is stopped", ErrUnavailable, lock.Name(), lockPatience)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// scan makes the index, and removes what a Put could not take away again
// because the disk was read-only by then. Files that are not the store's are
// not looked at.
func (s *Store) scan() error {
	if err := errors.Join(sweep(s.blobs), sweep(s.meta)); err != nil {
		return err
	}
	x := index{slots: map[string]holding{}, blobs: map[string]content{}}
	err := plainFiles(s.blobs, func(name string, info fs.FileInfo) error {
		if IsDigest(name) {
			b := content{size: onDisk(info.Size())}
			x.blobs[name] = b
			x.size += b.size
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = plainFiles(s.meta, func(name string, info fs.FileInfo) error {
		slot, ok := strings.CutSuffix(name, metaSuffix)
		if !ok || !IsDigest(slot) {
			return nil
		}
		// A record that makes no sense names no blob. One that cannot be read
		// just now may name one, which must not be taken for unused.
		r, err := s.read(slot)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		h := holding{slot: slot, size: onDisk(info.Size()), used: info.ModTime()}
		if IsDigest(r.Artifact.SHA256) {
			h.sum = r.Artifact.SHA256
		}
		x.note(h, x.blobs[h.sum].size)
		return nil
	})
	if err != nil {
		return err
	}
	for sum, b := range x.blobs {
		if b.names == 0 {
			x.unused = append(x.unused, sum)
		}
	}
	s.index = x
	return nil
}

func plainFiles(dir string, each func(name string, info fs.FileInfo) error) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) { // a temporary file
			continue
		}
		if err == nil && info.Mode().IsRegular() {
			err = each(e.Name(), info)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// trim removes the blobs that no record names, and the artifacts that were
// used least recently until what is left is within the limit; never that of
// the slot keep. It runs in exclusively.
func (s *Store) trim(keep string) error {
	if err := s.removeUnused(); err != nil || !s.excessive() {
		return err
	}
	queue := make([]holding, 0, len(s.index.slots))
	for slot, h := range s.index.slots {
		if slot != keep {
			queue = append(queue, h)
		}
	}
	slices.SortFunc(queue, olderFirst)
	for len(queue) > 0 && s.excessive() {
		h := queue[0]
		queue = queue[1:]
		// The time of use is the record's: Open sets it there, in any process.
		info, err := os.Lstat(s.record(h.slot))
		if err == nil && !info.ModTime().Equal(h.used) {
			h.used = info.ModTime()
			s.index.slots[h.slot] = h
			i, _ := slices.BinarySearchFunc(queue, h, olderFirst)
			queue = slices.Insert(queue, i, h)
			continue
		}
		// The record first: a crash may leave a blob without a record, which
		// the next Open removes, but no record without its blob.
		if err := os.Remove(s.record(h.slot)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("evict an artifact: %w", err)
		}
		s.index.forget(h.slot)
		if err := s.removeUnused(); err != nil {
			return err
		}
	}
	return nil
}

func olderFirst(a, b holding) int {
	return cmp.Or(a.used.Compare(b.used), strings.Compare(a.slot, b.slot))
}

func (s *Store) excessive() bool { return s.limit > 0 && s.index.size > s.limit }

func (s *Store) removeUnused() error {
	for _, sum := range s.index.unused {
		b, ok := s.index.blobs[sum]
		if !ok || b.names > 0 { // named again since
			continue
		}
		if err := os.Remove(filepath.Join(s.blobs, sum)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove an archive that no record names: %w", err)
		}
		delete(s.index.blobs, sum)
		s.index.size -= b.size
	}
	s.index.unused = nil
	return nil
}
