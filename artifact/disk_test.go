package artifact_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
)

// smallDisk is a disk of its own; remount changes its options.
func smallDisk(t *testing.T, options string) (dir string, remount func(flags uintptr, options string)) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("cargo-test", dir, "tmpfs", 0, options); err != nil {
		if slices.Contains(strings.Split(os.Getenv("CARGO_TEST_REQUIRE"), ","), "loop") { // which mounts, too
			t.Fatal(err)
		}
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir, func(flags uintptr, options string) {
		t.Helper()
		if err := syscall.Mount("cargo-test", dir, "tmpfs", syscall.MS_REMOUNT|flags, options); err != nil {
			t.Fatal(err)
		}
	}
}

// broken checks that nothing can be stored for want of errno, that what was
// stored is still there, and that nothing is left of the attempts.
func broken(t *testing.T, s *artifact.Store, dir string, errno syscall.Errno) {
	t.Helper()
	large := strings.Repeat("large ", 200_000)
	_, putErr := s.Put(t.Context(), artifact.Meta{Key: key("v1")}, artifact.PutOptions{}, content(large))
	logErr := s.PutLog(t.Context(), build.NewID(), 1, strings.NewReader(large), int64(len(large)))
	for _, err := range []error{putErr, logErr} {
		if !errors.Is(err, artifact.ErrUnavailable) || !errors.Is(err, errno) {
			t.Errorf("error %v, want ErrUnavailable with %v", err, errno)
		}
	}
	m, err := s.Lookup(t.Context(), key("v1").Slot())
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, s, m); got != "old" {
		t.Errorf("the slot holds %d bytes", len(got))
	}
	if left := unnamedFiles(t, dir); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func unnamedFiles(t *testing.T, dir string) (left []string) {
	t.Helper()
	for _, sub := range []string{"blobs", "meta", "logs"} {
		for _, name := range files(t, filepath.Join(dir, sub)) {
			if strings.HasPrefix(name, ".tmp-") {
				left = append(left, name)
			}
		}
	}
	return left
}

// A disk that was full or read-only is used again once it is not, without the
// store being opened anew.
func TestStoreHealsWithItsDisk(t *testing.T) {
	disk, remount := smallDisk(t, "size=1m")
	dir := filepath.Join(disk, "storage")
	s, err := artifact.Open(dir, artifact.Options{})
	if err != nil {
		t.Fatal(err)
	}
	store := func(text string) {
		t.Helper()
		if _, err := s.Put(t.Context(), artifact.Meta{Key: key("v1")}, artifact.PutOptions{}, content(text)); err != nil {
			t.Fatal(err)
		}
	}
	store("old")
	broken(t, s, dir, syscall.ENOSPC)
	remount(0, "size=4m")
	store(strings.Repeat("large ", 200_000))
	store("old")
	remount(syscall.MS_RDONLY, "size=4m")
	broken(t, s, dir, syscall.EROFS)
	if _, err := artifact.Open(dir, artifact.Options{}); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("Open on a disk that is read-only = %v", err)
	}
	remount(0, "size=4m")
	store("new")
	verify(t, s, dir, 0)
}

// Without descriptors nothing is stored or found, but nothing is believed to be
// missing either.
func TestStoreHealsWithItsDescriptors(t *testing.T) {
	s, dir := openStore(t)
	id := build.NewID()
	m, err := s.Put(t.Context(), artifact.Meta{Key: key("v1")}, artifact.PutOptions{}, content("old"))
	if err := errors.Join(err, s.PutLog(t.Context(), id, 1, strings.NewReader("log"), 3)); err != nil {
		t.Fatal(err)
	}
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	limited := func(n uint64) {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: n, Max: before.Max}); err != nil {
			t.Fatal(err)
		}
	}
	defer limited(before.Cur)
	limited(3) // there are more than that open already
	_, lookupErr := s.Lookup(t.Context(), m.Key.Slot())
	_, openErr := s.Open(t.Context(), m)
	_, _, logErr := s.OpenLog(t.Context(), id)
	_, putErr := s.Put(t.Context(), artifact.Meta{Key: key("v1")}, artifact.PutOptions{}, content("new"))
	var metasErr error
	for _, metasErr = range s.Metas(t.Context()) {
		break
	}
	limited(before.Cur)
	for name, err := range map[string]error{"Lookup": lookupErr, "Open": openErr, "OpenLog": logErr, "Put": putErr, "Metas": metasErr} {
		if !errors.Is(err, artifact.ErrUnavailable) || !errors.Is(err, syscall.EMFILE) || errors.Is(err, artifact.ErrNotFound) {
			t.Errorf("%s = %v, want ErrUnavailable with %v", name, err, syscall.EMFILE)
		}
	}
	if _, err := s.Put(t.Context(), artifact.Meta{Key: key("v1")}, artifact.PutOptions{}, content("new")); err != nil {
		t.Error(err)
	}
	verify(t, s, dir, 0)
}

// An answer that has grown old while others had the lock is asked for again.
func TestStoreConfirmsAgain(t *testing.T) {
	s, dir := openStore(t)
	if _, err := s.Put(t.Context(), artifact.Meta{Key: key("v1")}, artifact.PutOptions{}, content("old")); err != nil {
		t.Fatal(err)
	}
	lost := errors.New("lost")
	asked := 0
	_, err := s.Put(t.Context(), artifact.Meta{Key: key("v1")}, artifact.PutOptions{Confirm: func(context.Context) error {
		if asked++; asked > 1 {
			return lost
		}
		lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX)
		time.AfterFunc(1100*time.Millisecond, func() { lock.Close() }) // longer than an answer is good for
		return err
	}}, content("new"))
	if !errors.Is(err, lost) || asked != 2 {
		t.Errorf("Put = %v, asked %d times", err, asked)
	}
	m, err := s.Lookup(t.Context(), key("v1").Slot())
	if err != nil || read(t, s, m) != "old" {
		t.Errorf("the slot holds %+v, %v", m, err)
	}
}

// A log's file that makes no sense is not served, and replaced by the next.
func TestStoreMendsLogs(t *testing.T) {
	for _, text := range []string{"", "{", `{"version":1,"attempt":3}`, `{"version":2,"attempt":3}` + "\n", strings.Repeat(" ", 200) + "\n", "{\"line\":1}\n"} {
		s, dir := openStore(t)
		id := build.NewID()
		put := func() {
			t.Helper()
			if err := s.PutLog(t.Context(), id, 1, strings.NewReader("log"), 3); err != nil {
				t.Fatal(err)
			}
		}
		put()
		if err := os.WriteFile(filepath.Join(dir, "logs", string(id[:2]), string(id)+".jsonl"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.OpenLog(t.Context(), id); !errors.Is(err, artifact.ErrCorrupt) || !errors.Is(err, artifact.ErrNotFound) {
			t.Errorf("%q: OpenLog = %v", text, err)
		}
		put()
		f, size, err := s.OpenLog(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(f)
		f.Close()
		if string(got) != "log" || size != 3 || err != nil {
			t.Errorf("%q: mended, it reads %q, %d bytes, %v", text, got, size, err)
		}
	}
}

// What is served from a file can be sent by the kernel.
func TestStoreOpensFiles(t *testing.T) {
	s, _ := openStore(t)
	m, err := s.Put(t.Context(), artifact.Meta{Key: key("v1")}, artifact.PutOptions{}, content("hello"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.Open(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, ok := f.(*os.File); !ok {
		t.Errorf("Open returns a %T", f)
	}
}
