package worker_test

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/worker"
)

func TestSweep(t *testing.T) {
	t.Parallel()
	needRoot(t)
	dir, outside := t.TempDir(), t.TempDir()
	kept := filepath.Join(outside, "kept")
	id := func() string { return filepath.Join(dir, string(build.NewID())) }
	full, file, link, empty := id(), id(), id(), id()
	for _, err := range []error{
		os.WriteFile(kept, nil, 0o600),
		os.MkdirAll(filepath.Join(full, "go/pkg/read-only"), 0o755),
		os.WriteFile(filepath.Join(full, "go/pkg/read-only/file"), nil, 0o400),
		os.Symlink(outside, filepath.Join(full, "go/pkg/link")),
		os.Symlink(outside, filepath.Join(full, "go/out")),
		syscall.Mkfifo(filepath.Join(full, "go/pkg/fifo"), 0o600),
		os.Chmod(filepath.Join(full, "go/pkg/read-only"), 0o500),
		os.WriteFile(file, nil, 0o600),
		os.Symlink(outside, link),
		os.Mkdir(empty, 0o700),
		os.MkdirAll(filepath.Join(dir, "lost+found", "x"), 0o700),
		os.Mkdir(filepath.Join(dir, strings.ToUpper(strings.Repeat("a", 32))), 0o700),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3000 { // more than are read at once
		if err := os.MkdirAll(filepath.Join(full, "go", "many", strconv.Itoa(i), "x"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := worker.Sweep(dir); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range left {
		names = append(names, e.Name())
	}
	if want := []string{strings.Repeat("A", 32), "lost+found"}; !slices.Equal(names, want) {
		t.Errorf("left: %q, want %q", names, want)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Errorf("a link was followed: %v", err)
	}
	if err := worker.Sweep(filepath.Join(dir, "missing")); err == nil {
		t.Error("Sweep of a directory that is not there says nothing")
	}
}

// A build can put more directories into each other than a process may have
// files open. Not parallel: the limit is the whole process's.
func TestSweepDeepTree(t *testing.T) {
	dir := t.TempDir()
	top := filepath.Join(dir, string(build.NewID()))
	if err := os.Mkdir(top, 0o700); err != nil {
		t.Fatal(err)
	}
	deepest, err := os.OpenRoot(top)
	for range 3000 {
		if err == nil {
			err = deepest.Mkdir("d", 0o700)
		}
		if err != nil {
			t.Fatal(err)
		}
		var next *os.Root
		next, err = deepest.OpenRoot("d")
		deepest.Close()
		deepest = next
	}
	deepest.Close()

	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	low := limit
	low.Cur = 500
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	err = worker.Sweep(dir)
	if restored := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); restored != nil {
		t.Fatal(restored)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(top); err == nil {
		t.Error("it is still there")
	}
}
