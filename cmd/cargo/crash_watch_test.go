package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/monochromegane/cargo/build"
)

// ownerKey is what the names of the containers of a server on a data directory
// begin with, on containerd.
func ownerKey(data string) string {
	sum := sha256.Sum256([]byte(owner(data)))
	return hex.EncodeToString(sum[:4])
}

// owners are the keys of those whose containers a loop looks at.
type owners map[string]bool

// builds calls f for every container of a build, with its control group.
func (o owners) builds(f func(id build.ID, cgroup string)) {
	for _, pattern := range []string{"/sys/fs/cgroup/pids/cargo/*", "/sys/fs/cgroup/cargo/*"} { // version 1 and 2
		dirs, _ := filepath.Glob(pattern)
		for _, dir := range dirs {
			key, step, _ := strings.Cut(filepath.Base(dir), "-")
			if id, _, _ := strings.Cut(step, "-"); o[key] && build.ID(id).Valid() {
				f(build.ID(id), dir)
			}
		}
	}
}

// A life is a process in a namespace of its own; both numbers may be used
// again, together hardly within the moment that a look takes.
type life struct {
	pid       int
	namespace string
}

func (l life) alive() bool { return pidNamespace(l.pid) == l.namespace }

// pidNamespace names the namespace of a process that is alive.
func pidNamespace(pid int) string {
	name, _ := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "ns/pid"))
	return name
}

// lives are the living processes in a container's control group, one of each
// namespace. The runtime's own, which are there for a moment, are in ours.
func lives(cgroup string) (found []life) {
	ours := pidNamespace(os.Getpid())
	text, _ := os.ReadFile(filepath.Join(cgroup, "cgroup.procs")) // containers go
	seen := map[string]bool{}
	for _, word := range strings.Fields(string(text)) {
		pid, _ := strconv.Atoi(word)
		if name := pidNamespace(pid); name != "" && name != ours && !seen[name] {
			seen[name] = true
			found = append(found, life{pid, name})
		}
	}
	return found
}

// watchOverlaps looks at the processes of builds, at containers that are alive
// and not at what an engine or a record says, until the returned stop is
// called: two containers of one build at once are a problem.
func (l *loop) watchOverlaps(of owners) (stop func()) {
	const every = 20 * time.Millisecond
	ctx, cancel := context.WithCancel(l.t.Context())
	done := make(chan struct{})
	looks, seen, told := 0, 0, map[build.ID]bool{}
	go func() {
		defer close(done)
		for ; ctx.Err() == nil; pause(ctx, every) {
			now := map[build.ID][]life{}
			of.builds(func(id build.ID, cgroup string) { now[id] = append(now[id], lives(cgroup)...) })
			looks++
			for id, all := range now {
				if len(all) > 0 {
					seen++
				}
				// Who was seen first is alive after the last was seen: they were at once.
				if len(all) > 1 && all[0].alive() && l.exclusive.Load() && !told[id] {
					told[id] = true
					l.problem("build %s runs in %d containers at once: %v", id, len(all), all)
				}
			}
		}
	}()
	stopped := false
	stop = func() {
		if cancel(); stopped {
			return
		}
		stopped = true
		<-done
		l.t.Logf("looked %d times for overlaps, at %d running builds", looks, seen)
		if seen == 0 {
			l.problem("no build was ever seen running: there is no proof that none overlapped")
		}
	}
	l.t.Cleanup(func() { cancel(); <-done })
	return stop
}
