package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// settleTime is how long what a build left may take to be gone after its end.
const settleTime = 10 * time.Second

// wantNone fails the test if something on this machine still bears a name: the
// id of a build that has ended, or the data directory of a server that has.
func wantNone(t *testing.T, name, data string) {
	t.Helper()
	var left []string
	for deadline := time.Now().Add(settleTime); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if left = bearing(t.Context(), name, data); len(left) == 0 {
			return
		}
	}
	t.Errorf("left after %v:\n%s", settleTime, strings.Join(left, "\n"))
}

// bearing lists what bears a name in the engines, among the processes, the
// mounts, the loop devices and the control groups of this machine, and among
// the files of the server on data. Logs stay, and so do records.
func bearing(ctx context.Context, name, data string) (found []string) {
	for _, list := range [][]string{
		{"ctr", "-n", "cargo", "containers", "ls", "-q"},
		{"ctr", "-n", "cargo", "tasks", "ls", "-q"},
		{"ctr", "-n", "cargo", "snapshots", "ls"},
		{"ctr", "-n", "cargo", "leases", "ls"},
		{"docker", "ps", "-a", "--no-trunc", "--format", "{{.Names}} {{.Labels}}"},
	} {
		out, _ := exec.CommandContext(ctx, list[0], list[1:]...).Output() // an engine that is not there holds nothing
		found = append(found, linesWith(list[0]+" "+list[len(list)-2], out, name)...)
	}
	for _, pattern := range []string{"/proc/self/mountinfo", "/sys/block/loop*/loop/backing_file"} {
		files, _ := filepath.Glob(pattern)
		for _, f := range files {
			content, _ := os.ReadFile(f) // loop devices go
			found = append(found, linesWith(f, content, name)...)
		}
	}
	found = append(found, processes(name)...)
	for _, pattern := range []string{
		"/sys/fs/cgroup/cargo/*", "/sys/fs/cgroup/*/cargo/*",
		"/run/cargo/fifo/*/*", "/run/containerd/runc/cargo/*", "/run/containerd/io.containerd.runtime.v2.task/cargo/*",
		filepath.Join(data, "*", "*"),
	} {
		files, _ := filepath.Glob(pattern)
		for _, f := range files {
			if strings.Contains(filepath.Base(f), name) && filepath.Dir(f) != filepath.Join(data, "logs") {
				found = append(found, "file "+f)
			}
		}
	}
	return found
}

// processes are those in a control group that bears a name, or in a mount
// namespace of their own in which a mount bears it.
func processes(name string) (found []string) {
	ours, _ := os.Readlink("/proc/self/ns/mnt")
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		text, _ := os.ReadFile(filepath.Join(dir, "cgroup")) // processes end
		if theirs, _ := os.Readlink(filepath.Join(dir, "ns", "mnt")); theirs != ours {
			mounts, _ := os.ReadFile(filepath.Join(dir, "mountinfo"))
			text = append(text, mounts...)
		}
		if in := linesWith(dir, text, name); len(in) > 0 {
			found = append(found, in[0])
		}
	}
	return found
}

func linesWith(what string, text []byte, name string) (found []string) {
	for line := range bytes.Lines(text) {
		if bytes.Contains(line, []byte(name)) {
			found = append(found, what+": "+string(bytes.TrimSpace(line)))
		}
	}
	return found
}
