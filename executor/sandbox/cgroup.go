package sandbox

import (
	"bytes"
	"cmp"
	"errors"
	"path/filepath"
	"strconv"
	"strings"
)

// count returns the value of key in lines of "key value", 0 if there is none.
func count(lines []byte, key string) uint64 {
	for line := range bytes.Lines(lines) {
		f := bytes.Fields(line)
		if len(f) != 2 || string(f[0]) != key {
			continue
		}
		n, err := strconv.ParseUint(string(f[1]), 10, 64)
		if err != nil {
			return 0
		}
		return n
	}
	return 0
}

// files are those that count kills and refused processes.
type files struct {
	memory, pids string
	cgroup       string // path in the hierarchy of pids
}

// eventFiles finds the files from the content of a /proc/PID/cgroup: lines of
// "id:controllers:path", of which the one with id 0 is cgroup v2 (cgroups(7)).
func eventFiles(root string, member []byte) (files, error) {
	var v1, v2 files
	for line := range bytes.Lines(member) {
		id, rest, _ := strings.Cut(strings.TrimSuffix(string(line), "\n"), ":")
		controllers, path, ok := strings.Cut(rest, ":")
		if !ok {
			continue
		}
		if id == "0" {
			dir := filepath.Join(root, path)
			v2 = files{filepath.Join(dir, "memory.events"), filepath.Join(dir, "pids.events"), path}
			continue
		}
		for c := range strings.SplitSeq(controllers, ",") {
			switch c {
			case "memory":
				v1.memory = filepath.Join(root, controllers, path, "memory.oom_control")
			case "pids":
				v1.pids = filepath.Join(root, controllers, path, "pids.events")
				v1.cgroup = path
			}
		}
	}
	f := files{cmp.Or(v1.memory, v2.memory), cmp.Or(v1.pids, v2.pids), cmp.Or(v1.cgroup, v2.cgroup)}
	if f.memory == "" || f.pids == "" {
		return files{}, errors.New("the process is in no cgroup with a memory and a pids controller")
	}
	return f, nil
}
