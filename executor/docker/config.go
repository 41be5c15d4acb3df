package docker

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"

	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/sandbox"
)

// gate is the script of the first process: wait for a line, then become the
// command. What shells add to the environment themselves, and the step does not
// set, is taken out again.
func gate(env []string) string {
	var added []string
	for _, name := range []string{"OLDPWD", "PWD", "SHLVL"} {
		if !sets(env, name) {
			added = append(added, name)
		}
	}
	return fmt.Sprintf(`unset %s; read -r _ && exec "$@"`, strings.Join(added, " "))
}

var idPattern = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)

func check(step executor.Step) error {
	if !idPattern.MatchString(step.ID) {
		return fmt.Errorf("docker: step id %q does not match %s", step.ID, idPattern)
	}
	if len(step.Args) == 0 {
		return errors.New("docker: step without a command")
	}
	if err := sandbox.CheckMounts(step.Mounts); err != nil {
		return fmt.Errorf("docker: step %s: %w", step.ID, err)
	}
	return nil
}

// name is the container's, so that it can be removed even if the answer to its
// creation is lost.
func (e *Executor) name(step executor.Step) string { return "cargo-" + e.owner + "-" + step.ID }

// createOptions describes the container of a step, whose image declares
// volumes.
func (e *Executor) createOptions(step executor.Step, image string, volumes []string) client.ContainerCreateOptions {
	return client.ContainerCreateOptions{
		Name: e.name(step),
		Config: &container.Config{
			Image:        image,
			Entrypoint:   append([]string{"/bin/sh", "-c", gate(step.Env), "sh"}, step.Args...),
			Env:          environment(step.Env),
			WorkingDir:   cmp.Or(step.Dir, "/"),
			User:         fmt.Sprintf("%d:%d", executor.HostUID, executor.HostUID),
			Hostname:     sandbox.Hostname,
			AttachStdin:  true,
			AttachStdout: true,
			AttachStderr: true,
			OpenStdin:    true,
			StdinOnce:    true,
			Healthcheck:  &container.HealthConfig{Test: []string{"NONE"}}, // the image may bring one, and it would run beside the command
			Labels:       map[string]string{labelOwner: e.owner, labelStep: step.ID},
		},
		HostConfig: e.hostConfig(step, volumes),
	}
}

func (e *Executor) hostConfig(step executor.Step, volumes []string) *container.HostConfig {
	limits := step.Limits.Or(e.limits)
	host := &container.HostConfig{
		NetworkMode:    "none",
		DNS:            []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}, // instead of a copy of the host's resolv.conf
		DNSSearch:      []string{"."},
		CapDrop:        []string{"ALL"},
		SecurityOpt:    []string{"no-new-privileges", "seccomp=" + e.seccomp},
		ReadonlyRootfs: true,
		IpcMode:        "none",
		CgroupnsMode:   "private",
		UsernsMode:     "host", // a daemon with userns-remap would shift HostUID
		LogConfig:      container.LogConfig{Type: "none"},
		OomScoreAdj:    sandbox.OOMScoreAdj,
		MaskedPaths:    append(sandbox.MaskedPaths(), "/sys"), // hides the mount point of /sys/fs/cgroup, see Tmpfs
		ReadonlyPaths:  sandbox.ReadonlyPaths(),
		Init:           new(bool), // the command is the first process, whatever the daemon's default
		Tmpfs: map[string]string{
			"/tmp": fmt.Sprintf("rw,exec,nosuid,nodev,mode=1777,size=%d", limits.Tmp),
			// In the place of what the daemon would mount there.
			"/sys":           empty,
			"/sys/fs/cgroup": empty,
			"/dev/mqueue":    empty,
		},
		Resources: container.Resources{
			Memory:     limits.Memory,
			MemorySwap: limits.Memory,
			NanoCPUs:   int64(min(limits.CPUs, float64(runtime.NumCPU())) * 1e9), // the daemon refuses more than there are
			CPUShares:  sandbox.CPUShares(step.Background),
			PidsLimit:  &limits.Pids,
			Ulimits:    ulimits(),
		},
	}
	for _, m := range step.Mounts {
		host.Mounts = append(host.Mounts, mount.Mount{
			Type:     mount.TypeBind,
			Source:   m.Source,
			Target:   m.Target,
			ReadOnly: !m.Writable,
			// What is mounted below the source stays out: the daemon would not make it read-only.
			BindOptions: &mount.BindOptions{NonRecursive: true, Propagation: mount.PropagationRPrivate},
		})
	}
	for _, v := range volumes {
		if _, ok := host.Tmpfs[v]; ok || slices.ContainsFunc(step.Mounts, func(m executor.Mount) bool { return m.Target == v }) {
			continue
		}
		host.Tmpfs[v] = empty // the daemon would mount a writable volume without a bound there
	}
	return host
}

// empty are the options of a tmpfs that stays empty.
const empty = "ro,nosuid,nodev,noexec,mode=755,size=4k"

// environment is the step's, without the HOSTNAME that the daemon adds and
// containerd does not: a name without a value removes it.
func environment(env []string) []string {
	if sets(env, "HOSTNAME") {
		return env
	}
	return append(slices.Clone(env), "HOSTNAME")
}

// sets reports whether env gives a value to name.
func sets(env []string, name string) bool {
	return slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
}

func ulimits() []*container.Ulimit {
	var limits []*container.Ulimit
	for _, l := range sandbox.Rlimits() {
		limits = append(limits, &container.Ulimit{
			Name: strings.ToLower(strings.TrimPrefix(l.Type, "RLIMIT_")),
			Soft: int64(l.Soft),
			Hard: int64(l.Hard),
		})
	}
	return limits
}
