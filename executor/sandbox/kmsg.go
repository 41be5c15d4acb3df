package sandbox

import (
	"bytes"
	"errors"
	"io"

	"golang.org/x/sys/unix"
)

// maxRecords bounds how much of the kernel's log is read; its buffer holds
// less, unless it is filled meanwhile.
const maxRecords = 1 << 16

// A kernelLog is what the kernel logs from when it was opened. A nil one is
// empty.
type kernelLog struct{ fd int }

// openKernelLog returns nil where the log cannot be read.
func openKernelLog() *kernelLog {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	if _, err := unix.Seek(fd, 0, io.SeekEnd); err != nil {
		unix.Close(fd)
		return nil
	}
	return &kernelLog{fd}
}

// each calls f with the records that were not read before.
func (l *kernelLog) each(f func(record []byte)) {
	if l == nil {
		return
	}
	buf := make([]byte, 8<<10) // a read returns one record
	for range maxRecords {
		n, err := unix.Read(l.fd, buf)
		switch {
		case errors.Is(err, unix.EPIPE), errors.Is(err, unix.EINTR): // some were overwritten; the next read goes on
		case err != nil || n <= 0:
			return
		default:
			f(buf[:n])
		}
	}
}

func (l *kernelLog) close() {
	if l != nil {
		unix.Close(l.fd)
	}
}

// isRefusal recognises what the kernel logs when it refuses a cgroup a process
// for the first time (pids_event in kernel/cgroup/pids.c).
func isRefusal(record []byte, cgroup string) bool {
	return string(text(record)) == "cgroup: fork rejected by pids controller in "+cgroup
}

// isKill recognises what the kernel logs when it kills a process of a cgroup
// for want of memory (dump_oom_victim in mm/oom_kill.c, since Linux 5.0).
func isKill(record []byte, cgroup string) bool {
	t := text(record)
	return bytes.HasPrefix(t, []byte("oom-kill:")) && bytes.Contains(t, []byte(",task_memcg="+cgroup+","))
}

// text is the message of a record of /dev/kmsg: "prefix;message\n", then
// perhaps lines of "key=value".
func text(record []byte) []byte {
	line, _, _ := bytes.Cut(record, []byte{'\n'})
	_, message, _ := bytes.Cut(line, []byte{';'})
	return message
}
