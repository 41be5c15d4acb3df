package worker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/monochromegane/cargo/disk"
	"github.com/monochromegane/cargo/executor"
)

// errMachineFull is not the build's disk but what that lies on.
var errMachineFull = errors.New("the machine's disk is full under that of a build")

// scarce is what the machine's disk has left, in bytes, besides what a build
// may still have to write there, when a build is looked at more closely.
const scarce = 256 << 20

// none is less than what one file of a build takes.
const none = 1 << 20

// landed returns err, the outcome of the build's commands, if all that they
// wrote is on the machine's disk. What the machine cannot hold, the build's own
// disk loses without a word: a command may fail of it, or leave a program that
// is full of holes.
func (j *job) landed(err error) error {
	if _, exited := errors.AsType[*executor.ExitError](err); err != nil && !exited {
		return err
	}
	var s unix.Statfs_t
	if unix.Statfs(filepath.Dir(j.disk.Dir()), &s) != nil {
		return err
	}
	free := int64(s.Bavail) * s.Bsize
	if used, _ := j.disk.Usage(); free >= 2*used+scarce {
		return err
	}
	if j.Disks.Kind() == disk.Watch { // then it lies on the machine's disk itself, which refuses to write
		if err != nil && free < none {
			return fmt.Errorf("%w (%v)", errMachineFull, err)
		}
		return err
	}
	if lost := syncAll(j.top); lost != nil {
		return fmt.Errorf("%w: %v (%v)", errMachineFull, lost, err)
	}
	return err
}

// syncAll writes what the file system of f has in memory, and says what could
// not be written since f was opened.
func syncAll(f *os.File) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var lost error
	if err := conn.Control(func(fd uintptr) { lost = unix.Syncfs(int(fd)) }); err != nil {
		return err
	}
	return lost
}
