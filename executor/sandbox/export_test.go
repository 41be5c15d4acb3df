package sandbox

// WatchAt is Watch with another root of the cgroup mounts and the content of
// the process's /proc/PID/cgroup.
func WatchAt(root string, member []byte) (*Counters, error) { return watch(root, member, nil) }

// What parses what the kernel writes.
var (
	Count     = count
	IsRefusal = isRefusal
	IsKill    = isKill
)

func Membership(root, member string) (memoryFile, pidsFile, memoryCgroup, pidsCgroup string, err error) {
	g, err := membership(root, []byte(member))
	return g.memory.file, g.pids.file, g.memory.cgroup, g.pids.cgroup, err
}
