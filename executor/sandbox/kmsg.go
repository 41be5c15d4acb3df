package sandbox

import (
	"bytes"
	"errors"
	"io"

	"golang.org/x/sys/unix"
)

// maxRecords bounds how much of the kernel's log is read for one cgroup.
const maxRecords = 10_000

// kernelLog is a descriptor of the kernel's log, -1 where it cannot be read.
type kernelLog int

// openKernelLog returns the log from here on.
func openKernelLog() kernelLog {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	if _, err := unix.Seek(fd, 0, io.SeekEnd); err != nil {
		unix.Close(fd)
		return -1
	}
	return kernelLog(fd)
}

// refused reports whether the kernel has logged that it refused the cgroup a
// process. It does so the first time for each cgroup.
func (l kernelLog) refused(cgroup string) bool {
	if l < 0 {
		return false
	}
	record := make([]byte, 8<<10) // one a read
	for range maxRecords {
		n, err := unix.Read(int(l), record)
		if errors.Is(err, unix.EPIPE) { // some were overwritten
			continue
		}
		if err != nil {
			return false
		}
		if isRefusal(record[:n], cgroup) {
			return true
		}
	}
	return false
}

// isRefusal recognises the record that pids_event of the kernel writes.
func isRefusal(record []byte, cgroup string) bool {
	line, _, _ := bytes.Cut(record, []byte{'\n'})
	_, text, _ := bytes.Cut(line, []byte{';'})
	return string(text) == "cgroup: fork rejected by pids controller in "+cgroup
}

func (l kernelLog) close() {
	if l >= 0 {
		unix.Close(int(l))
	}
}
