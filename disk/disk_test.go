package disk_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/monochromegane/cargo/disk"
)

const mib = 1 << 20

// need skips the test, or fails it where CARGO_TEST_REQUIRE names loop.
func need(t testing.TB, why error) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("CARGO_TEST_REQUIRE"), ","), "loop") {
		t.Fatal(why)
	}
	t.Skip(why)
}

// needMounts is for tests that must be allowed to mount.
func needMounts(t testing.TB) {
	t.Helper()
	dir := t.TempDir()
	err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4k")
	if err == nil {
		err = unix.Unmount(dir, 0)
	}
	if err != nil {
		need(t, fmt.Errorf("no mounts here: %w", err))
	}
}

// open opens disks of the kind that is wanted, which is Loop if nothing is said.
func open(t testing.TB, o disk.Options) *disk.Disks {
	t.Helper()
	needMounts(t)
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	d, err := disk.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if o.Kind == "" && d.Kind() != disk.Loop {
		need(t, errors.New(d.Weakness()))
	}
	return d
}

func makeDisk(t testing.TB, disks *disk.Disks) *disk.Disk {
	t.Helper()
	d, err := disks.Make(t.Context(), "build")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// fill writes to a file until that fails and returns how many bytes fitted.
func fill(t testing.TB, path string) (n int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	chunk := bytes.Repeat([]byte("full"), 64<<10)
	for err == nil {
		var m int
		m, err = f.Write(chunk)
		n += int64(m)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("after %d bytes: %v, want no space left", n, err)
	}
	return n
}

// left is what there is of mounts, loop devices and files in dir.
func left(t testing.TB, dir string) (found []string) {
	t.Helper()
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	found = disk.ParseMounts(info, dir)
	devices, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range devices {
		file, err := os.ReadFile(d)
		if err == nil && strings.HasPrefix(string(file), dir+"/") {
			found = append(found, d)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		found = append(found, e.Name())
	}
	return found
}

// eventually fails the test if what does not become true.
func eventually(t testing.TB, message string, what func() bool) {
	t.Helper()
	for start := time.Now(); !what(); {
		if time.Since(start) > 20*time.Second {
			t.Fatal(message)
		}
		time.Sleep(time.Millisecond)
	}
}

// wantNothingLeft allows for others that look at a device for a moment.
func wantNothingLeft(t testing.TB, dir string) {
	t.Helper()
	eventually(t, fmt.Sprintf("left: %q", left(t, dir)), func() bool { return len(left(t, dir)) == 0 })
}

func TestOpenFindsTheBestKind(t *testing.T) {
	t.Parallel()
	disks := open(t, disk.Options{Limit: 16 * mib})
	if disks.Kind() != disk.Loop || disks.Weakness() != "" {
		t.Errorf("kind %s with weakness %q; want loop and none", disks.Kind(), disks.Weakness())
	}
	if watch := open(t, disk.Options{Kind: disk.Watch}); watch.Kind() != disk.Watch || watch.Weakness() == "" {
		t.Errorf("kind %s with weakness %q", watch.Kind(), watch.Weakness())
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, o := range map[string]disk.Options{
		"no directory": {},
		"small limit":  {Dir: dir, Limit: mib},
		"other kind":   {Dir: dir, Kind: "tmpfs"},
	} {
		if _, err := disk.Open(t.Context(), o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestMakeRefuses(t *testing.T) {
	t.Parallel()
	disks := open(t, disk.Options{Limit: 16 * mib})
	makeDisk(t, disks)
	for _, name := range []string{"", "..", "a/b", "A", ".img", strings.Repeat("a", 65), "build"} {
		if _, err := disks.Make(t.Context(), name); err == nil {
			t.Errorf("%q: no error", name)
		}
	}
}

func TestLimit(t *testing.T) {
	t.Parallel()
	const limit = 64 * mib
	d := makeDisk(t, open(t, disk.Options{Limit: limit}))
	if d.Full() {
		t.Error("a new disk is full")
	}
	if used, of := d.Usage(); used > mib || of != limit {
		t.Errorf("a new disk uses %d of %d bytes", used, of)
	}
	if n := fill(t, filepath.Join(d.Dir(), "file")); n > limit || n < limit*8/10 {
		t.Errorf("%d bytes fit on a disk of %d", n, limit)
	}
	if used, of := d.Usage(); used > limit || used < limit*8/10 || of != limit {
		t.Errorf("a full disk uses %d of %d bytes", used, of)
	}
	var st unix.Stat_t
	if err := unix.Stat(d.Dir(), &st); err != nil {
		t.Fatal(err)
	}
	sectors, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/size", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.TrimSpace(string(sectors)), fmt.Sprint(limit/512); got != want {
		t.Errorf("the device has %s sectors, want %s", got, want)
	}
	select {
	case <-d.Exceeded():
		t.Error("a loop disk is exceeded")
	default:
	}
}

// Full only looks after the file is gone, so it is the goroutine that saw it.
func TestFullIsSticky(t *testing.T) {
	t.Parallel()
	d := makeDisk(t, open(t, disk.Options{Limit: 64 * mib}))
	file := filepath.Join(d.Dir(), "file")
	eventually(t, "never full", func() bool {
		fill(t, file)
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		return d.Full()
	})
	if used, _ := d.Usage(); used > mib || !d.Full() {
		t.Errorf("%d bytes used, full: %v", used, d.Full())
	}
}

func TestFileLimit(t *testing.T) {
	t.Parallel()
	d := makeDisk(t, open(t, disk.Options{Limit: 16 * mib}))
	for n := range 10_000 {
		err := os.WriteFile(filepath.Join(d.Dir(), fmt.Sprint(n)), nil, 0o600)
		if err == nil {
			continue
		}
		if !errors.Is(err, unix.ENOSPC) || n < 5000 {
			t.Errorf("file %d: %v", n, err)
		}
		if !d.Full() {
			t.Error("a disk without inodes is not full")
		}
		return
	}
	t.Error("no end of files")
}

// A million files do not fit, whatever the limit is, but a big build's do.
func TestInodes(t *testing.T) {
	t.Parallel()
	for limit, want := range map[int64][2]uint64{0: {600_000, 700_000}, 100 << 30: {700_000, 999_000}} {
		d := makeDisk(t, open(t, disk.Options{Limit: limit}))
		var s unix.Statfs_t
		if err := unix.Statfs(d.Dir(), &s); err != nil {
			t.Fatal(err)
		}
		if s.Files < want[0] || s.Files > want[1] {
			t.Errorf("limit %d: room for %d files", limit, s.Files)
		}
	}
}

func TestMountFlags(t *testing.T) {
	t.Parallel()
	d := makeDisk(t, open(t, disk.Options{Limit: 16 * mib}))
	o, err := d.Overlay("cache", []string{t.TempDir()}, 1000, 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{d.Dir(), o.Dir} {
		var s unix.Statfs_t
		if err := unix.Statfs(dir, &s); err != nil {
			t.Fatal(err)
		}
		const want = unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOATIME
		if s.Flags&want != want {
			t.Errorf("%s: flags %#x", dir, s.Flags)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(d.Dir(), &st); err != nil || st.Mode != unix.S_IFDIR|0o700 || st.Uid != 0 || st.Gid != 0 {
		t.Errorf("mode %o of %d:%d, %v", st.Mode, st.Uid, st.Gid, err)
	}
	entries, err := os.ReadDir(d.Dir())
	if err != nil || len(entries) != 1 || entries[0].Name() != ".overlay" {
		t.Errorf("on the disk: %v, %v", entries, err)
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	disks := open(t, disk.Options{Dir: dir, Limit: 64 * mib})
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			for range 3 {
				d, err := disks.Make(t.Context(), fmt.Sprint("build-", i))
				if err != nil {
					t.Error(err)
					return
				}
				file := filepath.Join(d.Dir(), "mine")
				_, err = os.Stat(file)
				if !errors.Is(err, os.ErrNotExist) {
					t.Errorf("a new disk is not empty: %v", err)
				}
				if err := errors.Join(os.WriteFile(file, make([]byte, mib), 0o600), d.Close()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	wantNothingLeft(t, dir)
}

func TestClose(t *testing.T) {
	t.Parallel()
	for _, kind := range []disk.Kind{disk.Loop, disk.Watch} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			// The kernel escapes such names when it tells of mounts.
			dir := filepath.Join(t.TempDir(), "a b\tc\nd\\e,f:g#h")
			d := makeDisk(t, open(t, disk.Options{Dir: dir, Limit: 64 * mib, Kind: kind}))
			for _, name := range []string{"a", "b"} {
				o, err := d.Overlay(name, []string{t.TempDir()}, 1000, 1000)
				if err != nil {
					t.Fatal(err)
				}
				nest(t, o.Dir, 100)
			}
			nest(t, d.Dir(), 3000)
			for range 2 {
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
			}
			wantNothingLeft(t, dir)
			if _, err := d.Overlay("c", []string{dir}, 0, 0); err == nil {
				t.Error("an overlay on a closed disk")
			}
		})
	}
}

// A build can put more directories into each other than a process may have
// files open. Not parallel: the limit is the whole process's.
func TestCloseDeepTree(t *testing.T) {
	dir := t.TempDir()
	d := makeDisk(t, open(t, disk.Options{Dir: dir, Kind: disk.Watch}))
	nest(t, d.Dir(), 3000)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	low := limit
	low.Cur = 500
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	err := d.Close()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Error(err)
	}
	wantNothingLeft(t, dir)
}

// nest makes n directories in each other.
func nest(t testing.TB, dir string, n int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for range n {
		if err != nil {
			t.Fatal(err)
		}
		if err = unix.Mkdirat(fd, "d", 0o700); err == nil {
			var next int
			next, err = unix.Openat(fd, "d", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			unix.Close(fd)
			fd = next
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
}

// A process that outlives its build cannot keep the disk from going away.
func TestCloseInUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var log bytes.Buffer
	disks := open(t, disk.Options{Dir: dir, Limit: 16 * mib, Log: slog.New(slog.NewTextHandler(&log, nil))})
	d := makeDisk(t, disks)
	f, err := os.Create(filepath.Join(d.Dir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "level=WARN") {
		t.Errorf("log: %q", log.String())
	}
	if _, err := f.Write([]byte("x")); !errors.Is(err, unix.EIO) {
		t.Errorf("write to a closed disk: %v", err)
	}
	f.Close()
	wantNothingLeft(t, dir)
}
