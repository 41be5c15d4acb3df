package main

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/monochromegane/cargo/build"
)

// Remains are what a killed server left. Each is named by something that does
// not come again, so that what the next one makes is not taken for it.
type remains map[string]bool

// add notes what is there of the server on data, which has just been killed.
func (r *remains) add(l *loop, data string) {
	if *r == nil {
		*r = remains{}
	}
	maps.Copy(*r, present(l, data))
}

// wantGone checks that nothing of what was noted is there any more, and forgets it.
func (r *remains) wantGone(l *loop, data string) {
	var still []string
	for deadline := time.Now().Add(settleTime); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		now := present(l, data)
		if still = slices.DeleteFunc(slices.Sorted(maps.Keys(*r)), func(name string) bool { return !now[name] }); len(still) == 0 {
			break
		}
	}
	if len(still) > 0 {
		l.problem("left %v after the next start was ready: %q", settleTime, still)
	}
	*r = nil
}

// present is all that a server on data has, beyond what it keeps.
func present(l *loop, data string) remains {
	found := remains{}
	owners{ownerKey(data): true}.builds(func(_ build.ID, cgroup string) {
		for _, life := range lives(cgroup) {
			found[fmt.Sprintf("process %d in %s", life.pid, life.namespace)] = true
		}
	})
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		l.problem("%v", err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], data+"/") {
			found["mount "+f[4]] = true
		}
	}
	for _, file := range glob("/sys/block", "loop*/loop/backing_file") {
		backing, _ := os.ReadFile(file) // devices go
		turn, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "../diskseq"))
		if strings.HasPrefix(string(backing), data+"/") {
			found["loop device "+strings.TrimSpace(string(turn))] = true
		}
	}
	for _, pattern := range []string{"workspace/*-*", "storage/*/.tmp-*", "cache/*/tmp/*", ".*-*", "*/.probe-*"} {
		for _, name := range glob(data, pattern) {
			found[name] = true
		}
	}
	_ = filepath.WalkDir(filepath.Join(data, "queue"), func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.Contains(d.Name(), "tmp") {
			if fi, err := d.Info(); err == nil {
				found[fmt.Sprintf("%s of %v", name, fi.ModTime())] = true
			}
		}
		return nil // files go
	})
	return found
}
