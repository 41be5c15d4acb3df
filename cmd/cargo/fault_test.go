package main

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

// A faulty is a loop in which something that a server needs is missing for a
// while. Nothing is killed, so every build must end well.
type faulty struct {
	*loop
	*server
	data string
}

func newFaulty(t *testing.T, engine, data string, args ...string) *faulty {
	t.Helper()
	if testing.Short() {
		t.Skip("it takes half a minute")
	}
	l := newLoop(t, 1)
	s := newServer(t, engine, data, l.host, append([]string{"--concurrency", "4", "--address-rate", "0", "--log-level", "warn"}, args...)...)
	l.exclusive.Store(true)
	url := s.url // servers change theirs when they start again
	l.urls = func() []string { return []string{url} }
	l.order()
	f := &faulty{l, s, data}
	f.wantProgress("the start")
	return f
}

// wantProgress waits until a build has ended that is asked for now.
func (f *faulty) wantProgress(after string) {
	f.loop.t.Helper()
	began := time.Now()
	probe := &entry{order: f.newOrder(int(f.number.Add(1)))}
	probe.canceled = false
	f.clients.Go(func() { f.see(f.loop.t.Context(), probe) })
	until(f.loop.t, "a build ends after "+after, func() bool {
		f.wantAlive()
		for _, e := range f.accepted() {
			if e.n == probe.n && e.ended.ID != "" {
				return true
			}
		}
		return false
	})
	f.loop.t.Logf("a new build took %v after %s", time.Since(began).Round(100*time.Millisecond), after)
}

// wantAlive ends the test if the server has ended.
func (f *faulty) wantAlive() {
	f.loop.t.Helper()
	// The program of a process that has ended and was not waited for is gone.
	if _, err := os.Stat(filepath.Join("/proc", strconv.Itoa(f.cmd.Process.Pid), "exe")); err != nil {
		f.loop.t.Fatal("the server has ended")
	}
}

// wantRefusals asks for builds until it has been told to come again n times. The
// clients may all be waiting for builds by then.
func (f *faulty) wantRefusals(n int) {
	t := f.loop.t
	t.Helper()
	f.loop.host.Repository("probe/app").Commit("main", gitsrctest.Files(map[string]string{"Makefile": "all:\n\techo x > out\n"}))
	until(t, "somebody gets 503 with Retry-After", func() bool {
		f.wantAlive()
		resp, err := http.Post(f.url+"/git.test/probe/app/linux/amd64/main?rebuild=1", "", nil)
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		if resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != "" {
			n--
		}
		return n <= 0
	})
}

// end has all builds end, and checks them and what is left.
func (f *faulty) end() {
	f.loop.t.Helper()
	f.finish()
	f.checkAll()
	for _, e := range f.accepted() {
		if e.ended.Result() == string(build.ReasonLost) {
			f.problem("build %s is lost, and no worker was", e.id)
		}
	}
	f.wantIdle(f.url)
	wantNothingLeft(f.loop.t, f.data)
	f.wantKept(f.data)
	if code := f.stop(); code != 0 {
		f.problem("SIGTERM: exit status %d", code)
	}
	f.wantSane(f.stderr.String())
	wantInNoFile(f.loop.t, f.data, f.loop.token)
}

// What was accepted outlives a disk that fills up, what cannot be is refused,
// and the server goes on as soon as there is room.
func TestDiskFills(t *testing.T) {
	t.Parallel()
	disk := smallDisk(t)
	f := newFaulty(t, "containerd", filepath.Join(disk, "data"), "--disk", "32MiB", "--min-free", "1MiB")
	f.logsBreak = true // what a build says while the disk is full cannot be kept
	ctx, stop := context.WithCancel(t.Context())
	var filling sync.WaitGroup
	filler := filepath.Join(disk, "filler")
	filling.Go(func() {
		for ; ctx.Err() == nil; pause(ctx, 20*time.Millisecond) { // what ends makes room again
			if err := fillUp(filler); !errors.Is(err, syscall.ENOSPC) {
				f.problem("fill the disk: %v", err)
			}
		}
	})
	f.wantRefusals(5)
	pause(t.Context(), 3*time.Second)
	stop()
	filling.Wait()
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	f.wantProgress("there is room again")
	f.end()
}

// smallDisk mounts a file system of its own.
func smallDisk(t *testing.T) string {
	t.Helper()
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 256<<20); err != nil {
		t.Fatal(err)
	}
	require(t, "loop", command("mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", image))
	require(t, "loop", command("mount", "-o", "loop", image, dir))
	t.Cleanup(func() {
		if err := command("umount", dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// fillUp appends to a file until that fails, at last byte by byte.
func fillUp(name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, size := range []int{1 << 20, 4 << 10, 1} {
		for block := make([]byte, size); err == nil; {
			_, err = f.Write(block)
		}
		if size > 1 && errors.Is(err, syscall.ENOSPC) {
			err = nil
		}
	}
	return err
}

// The same where what a server keeps has become read-only. A file system on
// which files are open for writing cannot be made so by mount; see readOnly.
func TestDiskReadOnly(t *testing.T) {
	t.Parallel()
	disk := smallDisk(t)
	f := newFaulty(t, "containerd", filepath.Join(disk, "data"), "--disk", "32MiB", "--min-free", "1MiB")
	f.logsBreak = true // what a build says meanwhile cannot be kept
	back := f.readOnly()
	f.wantRefusals(3)
	pause(t.Context(), 3*time.Second)
	back()
	f.wantProgress("the disk can be written again")
	f.end()
}

// readOnly makes what the server keeps read-only, until back is called: what it
// opens by a read-only mount, what it holds open by the flag that makes a file
// immutable. The disks of builds stay as they are.
func (f *faulty) readOnly() (back func()) {
	t := f.loop.t
	var undo []func()
	back = func() {
		for _, u := range slices.Backward(undo) {
			u()
		}
		undo = nil
	}
	t.Cleanup(func() { back() })
	for _, name := range []string{"queue", "logs", "storage", "cache"} {
		dir := filepath.Join(f.data, name)
		f.immutable(dir, true)
		undo = append(undo, func() { f.immutable(dir, false) })
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		undo = append(undo, func() {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
	}
	return back
}

const immutableFlag = 0x10 // FS_IMMUTABLE_FL of linux/fs.h

// immutable sets or clears the flag on the files below dir.
func (f *faulty) immutable(dir string, on bool) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil // it has gone, or is no file
		}
		file, err := os.Open(path)
		if err != nil {
			return nil
		}
		defer file.Close()
		flags, err := unix.IoctlGetInt(int(file.Fd()), unix.FS_IOC_GETFLAGS)
		if err == nil {
			if flags &^= immutableFlag; on {
				flags |= immutableFlag
			}
			err = unix.IoctlSetPointerInt(int(file.Fd()), unix.FS_IOC_SETFLAGS, flags)
		}
		if err != nil {
			f.problem("set the flags of %s: %v", path, err)
		}
		return nil
	})
}

// A server that has no file descriptors left for a while loses nothing, and
// blames nobody's build for that.
func TestOutOfFileDescriptors(t *testing.T) {
	t.Parallel()
	conn, err := net.Dial("unix", defaultContainerd)
	require(t, "containerd", err)
	_ = conn.Close()
	f := newFaulty(t, "containerd", t.TempDir())
	var usual unix.Rlimit
	limit := func(to, old *unix.Rlimit) {
		t.Helper()
		if err := unix.Prlimit(f.cmd.Process.Pid, unix.RLIMIT_NOFILE, to, old); err != nil {
			t.Fatal(err)
		}
	}
	limit(nil, &usual)
	for _, held := range []time.Duration{time.Second, 8 * time.Second} { // shorter and longer than a build is tried again
		limit(&unix.Rlimit{Cur: 12, Max: usual.Max}, nil)
		pause(t.Context(), held)
		limit(&usual, nil)
		f.wantProgress("there are file descriptors again")
	}
	f.end()
}

// privateEngines starts engines of our own, and returns what starts, stops and
// asks for them.
func privateEngines(t *testing.T, engine string) (root string, engines func(args ...string)) {
	t.Helper()
	for _, program := range map[string][]string{"containerd": {"containerd", "ctr"}, "docker": {"containerd", "ctr", "dockerd", "curl"}}[engine] {
		_, err := exec.LookPath(program)
		require(t, engine, err)
	}
	if os.Getuid() != 0 {
		require(t, engine, errors.New("it takes root to start one"))
	}
	// Not t.TempDir: sockets have short names, and the root of a user namespace must get through.
	root, err := os.MkdirTemp("", "cargo-fault-") //nolint:usetesting // for the reasons above
	if err == nil {
		err = os.Chmod(root, 0o711)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unmountBelow(t, root)
		if err := os.RemoveAll(root); err != nil {
			t.Error(err)
		}
	})
	engines = func(args ...string) {
		t.Helper()
		cmd := exec.Command("../../scripts/engines", args...)
		cmd.Env = append(os.Environ(), "CARGO_ENGINES_ROOT="+root)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("scripts/engines %q: %v\n%s", args, err, out)
		}
	}
	t.Cleanup(func() { engines("down") })
	engines("up", engine)
	return root, engines
}

// unmountBelow unmounts what an engine that was killed has left.
func unmountBelow(t *testing.T, dir string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(mounts) {
		if f := bytes.Fields(line); len(f) > 4 && bytes.HasPrefix(f[4], []byte(dir+"/")) {
			if err := unix.Unmount(string(f[4]), unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
				t.Errorf("unmount %s: %v", f[4], err)
			}
		}
	}
}

// containerd is killed under builds: those that run go on, in the same
// container, and none fails.
func TestContainerdKilled(t *testing.T) {
	t.Parallel()
	root, engines := privateEngines(t, "containerd")
	f := newFaulty(t, "containerd", t.TempDir(), "--containerd-address", filepath.Join(root, "containerd.sock"))
	of := owners{ownerKey(f.data): true}
	for range 3 {
		begun := map[build.ID]bool{}
		until(t, "a command of a build runs", func() bool {
			of.builds(func(id build.ID, cgroup string) {
				if len(lives(cgroup)) > 0 && f.begun(id) == 1 {
					begun[id] = true
				}
			})
			return len(begun) > 0
		})
		text, err := os.ReadFile(filepath.Join(root, "run/containerd.pid"))
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(string(bytes.TrimSpace(text)))
		if err == nil {
			err = syscall.Kill(pid, syscall.SIGKILL)
		}
		if err != nil {
			t.Fatal(err)
		}
		pause(t.Context(), time.Second)
		engines("up", "containerd")
		f.wantProgress("containerd is there again")
		for id := range begun {
			until(t, "build "+string(id)+" ends", func() bool {
				for _, e := range f.accepted() {
					if e.id == id {
						return e.ended.ID != ""
					}
				}
				return false
			})
			if n := f.begun(id); n != 1 {
				f.problem("build %s ran when containerd was killed, and its command began %d times", id, n)
			}
		}
	}
	f.end()
}

// begun is how often the command of a build has begun, as its log has it.
func (f *faulty) begun(id build.ID) int {
	for _, e := range f.accepted() {
		if e.id == id {
			a, _ := f.loop.ask(f.loop.t.Context(), http.MethodGet, "/builds/"+string(id)+"/logs", e.token, http.StatusOK)
			return bytes.Count(a.body, []byte(`"begin `))
		}
	}
	return 0
}

// dockerd is started anew under builds, which ends their containers: they are
// built again, on our account.
func TestDockerRestarted(t *testing.T) {
	t.Parallel()
	root, engines := privateEngines(t, "docker")
	f := newFaulty(t, "docker", t.TempDir(), "--docker-host", "unix://"+filepath.Join(root, "docker.sock"))
	engines("down", "docker")
	engines("up", "docker")
	f.wantProgress("Docker is there again")
	f.end()
}
