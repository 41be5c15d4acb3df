package queue

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A process is what tells whether a process of this machine still lives.
// Whatever cannot be found out is left zero.
type process struct {
	Boot  string `json:"boot,omitempty"`  // of the machine
	Space string `json:"space,omitempty"` // in which the number counts; a container has its own
	ID    int    `json:"pid,omitempty"`
	Start uint64 `json:"start,omitempty"` // clock ticks from the boot; another process may have the number later
}

func thisProcess() process {
	p := process{ID: os.Getpid()}
	if boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		p.Boot = strings.TrimSpace(string(boot))
	}
	p.Space, _ = os.Readlink("/proc/self/ns/pid")
	p.Start, _, _ = startOf(p.ID)
	return p
}

// dead reports whether p is known to have ended. Of a process of another
// machine, or that counts elsewhere, nothing is known.
func (p process) dead() bool {
	here := thisProcess()
	if here.Boot == "" || here.Space == "" || p.Boot != here.Boot || p.Space != here.Space || p.ID <= 0 {
		return false
	}
	if err := unix.Kill(p.ID, 0); err != nil { // also where /proc hides others' processes
		return errors.Is(err, unix.ESRCH)
	}
	start, ended, err := startOf(p.ID)
	return err == nil && (ended || start != p.Start)
}

// startOf reads when a process started, and whether it only waits for its
// parent to notice its end.
func startOf(pid int) (ticks uint64, ended bool, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false, err
	}
	// What stands in brackets is the process's own choice; after it come the
	// state, the third field, and as 22nd the start.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return 0, false, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	ticks, err = strconv.ParseUint(string(fields[19]), 10, 64)
	state := string(fields[0])
	return ticks, state == "Z" || state == "X", err
}
