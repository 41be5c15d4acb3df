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

// A place is a cgroup in one hierarchy and the file there that counts.
type place struct{ cgroup, file string }

// groups are the places of a process that count kills and refused processes.
type groups struct{ memory, pids place }

// membership finds the places from the content of a /proc/PID/cgroup: lines of
// "id:controllers:path", of which the one with id 0 is cgroup v2 (cgroups(7)).
func membership(root string, member []byte) (groups, error) {
	var v1, v2 groups
	for line := range bytes.Lines(member) {
		id, rest, _ := strings.Cut(strings.TrimSuffix(string(line), "\n"), ":")
		controllers, cgroup, ok := strings.Cut(rest, ":")
		if !ok {
			continue
		}
		if id == "0" {
			v2.memory = place{cgroup, filepath.Join(root, cgroup, "memory.events")}
			v2.pids = place{cgroup, filepath.Join(root, cgroup, "pids.events")}
			continue
		}
		for c := range strings.SplitSeq(controllers, ",") {
			switch c {
			case "memory":
				v1.memory = place{cgroup, filepath.Join(root, controllers, cgroup, "memory.oom_control")}
			case "pids":
				v1.pids = place{cgroup, filepath.Join(root, controllers, cgroup, "pids.events")}
			}
		}
	}
	g := groups{cmp.Or(v1.memory, v2.memory), cmp.Or(v1.pids, v2.pids)}
	if g.memory.file == "" || g.pids.file == "" {
		return groups{}, errors.New("the process is in no cgroup with a memory and a pids controller")
	}
	return g, nil
}
