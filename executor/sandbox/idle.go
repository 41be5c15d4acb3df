package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// The arguments of ioprio_set(2).
const (
	whoProcess = 1
	classIdle  = 3 << 13
)

// IdleIO lets process pid, and what it will start, have the disk only when
// nobody else wants it. The process must not start threads meanwhile.
func IdleIO(pid int) error {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return err
	}
	for _, t := range threads {
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		_, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, uintptr(id), classIdle)
		if errno != 0 && !errors.Is(errno, unix.ESRCH) {
			return fmt.Errorf("ioprio_set: %w", errno)
		}
	}
	return nil
}
