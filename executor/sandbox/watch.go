package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// period is how often the counters are read when no event says that one of
// them may have changed.
const period = 20 * time.Millisecond

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
//
// A limit that was hit just before the removal is seen even if this program
// gets no time on a processor in between, except for want of memory on cgroup
// v2: ask the runtime, too.
func Watch(pid int) (*Counters, error) {
	member, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil, err
	}
	return watch("/sys/fs/cgroup", member)
}

// watch follows the cgroup that member, the content of a /proc/PID/cgroup,
// names beneath root.
func watch(root string, member []byte) (_ *Counters, err error) {
	files, err := eventFiles(root, member)
	if err != nil {
		return nil, err
	}
	c := new(Counters)
	w := &watcher{
		log:    openKernelLog(),
		cgroup: files.cgroup,
		memory: source{key: "oom_kill", hit: &c.oom},
		pids:   source{key: "max", hit: &c.pids},
	}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if err := w.open(files); err != nil {
		return nil, err
	}
	if w.stopped, c.stop, err = os.Pipe(); err != nil {
		return nil, err
	}
	if err := w.await(w.stopped, unix.EPOLLIN|unix.EPOLLHUP); err != nil {
		c.stop.Close()
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
// 0.
type source struct {
	file *os.File
	key  string
	hit  *atomic.Bool
	gone bool   // with its cgroup
	news uint64 // events since the file could last be read
}

// read looks at the counter, and at whether it is still there.
func (s *source) read() {
	buf := make([]byte, 4<<10)
	n, err := s.file.ReadAt(buf, 0)
	if s.gone = err != nil && !errors.Is(err, io.EOF); s.gone {
		return
	}
	s.news = 0
	if count(buf[:n], s.key) > 0 {
		s.hit.Store(true)
	}
}

// A watcher is what the goroutine of Counters works with.
//
// It may be late: a runtime removes the cgroup as soon as it has noticed the
// exit, and then the counters cannot be read any more. What the kernel has put
// into the epoll instance, the eventfd and its log before is still there.
type watcher struct {
	memory, pids source
	stopped      *os.File
	epoll        *os.File
	ooms         *os.File // cgroup v1: eventfd that counts the times memory ran out, and the removal; nil elsewhere
	oom          bool     // memory has run out; the kill is counted a moment later
	log          kernelLog
	cgroup       string // where the process is in the hierarchy of pids, as the kernel logs it
}

func (w *watcher) open(files files) (err error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	w.epoll = os.NewFile(uintptr(epoll), "epoll")
	if w.memory.file, err = os.Open(files.memory); err != nil {
		return err
	}
	if w.pids.file, err = os.Open(files.pids); err != nil {
		return err
	}
	for _, s := range []*source{&w.memory, &w.pids} {
		s.read() // or else its present content would be the first event
		if err := w.await(s.file, unix.EPOLLPRI|unix.EPOLLET); err != nil {
			return err
		}
	}
	w.ooms = oomEvents(w.memory.file)
	if w.ooms == nil {
		return nil
	}
	return w.await(w.ooms, unix.EPOLLIN)
}

// oomEvents returns an eventfd that the kernel adds to each time memory runs
// out, and once more when the cgroup is removed, or nil if it does not: only
// cgroup v1 has this, and not on every kernel.
func oomEvents(control *os.File) *os.File {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), "eventfd")
	register, err := os.OpenFile(filepath.Join(filepath.Dir(control.Name()), "cgroup.event_control"), os.O_WRONLY, 0)
	if err != nil {
		f.Close()
		return nil
	}
	defer register.Close()
	if _, err := fmt.Fprintf(register, "%d %d", fd, control.Fd()); err != nil {
		f.Close()
		return nil
	}
	return f
}

// await adds a file to the epoll instance. One that knows no events is left to
// the period.
func (w *watcher) await(f *os.File, events uint32) error {
	fd := int(f.Fd())
	err := unix.EpollCtl(int(w.epoll.Fd()), unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
	if err != nil && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("epoll: %w", err)
	}
	return nil
}

// follow reads the counters after every event, at least once each period, and
// a last time after the other end of stopped is closed. It returns when both
// are gone, too.
func (w *watcher) follow() {
	for stopping := false; ; {
		ranOut := w.memory.news > 0
		w.memory.read()
		w.oom = w.oom || ranOut && !w.memory.gone
		w.pids.read()
		last := stopping || w.memory.gone && w.pids.gone
		patience := period
		if last {
			patience = 0 // but look at the events once more
		}
		if stopping = w.events(patience); last {
			break
		}
	}
	// One of its events is the removal; the others are times memory ran out.
	if w.memory.gone && (w.oom || w.memory.news > 1) {
		w.memory.hit.Store(true)
	}
	// The removal is none of its events, but Linux 6.11 and later have none on cgroup v1.
	if w.pids.gone && (w.pids.news > 0 || w.log.refused(w.cgroup)) {
		w.pids.hit.Store(true)
	}
}

// events waits for events, no longer than patience, and reports whether stopped
// is closed.
func (w *watcher) events(patience time.Duration) (stopping bool) {
	var list [4]unix.EpollEvent
	n, err := unix.EpollWait(int(w.epoll.Fd()), list[:], int(patience/time.Millisecond))
	for errors.Is(err, unix.EINTR) {
		n, err = unix.EpollWait(int(w.epoll.Fd()), list[:], 0)
	}
	for _, e := range list[:max(n, 0)] {
		switch e.Fd {
		case int32(w.stopped.Fd()):
			stopping = true
		case int32(w.pids.file.Fd()):
			w.pids.news++
		case int32(w.ooms.Fd()):
			w.memory.news += drain(w.ooms)
		}
	}
	return stopping
}

// drain returns what an eventfd has counted since it was last drained.
func drain(f *os.File) uint64 {
	var b [8]byte
	if n, err := unix.Read(int(f.Fd()), b[:]); err != nil || n != len(b) {
		return 0
	}
	return binary.NativeEndian.Uint64(b[:])
}

func (w *watcher) close() {
	for _, f := range []*os.File{w.memory.file, w.pids.file, w.stopped, w.epoll, w.ooms} {
		if f != nil {
			f.Close()
		}
	}
	w.log.close()
}
