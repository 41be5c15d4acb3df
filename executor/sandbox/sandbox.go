// Package sandbox is what the executors share: the parts of a step's
// confinement that are the same on every container runtime, the door into its
// network namespace, and the kernel's account of the limits that it ran into.
// It works on Linux only.
package sandbox

import (
	"encoding/json"
	"slices"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Hostname is the host name that every step sees.
const Hostname = "build"

// OOMScoreAdj makes the kernel prefer a step to the server when the whole
// machine runs out of memory.
const OOMScoreAdj = 500

// CPUShares returns the weight of a step's cgroup against its neighbours: half
// of the default, and in the background the least that there is.
func CPUShares(background bool) int64 {
	if background {
		return 2
	}
	return 512
}

// maxFile bounds one file that a step writes, in bytes. The disk as a whole is
// bounded by whoever provides the step's mounts.
const maxFile = 8 << 30

// MaskedPaths returns the paths of /proc that a step sees as empty. They are
// about the host, not about the step.
func MaskedPaths() []string {
	return []string{
		"/proc/acpi",
		"/proc/asound",
		"/proc/interrupts",
		"/proc/kcore",
		"/proc/key-users",
		"/proc/keys",
		"/proc/latency_stats",
		"/proc/sched_debug",
		"/proc/scsi",
		"/proc/timer_list",
		"/proc/timer_stats",
	}
}

// ReadonlyPaths returns the paths of /proc through which the host can be
// changed.
func ReadonlyPaths() []string {
	return []string{
		"/proc/bus",
		"/proc/fs",
		"/proc/irq",
		"/proc/sys",
		"/proc/sysrq-trigger",
	}
}

// Rlimits returns the resource limits of every process of a step, soft and
// hard alike.
func Rlimits() []specs.POSIXRlimit {
	var limits []specs.POSIXRlimit
	for _, l := range []struct {
		name  string
		value uint64
	}{
		{"RLIMIT_CORE", 0},
		{"RLIMIT_FSIZE", maxFile},
		{"RLIMIT_MEMLOCK", 64 << 10},
		{"RLIMIT_MSGQUEUE", 0},
		{"RLIMIT_NOFILE", 16 << 10},
		{"RLIMIT_SIGPENDING", 1 << 10}, // a user namespace is charged to its maker, which is the host's root
	} {
		limits = append(limits, specs.POSIXRlimit{Type: l.name, Soft: l.value, Hard: l.value})
	}
	return limits
}

// Seccomp returns containerd's default profile for a process without any
// capability, for the architecture of this program. It is stricter than the
// one that older Docker daemons have built in.
//
// It also denies inotify: the instances of a user namespace are charged to its
// maker too, and a build could take all that the host's root may have. What
// watches files falls back to polling. And it has no rules for the x32 ABI,
// which nobody builds for: compiling them is a fifth of the processor time that
// the start of a container takes. A system call of that ABI ends its process.
func Seccomp() *specs.LinuxSeccomp {
	profile := seccomp.DefaultProfile(&specs.Spec{
		Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}},
	})
	for i := range profile.Syscalls {
		rule := &profile.Syscalls[i]
		rule.Names = slices.DeleteFunc(slices.Clone(rule.Names), func(name string) bool {
			return name == "inotify_init" || name == "inotify_init1"
		})
	}
	profile.Architectures = slices.DeleteFunc(profile.Architectures, func(a specs.Arch) bool { return a == specs.ArchX32 })
	return profile
}

// SeccompJSON returns the profile of Seccomp as the security option "seccomp"
// of the Docker API takes it.
func SeccompJSON() (string, error) {
	b, err := json.Marshal(Seccomp())
	return string(b), err
}
