package containerd

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const shimName = "containerd-shim-runc-v2"

// reapShims ends shims that containerd 1.6 has lost: one that it was starting
// when its client was killed may live on without a task. It must come after
// the removal of all containers of the owner.
func (e *Executor) reapShims() error {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	var errs []error
	for _, file := range files {
		if !e.ownShim(file) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			continue
		}
		p, err := os.FindProcess(pid) // holds the process, so that another one with its number is safe
		if err != nil {
			continue
		}
		if e.ownShim(file) {
			e.log.Info("shim of an earlier process ended", "pid", pid)
			if err := p.Kill(); !errors.Is(err, os.ErrProcessDone) {
				errs = append(errs, err)
			}
		}
		_ = p.Release()
	}
	return errors.Join(errs...)
}

// ownShim reports whether a process, by its file of arguments, is the shim of
// a container of this owner.
func (e *Executor) ownShim(file string) bool {
	text, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	var args []string
	for arg := range bytes.SplitSeq(bytes.TrimSuffix(text, []byte{0}), []byte{0}) {
		args = append(args, string(arg))
	}
	option := func(name string) string {
		if i := slices.Index(args, name); i >= 0 && i+1 < len(args) {
			return args[i+1]
		}
		return ""
	}
	return filepath.Base(args[0]) == shimName &&
		option("-namespace") == e.namespace && strings.HasPrefix(option("-id"), e.ownerKey+"-")
}
