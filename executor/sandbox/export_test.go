package sandbox

// WatchAt is Watch with another root of the cgroup mounts and the content of
// the process's /proc/PID/cgroup.
var WatchAt = watch

// Count and EventFiles parse what the kernel writes.
var (
	Count      = count
	EventFiles = eventFiles
)
