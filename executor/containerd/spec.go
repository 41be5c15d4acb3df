package containerd

import (
	"cmp"
	"math"
	"slices"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/sandbox"
)

// cgroupPath is where a step's cgroup is. One parent holds all, so that an
// operator finds them and can bound them together, except those in the
// background: what is alone in the parent has all of the parent's weight.
func cgroupPath(id string, background bool) string {
	if background {
		return "/cargo-" + id
	}
	return "/cargo/" + id
}

// cpuPeriod is the length in microseconds over which the kernel's scheduler
// enforces a quota; its own default.
const cpuPeriod = 100_000

// spec is the whole confinement of a step, in the form of the OCI runtime
// specification. Nothing of it comes from the image but the environment.
func spec(id string, step executor.Step, limits executor.Limits, imageEnv []string) *specs.Spec {
	oomScore := sandbox.OOMScoreAdj
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: executor.UIDBase, Size: 1 << 16}}
	return &specs.Spec{
		Version:  specs.Version,
		Hostname: sandbox.Hostname,
		Root:     &specs.Root{Path: "rootfs", Readonly: true},
		Process: &specs.Process{
			User:            specs.User{UID: executor.UID, GID: executor.UID},
			Args:            step.Args,
			Env:             slices.Concat(imageEnv, step.Env),
			Cwd:             cmp.Or(step.Dir, "/"),
			Capabilities:    &specs.LinuxCapabilities{},
			NoNewPrivileges: true,
			Rlimits:         sandbox.Rlimits(),
			OOMScoreAdj:     &oomScore,
		},
		Mounts: mounts(step.Mounts, limits.Tmp),
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.UserNamespace},
				{Type: specs.PIDNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.NetworkNamespace}, // new, hence empty
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.CgroupNamespace},
			},
			UIDMappings:   ids,
			GIDMappings:   ids,
			CgroupsPath:   cgroupPath(id, step.Background),
			Resources:     resources(limits, step.Background),
			Seccomp:       sandbox.Seccomp(),
			MaskedPaths:   sandbox.MaskedPaths(),
			ReadonlyPaths: sandbox.ReadonlyPaths(),
		},
	}
}

// mounts has no /sys, /dev/shm, /dev/mqueue and /run: a build needs none.
func mounts(binds []executor.Mount, tmp int64) []specs.Mount {
	all := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "strictatime", "mode=755", "size=64k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777", "size=" + strconv.FormatInt(tmp, 10)}},
	}
	for _, b := range binds {
		mode := "ro"
		if b.Writable {
			mode = "rw"
		}
		all = append(all, specs.Mount{Destination: b.Target, Type: "bind", Source: b.Source, Options: []string{"bind", "rprivate", "nosuid", "nodev", mode}})
	}
	return all
}

func resources(l executor.Limits, background bool) *specs.LinuxResources {
	shares := uint64(sandbox.CPUShares(background))
	r := &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}, // the runtime adds null, zero and the like
		Memory:  &specs.LinuxMemory{Limit: &l.Memory, Swap: &l.Memory},    // Swap is memory and swap together
		Pids:    &specs.LinuxPids{Limit: &l.Pids},
		CPU:     &specs.LinuxCPU{Shares: &shares},
	}
	if l.CPUs > 0 {
		period, quota := uint64(cpuPeriod), int64(math.Ceil(l.CPUs*cpuPeriod))
		r.CPU.Period, r.CPU.Quota = &period, &quota
	}
	return r
}
