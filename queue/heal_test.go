package queue_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/queue"
)

// mount mounts for one test, or skips it where this user may not; who requires
// loop devices has the right.
func mount(t *testing.T, source, target, kind string, flags uintptr, data string) {
	t.Helper()
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		if strings.Contains(","+os.Getenv("CARGO_TEST_REQUIRE")+",", ",loop,") {
			t.Fatalf("mount: %v", err)
		}
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
}

// embeddedLoad is a load on a queue in dir.
func embeddedLoad(t *testing.T, dir string) (*load, *queue.Queue) {
	t.Helper()
	q := open(t, queue.Options{Dir: dir, Limit: 1 << 20})
	l := newLoad(t)
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() {
		cancel()
		l.end()
		l.works.Wait()
	})
	for range 4 {
		l.submit(q)
	}
	for range 2 {
		l.work(ctx, q)
	}
	return l, q
}

// breaks waits until the queue says that it is broken, or is whole again.
func breaks(t *testing.T, q *queue.Queue, broken bool) {
	t.Helper()
	for ctx := within(t); errors.Is(q.Err(), queue.ErrBroken) != broken; time.Sleep(time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatalf("Err = %v", q.Err())
		}
	}
}

// A disk fills up under load and is freed, twice: nothing that was accepted is
// lost, and the queue goes on without being opened again.
func TestDiskFillsUp(t *testing.T) {
	dir := t.TempDir()
	mount(t, "tmpfs", dir, "tmpfs", 0, "size=12m,mode=0700")
	l, q := embeddedLoad(t, filepath.Join(dir, "queue"))
	held := holdOne(t, q)
	l.grows(20)
	for range 2 {
		fill(t, filepath.Join(dir, "fill"))
		breaks(t, q, true)
		if _, err := q.Submit(t.Context(), queue.Submission{Build: newBuild("broken")}); !errors.Is(err, queue.ErrBroken) {
			t.Errorf("Submit = %v, want ErrBroken", err)
		}
		soon, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		if err := held.Confirm(soon); err != nil && !errors.Is(err, queue.ErrBroken) {
			t.Errorf("Confirm = %v, want ErrBroken", err) // or none: another stream may have failed
		}
		cancel()
		if err := os.Remove(filepath.Join(dir, "fill")); err != nil {
			t.Fatal(err)
		}
		breaks(t, q, false)
		l.grows(20)
	}
	if err := held.Confirm(t.Context()); err != nil {
		t.Errorf("Confirm = %v", err)
	}
	finish(t, held, build.Succeeded)
	l.settle(q)
	if l.lost.Load() > 0 {
		t.Errorf("%d leases were lost", l.lost.Load())
	}
}

// fill writes until there is no room, and takes what becomes free for a moment.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for chunk := make([]byte, 64<<10); len(chunk) > 0; {
		if _, err := f.Write(chunk); errors.Is(err, syscall.ENOSPC) {
			chunk = chunk[:len(chunk)/2]
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// A file system becomes read-only and is made writable again.
func TestDiskTurnsReadOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "queue")
	l, q := embeddedLoad(t, dir)
	l.grows(20)
	mount(t, dir, dir, "", unix.MS_BIND, "")
	mount(t, "", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
	breaks(t, q, true)
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	breaks(t, q, false)
	l.grows(20)
	l.settle(q)
}

// The kernel forbids a write, which some of the server answers by switching its
// store off.
func TestKernelForbidsAWrite(t *testing.T) {
	dir := t.TempDir()
	l, q := embeddedLoad(t, dir)
	l.grows(20)
	immutable := func(flags int) error {
		f, err := os.Open(filepath.Join(dir, "jetstream", "$G", "streams", "tokens", "msgs"))
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags)
	}
	const flag = 0x10 // FS_IMMUTABLE_FL
	if err := immutable(flag); err != nil {
		t.Skipf("make a directory immutable: %v", err)
	}
	t.Cleanup(func() { _ = immutable(0) })
	breaks(t, q, true)
	if err := immutable(0); err != nil {
		t.Fatal(err)
	}
	breaks(t, q, false)
	l.grows(20)
	l.settle(q)
}

// childFiles builds while the process is short of file descriptors.
func childFiles(dir string) error {
	q, err := queue.Open(context.Background(), queue.Options{Dir: dir, Worker: "w", Limit: 1 << 20})
	if err != nil {
		return err
	}
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return err
	}
	limit := func(n uint64) error {
		return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: min(n, files.Max), Max: files.Max})
	}
	say("ready", "-", "-")
	ended := make(chan error, 1)
	go func() {
		for i := range 400 {
			if err := childLife(q, fmt.Sprint("v", i)); err != nil {
				ended <- err
				return
			}
		}
		ended <- nil
	}()
	for range 2 {
		if err := limit(8); err != nil { // fewer than are open: none can be opened
			return err
		}
		time.Sleep(time.Second) // the shortage
		if err := limit(files.Cur); err != nil {
			return err
		}
		time.Sleep(500 * time.Millisecond)
	}
	if err := <-ended; err != nil {
		return err
	}
	say("done", "-", q.Err() == nil)
	return q.Close()
}

// childLife submits a build and builds it, for as long as that takes.
func childLife(q *queue.Queue, version string) error {
	b := newBuild(version)
	for {
		got, err := q.Submit(context.Background(), queue.Submission{Build: b, Sealed: []byte("sealed")})
		if err == nil && got.ID == b.ID {
			break
		}
		if err == nil || !errors.Is(err, queue.ErrBroken) && !errors.Is(err, queue.ErrUnavailable) {
			return fmt.Errorf("submit: %s, %w", got.ID, err)
		}
		say("refused", b.ID, "-")
		time.Sleep(10 * time.Millisecond)
	}
	say("accepted", b.ID, "-")
	c, err := q.Claim(context.Background())
	if err != nil {
		return err
	}
	if c.Build().ID != b.ID || string(c.Sealed()) != "sealed" {
		return fmt.Errorf("claimed %s, sealed %q; want %s", c.Build().ID, c.Sealed(), b.ID)
	}
	done := c.Build()
	done.State = build.Succeeded
	for {
		err := c.Finish(context.Background(), done)
		if err == nil {
			say("finished", b.ID, done.State)
			return nil
		}
		if !errors.Is(err, queue.ErrBroken) && !errors.Is(err, queue.ErrUnavailable) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestOutOfFiles(t *testing.T) {
	dir := t.TempDir()
	out, err := childCommand(within(t), "files", dir).Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, tail(out))
	}
	q := open(t, queue.Options{Dir: dir})
	said := map[string]int{}
	for l := range strings.Lines(string(out)) {
		f := strings.Fields(l)
		said[f[0]]++
		if f[0] == "finished" {
			if b := get(t, q, build.ID(f[1])); b.State != build.Succeeded {
				t.Errorf("build %s is %s", f[1], b.State)
			}
		}
		if f[0] == "done" && f[2] != "true" {
			t.Error("the queue did not heal")
		}
	}
	t.Logf("the process said %v", said)
	idle(t, q)
	if said["finished"] != 400 {
		t.Errorf("%d of 400 builds finished", said["finished"])
	}
}

func tail(b []byte) []byte { return b[max(0, len(b)-2000):] }
