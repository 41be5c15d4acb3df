package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// How often the counters are read while nothing says that one of them has
// changed: on cgroup v1 there is no event for a kill, and since Linux 6.11 none
// for a refused process. The end of the process is an event, but on a busy
// machine its cgroup may be gone before it is heard of: where the kernel's log
// cannot be asked then, the counters are read more often before.
const (
	period        = 100 * time.Millisecond
	periodWithout = 10 * time.Millisecond
)

// Counters follow the memory and process limits of one cgroup.
type Counters struct {
	oom  atomic.Bool
	pids atomic.Bool

	stop *os.File // closed to make the goroutine end
	done sync.WaitGroup
}

// Watch follows the cgroup of process pid from now on, until the cgroup is
// removed or Close is called, whichever is first. The cgroup may be removed at
// any time after its last process has ended, so Watch must be called while pid,
// the last to end, runs. It knows cgroup v1 and v2, mounted where every distribution mounts
// them. The caller must call Close.
//
// What happens just before the removal may come too late to be read. Then the
// kernel's log tells, if this program may read it and the kernel has not
// suppressed the message: if the runtime has an opinion of its own, ask it, too.
func Watch(pid int) (*Counters, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd_open: %w", err)
	}
	process := os.NewFile(uintptr(fd), "pidfd")
	member, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil, errors.Join(err, process.Close())
	}
	return watch("/sys/fs/cgroup", member, process)
}

// watch follows the cgroup that member, the content of a /proc/PID/cgroup,
// names beneath root. process, which watch closes and which may be nil, becomes
// readable when the process ends.
func watch(root string, member []byte, process *os.File) (_ *Counters, err error) {
	w := &watcher{process: process}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	g, err := membership(root, member)
	if err != nil {
		return nil, err
	}
	c := new(Counters)
	w.sources = []*source{
		{cgroup: g.memory.cgroup, key: "oom_kill", logged: isKill, hit: &c.oom},
		{cgroup: g.pids.cgroup, key: "max", logged: isRefusal, hit: &c.pids},
	}
	w.log = openKernelLog()
	for i, path := range []string{g.memory.file, g.pids.file} {
		if w.sources[i].file, err = os.Open(path); err != nil {
			return nil, err
		}
	}
	if w.stopped, c.stop, err = os.Pipe(); err != nil {
		return nil, err
	}
	c.done.Go(func() {
		defer w.close()
		w.follow()
	})
	return c, nil
}

// OutOfMemory reports whether the kernel has killed a process of the cgroup
// for want of memory.
func (c *Counters) OutOfMemory() bool { return c.oom.Load() }

// TooManyProcesses reports whether the kernel has refused the cgroup a process
// or thread.
func (c *Counters) TooManyProcesses() bool { return c.pids.Load() }

// NoteOutOfMemory makes OutOfMemory true: the runtime has seen a kill.
func (c *Counters) NoteOutOfMemory() { c.oom.Store(true) }

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

// A source is a file of "key value" lines and the counter in it that must stay
// 0, with what the kernel logs when it does not.
type source struct {
	file   *os.File
	cgroup string
	key    string
	logged func(record []byte, cgroup string) bool
	hit    *atomic.Bool
	gone   bool
}

func (s *source) read() {
	buf := make([]byte, 4<<10)
	n, err := s.file.ReadAt(buf, 0)
	if s.gone = err != nil && !errors.Is(err, io.EOF); s.gone {
		return
	}
	if count(buf[:n], s.key) > 0 {
		s.hit.Store(true)
	}
}

// A watcher is what the goroutine of Counters works with.
type watcher struct {
	sources []*source
	process *os.File
	stopped *os.File
	log     *kernelLog
}

// follow reads the counters after every event, the end of the process above
// all, at least once each period and a last time after the other end of
// stopped is closed. It returns earlier when the cgroup is gone.
func (w *watcher) follow() {
	fds := []unix.PollFd{{Fd: int32(w.stopped.Fd())}, {Fd: -1, Events: unix.POLLIN}}
	if w.process != nil {
		fds[1].Fd = int32(w.process.Fd())
	}
	for _, s := range w.sources {
		fds = append(fds, unix.PollFd{Fd: int32(s.file.Fd()), Events: unix.POLLPRI})
	}
	timeout := int(period / time.Millisecond)
	if w.log == nil {
		timeout = int(periodWithout / time.Millisecond)
	}
	for {
		gone := false
		for _, s := range w.sources {
			s.read()
			gone = gone || s.gone
		}
		if gone {
			w.log.each(func(record []byte) {
				for _, s := range w.sources {
					if s.logged(record, s.cgroup) {
						s.hit.Store(true)
					}
				}
			})
			return
		}
		if fds[0].Revents != 0 {
			return
		}
		if fds[1].Revents != 0 {
			fds[1].Fd = -1 // it stays readable
		}
		if _, err := unix.Poll(fds, timeout); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

func (w *watcher) close() {
	for _, s := range w.sources {
		if s.file != nil {
			s.file.Close()
		}
	}
	for _, f := range []*os.File{w.process, w.stopped} {
		if f != nil {
			f.Close()
		}
	}
	w.log.close()
}
