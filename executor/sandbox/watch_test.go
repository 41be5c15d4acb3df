package sandbox_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/monochromegane/cargo/executor/sandbox"
)

func TestWatchOutOfMemory(t *testing.T) {
	c := newCgroup(t, 16<<20, 100)
	sh := c.shell(t, `head -c 200000000 /dev/zero | tail -n 1 >/dev/null; exit 3`)
	sh.run(t)
	waitFor(t, sh.counters.OutOfMemory)
	if sh.counters.TooManyProcesses() {
		t.Error("TooManyProcesses = true")
	}
}

func TestWatchTooManyProcesses(t *testing.T) {
	c := newCgroup(t, 64<<20, 3)
	sh := c.shell(t, `for i in 1 2 3 4 5 6; do sleep 0.2 & done; wait`)
	sh.run(t)
	waitFor(t, sh.counters.TooManyProcesses)
	if sh.counters.OutOfMemory() {
		t.Error("OutOfMemory = true")
	}
}

func TestWatchNothing(t *testing.T) {
	c := newCgroup(t, 64<<20, 100)
	sh := c.shell(t, `for i in 1 2 3; do sleep 0.01 & done; wait`)
	sh.run(t)
	sh.close(t)
	if sh.counters.OutOfMemory() || sh.counters.TooManyProcesses() {
		t.Errorf("OutOfMemory = %v, TooManyProcesses = %v", sh.counters.OutOfMemory(), sh.counters.TooManyProcesses())
	}
}

// lateEnv makes TestWatchLate the watcher of the process that it names.
const lateEnv = "CARGO_SANDBOX_TEST_LATE"

// A watcher that gets no time on a processor from before the limit is hit until
// after the cgroup is gone: here because it is stopped.
func TestWatchLate(t *testing.T) {
	if pid, err := strconv.Atoi(os.Getenv(lateEnv)); err == nil {
		watchLate(t, pid)
		return
	}
	for _, tc := range []struct {
		name   string
		pids   int
		script string
		many   bool
	}{
		{"nothing", 100, "for i in 1 2 3; do sleep 0.01 & done; wait", false},
		{"processes", 3, "for i in 1 2 3 4 5 6; do sleep 0.2 & done; wait", true},
		// Not memory: the kernel logs no more than ten kills in five seconds, whoever else makes them.
	} {
		t.Run(tc.name, func(t *testing.T) {
			if f, err := os.Open("/dev/kmsg"); err != nil {
				t.Skipf("needs the kernel's log: %v", err)
			} else {
				f.Close()
			}
			c := newCgroup(t, 64<<20, tc.pids)
			sh := c.shell(t, tc.script)
			late := exec.Command(os.Args[0], "-test.run=^TestWatchLate$")
			late.Env = append(os.Environ(), fmt.Sprintf("%s=%d", lateEnv, sh.cmd.Process.Pid))
			in, err := late.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := late.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := late.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { late.Process.Kill(); late.Wait() })
			lines := bufio.NewScanner(out)
			if !lines.Scan() || lines.Text() != "watching" {
				t.Fatalf("the watcher says %q", lines.Text())
			}
			if err := late.Process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			sh.run(t)
			c.remove(t)
			if err := late.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			in.Close()
			if want := fmt.Sprint(false, tc.many); !lines.Scan() || lines.Text() != want {
				t.Errorf("OutOfMemory and TooManyProcesses = %s, want %s", lines.Text(), want)
			}
		})
	}
}

func watchLate(t *testing.T, pid int) {
	c, err := sandbox.Watch(pid)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("watching")
	io.Copy(io.Discard, os.Stdin)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	fmt.Println(c.OutOfMemory(), c.TooManyProcesses())
}

func TestWatchEndedProcess(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := sandbox.Watch(cmd.ProcessState.Pid()); err == nil {
		t.Error("Watch of a process that has ended: no error")
	}
}

// The files of cgroup v2, as a v2 host has them.
func TestWatchV2Files(t *testing.T) {
	const member = "0::/system.slice/docker-1.scope\n"
	for _, tc := range []struct {
		name, memory, pids string
		oom, many          bool
	}{
		{"quiet", "low 0\nhigh 0\nmax 12\noom 0\noom_kill 0\noom_group_kill 0\n", "max 0\n", false, false},
		{"oom", "low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\noom_group_kill 0\n", "max 0\n", true, false},
		{"pids", "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n", "max 7\n", false, true},
		{"old kernel", "low 0\nhigh 0\nmax 0\noom 2\noom_kill 2\n", "max 1\n", true, true},
		{"neither key", "low 0\n", "", false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			dir := filepath.Join(root, "system.slice/docker-1.scope")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, "memory.events"), tc.memory)
			write(t, filepath.Join(dir, "pids.events"), tc.pids)
			c, err := sandbox.WatchAt(root, []byte(member))
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			if c.OutOfMemory() != tc.oom || c.TooManyProcesses() != tc.many {
				t.Errorf("OutOfMemory = %v, TooManyProcesses = %v, want %v, %v", c.OutOfMemory(), c.TooManyProcesses(), tc.oom, tc.many)
			}
		})
	}
}

func TestMembership(t *testing.T) {
	for _, tc := range []struct{ name, member, memory, pids, memoryCgroup, pidsCgroup string }{
		{"v2", "0::/a/b\n", "/r/a/b/memory.events", "/r/a/b/pids.events", "/a/b", "/a/b"},
		{"v1", "3:cpu,cpuacct:/c\n2:pids:/p\n1:memory:/docker/m\n", "/r/memory/docker/m/memory.oom_control", "/r/pids/p/pids.events", "/docker/m", "/p"},
		{"hybrid", "9:name=systemd:/\n8:pids:/p\n4:memory:/m\n0::/\n", "/r/memory/m/memory.oom_control", "/r/pids/p/pids.events", "/m", "/p"},
		{"hybrid, v2 first", "0::/x\n8:pids:/p\n4:memory:/m", "/r/memory/m/memory.oom_control", "/r/pids/p/pids.events", "/m", "/p"},
		{"colon in the path", "0::/a:b\n", "/r/a:b/memory.events", "/r/a:b/pids.events", "/a:b", "/a:b"},
	} {
		memory, pids, memoryCgroup, pidsCgroup, err := sandbox.Membership("/r", tc.member)
		if err != nil || memory != tc.memory || pids != tc.pids || memoryCgroup != tc.memoryCgroup || pidsCgroup != tc.pidsCgroup {
			t.Errorf("%s: %q, %q, %q, %q, %v", tc.name, memory, pids, memoryCgroup, pidsCgroup, err)
		}
	}
	for _, member := range []string{"", "\n", "x", "4:memory:/m\n", "1:name=systemd:/\n"} {
		if _, _, _, _, err := sandbox.Membership("/r", member); err == nil {
			t.Errorf("%q: no error", member)
		}
	}
}

func TestLogRecords(t *testing.T) {
	const kill = "6,900,5140900,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=1,mems_allowed=0,oom_memcg=/docker/1,task_memcg=/docker/1,task=tail,pid=7,uid=0\n"
	for _, tc := range []struct {
		record        string
		refusal, kill bool
	}{
		{"6,812,5140900,-;cgroup: fork rejected by pids controller in /docker/1\n", true, false},
		{"6,812,5140900,-;cgroup: fork rejected by pids controller in /docker/1\n SUBSYSTEM=x\n", true, false},
		{"6,812,5140900,-;cgroup: fork rejected by pids controller in /docker/12\n", false, false},
		{"6,812,5140900,-;cgroup: fork rejected by pids controller in /\n", false, false},
		{kill, false, true},
		{strings.ReplaceAll(kill, "/docker/1", "/docker/12"), false, false},
		{strings.ReplaceAll(kill, "task_memcg=/docker/1", "task_memcg=/docker/2"), false, false},
		{"6,812,5140900,-;eth0: link is up\n", false, false},
		{"", false, false},
	} {
		refusal, kill := sandbox.IsRefusal([]byte(tc.record), "/docker/1"), sandbox.IsKill([]byte(tc.record), "/docker/1")
		if refusal != tc.refusal || kill != tc.kill {
			t.Errorf("%q: IsRefusal = %v, IsKill = %v", tc.record, refusal, kill)
		}
	}
}

func FuzzCount(f *testing.F) {
	f.Add("oom_kill 1\n", "oom_kill")
	f.Add("max 18446744073709551616\n", "max")
	f.Add("max -1\nmax 2", "max")
	f.Fuzz(func(t *testing.T, lines, key string) {
		n := sandbox.Count([]byte(lines), key)
		if n > 0 && !strings.Contains(lines, key) {
			t.Errorf("Count(%q, %q) = %d", lines, key, n)
		}
	})
}

func FuzzMembership(f *testing.F) {
	f.Add("0::/a\n")
	f.Add("4:memory:/m\n8:pids:/p\n")
	f.Fuzz(func(t *testing.T, member string) {
		memory, pids, _, _, err := sandbox.Membership("/r", member)
		if err == nil && (memory == "" || pids == "") {
			t.Errorf("Membership(%q) = %q, %q", member, memory, pids)
		}
	})
}

// A cgroup is a real one, made for one test.
type cgroup struct{ dirs []string }

func newCgroup(t *testing.T, memory, pids int) cgroup {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to make a cgroup")
	}
	name := fmt.Sprintf("cargo-test-%d-%d", os.Getpid(), time.Now().UnixNano())
	limits := map[string]string{
		"/sys/fs/cgroup/memory/" + name: "memory.limit_in_bytes",
		"/sys/fs/cgroup/pids/" + name:   "pids.max",
	}
	if isV2() {
		limits = map[string]string{"/sys/fs/cgroup/" + name: "memory.max"}
	}
	var c cgroup
	for dir, file := range limits {
		if err := os.Mkdir(dir, 0o755); err != nil {
			if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
				t.Skipf("cannot make a cgroup: %v", err)
			}
			t.Fatal(err)
		}
		c.dirs = append(c.dirs, dir)
		t.Cleanup(func() { os.Remove(dir) })
		value := memory
		if file == "pids.max" {
			value = pids
		}
		write(t, filepath.Join(dir, file), fmt.Sprint(value))
	}
	if isV2() {
		write(t, filepath.Join(c.dirs[0], "pids.max"), fmt.Sprint(pids))
		write(t, filepath.Join(c.dirs[0], "memory.swap.max"), "0")
	}
	return c
}

func isV2() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

func (c cgroup) remove(t *testing.T) {
	t.Helper()
	for _, dir := range c.dirs {
		// The kernel lets go of a process a moment after it could be waited for.
		waitFor(t, func() bool { return os.Remove(dir) == nil })
	}
}

type shell struct {
	cmd      *exec.Cmd
	stdin    io.WriteCloser
	counters *sandbox.Counters
	closed   bool
}

// shell starts a shell in the cgroup that waits to be told to run script, and
// watches it.
func (c cgroup) shell(t *testing.T, script string) *shell {
	t.Helper()
	s := &shell{cmd: exec.Command("sh", "-c", "read -r _; "+script)}
	var err error
	if s.stdin, err = s.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.cmd.Process.Kill(); s.cmd.Wait() })
	for _, dir := range c.dirs {
		write(t, filepath.Join(dir, "cgroup.procs"), fmt.Sprint(s.cmd.Process.Pid))
	}
	if s.counters, err = sandbox.Watch(s.cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.close(t) })
	return s
}

func (s *shell) run(t *testing.T) {
	t.Helper()
	if _, err := io.WriteString(s.stdin, "\n"); err != nil {
		t.Fatal(err)
	}
	s.cmd.Wait() // its status is not what is tested
}

func (s *shell) close(t *testing.T) {
	t.Helper()
	if s.closed {
		return
	}
	s.closed = true
	if err := s.counters.Close(); err != nil {
		t.Error(err)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("did not happen in 10 s")
		}
	}
}
