package sandbox

// WatchAt is Watch with another root of the cgroup mounts and the content of
// the process's /proc/PID/cgroup.
var WatchAt = watch

// Count and EventFiles parse what the kernel writes.
var (
	Count     = count
	IsRefusal = isRefusal
)

func EventFiles(root, member string) (memory, pids, cgroup string, err error) {
	f, err := eventFiles(root, []byte(member))
	return f.memory, f.pids, f.cgroup, err
}
