package sandbox

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// period is how often the counters are read when no event says that one of
// them has changed: cgroup v1 has no such event for a kill. It is shorter than
// what a runtime takes to remove the cgroup of an ended process.
const period = 10 * time.Millisecond

// Counters follow the memory and process limits of one cgroup.
type Counters struct {
	oom  atomic.Bool
	pids atomic.Bool

	stop *os.File // closed to make the goroutine end
	done sync.WaitGroup
}

// Watch follows the cgroup of process pid from now on, until the cgroup is
// removed or Close is called, whichever is first. The cgroup may be removed at
// any time after its last process has ended, so Watch must be called while pid
// runs. It knows cgroup v1 and v2, mounted where every distribution mounts
// them. The caller must call Close.
func Watch(pid int) (*Counters, error) {
	member, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil, err
	}
	return watch("/sys/fs/cgroup", member)
}

// watch follows the cgroup that member, the content of a /proc/PID/cgroup,
// names beneath root.
func watch(root string, member []byte) (*Counters, error) {
	memory, pids, err := eventFiles(root, member)
	if err != nil {
		return nil, err
	}
	var sources []source
	closeAll := func() {
		for _, s := range sources {
			s.file.Close()
		}
	}
	c := new(Counters)
	for _, s := range []struct {
		path string
		key  string
		seen *atomic.Bool
	}{
		{memory, "oom_kill", &c.oom},
		{pids, "max", &c.pids},
	} {
		f, err := os.Open(s.path)
		if err != nil {
			closeAll()
			return nil, err
		}
		sources = append(sources, source{f, s.key, s.seen})
	}
	stopped, stop, err := os.Pipe()
	if err != nil {
		closeAll()
		return nil, err
	}
	c.stop = stop
	c.done.Go(func() {
		defer closeAll()
		defer stopped.Close()
		follow(sources, stopped)
	})
	return c, nil
}

// OutOfMemory reports whether the kernel has killed a process of the cgroup
// for want of memory.
func (c *Counters) OutOfMemory() bool { return c.oom.Load() }

// TooManyProcesses reports whether the kernel has refused the cgroup a process
// or thread.
func (c *Counters) TooManyProcesses() bool { return c.pids.Load() }

// Close reads the counters a last time, if the cgroup is still there, and
// stops following them. What the methods report stays valid, and is final once
// Close has returned. It may be called again.
func (c *Counters) Close() error {
	err := c.stop.Close()
	c.done.Wait()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// A source is one file of "key value" lines and the counter in it that must
// stay 0.
type source struct {
	file *os.File
	key  string
	seen *atomic.Bool
}

// follow reads the sources whenever one of them changes, at least once each
// period, and a last time after the other end of stopped is closed. It returns
// when the cgroup is gone, too.
func follow(sources []source, stopped *os.File) {
	fds := []unix.PollFd{{Fd: int32(stopped.Fd())}}
	for _, s := range sources {
		fds = append(fds, unix.PollFd{Fd: int32(s.file.Fd()), Events: unix.POLLPRI})
	}
	buf := make([]byte, 4<<10)
	for stopping := false; ; {
		for _, s := range sources {
			n, err := s.file.ReadAt(buf, 0)
			if err != nil && !errors.Is(err, io.EOF) {
				return
			}
			if count(buf[:n], s.key) > 0 {
				s.seen.Store(true)
			}
		}
		if stopping {
			return
		}
		_, err := unix.Poll(fds, int(period/time.Millisecond))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		stopping = fds[0].Revents != 0
	}
}

// count returns the value of key in lines of "key value", 0 if there is none.
func count(lines []byte, key string) uint64 {
	for line := range bytes.Lines(lines) {
		f := bytes.Fields(line)
		if len(f) != 2 || string(f[0]) != key {
			continue
		}
		n, err := strconv.ParseUint(string(f[1]), 10, 64)
		if err != nil {
			return 0
		}
		return n
	}
	return 0
}

// eventFiles finds the files that count kills and refused processes, from the
// content of a /proc/PID/cgroup: lines of "id:controllers:path", of which the
// one with id 0 is cgroup v2 (cgroups(7)).
func eventFiles(root string, member []byte) (memory, pids string, err error) {
	for line := range bytes.Lines(member) {
		id, rest, _ := strings.Cut(strings.TrimSuffix(string(line), "\n"), ":")
		controllers, path, ok := strings.Cut(rest, ":")
		if !ok {
			continue
		}
		if id == "0" {
			dir := filepath.Join(root, path)
			memory = cmp.Or(memory, filepath.Join(dir, "memory.events"))
			pids = cmp.Or(pids, filepath.Join(dir, "pids.events"))
			continue
		}
		for c := range strings.SplitSeq(controllers, ",") {
			switch c {
			case "memory":
				memory = filepath.Join(root, controllers, path, "memory.oom_control")
			case "pids":
				pids = filepath.Join(root, controllers, path, "pids.events")
			}
		}
	}
	if memory == "" || pids == "" {
		return "", "", errors.New("the process is in no cgroup with a memory and a pids controller")
	}
	return memory, pids, nil
}
