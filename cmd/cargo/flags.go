package main

import (
	"runtime"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/monochromegane/cargo/executor"
)

// Groups of flags in the help.
const (
	groupServer   = "Server"
	groupFiles    = "Files"
	groupExecutor = "Executor"
	groupSource   = "Source"
	groupLimits   = "Limits of a build"
)

const (
	defaultImage      = "docker.io/library/golang:1.26-bookworm"
	defaultContainerd = "/run/containerd/containerd.sock"
	defaultDocker     = "unix:///var/run/docker.sock"
)

// serveFlags are the flags of cargo serve; each has an environment twin.
func serveFlags() []cli.Flag {
	return []cli.Flag{
		text(groupServer, "listen", "127.0.0.1:8080", "serve HTTP on `ADDRESS`"),
		&cli.IntFlag{Category: groupServer, Name: "concurrency", Value: max(2, runtime.NumCPU()/2), Usage: "run `N` builds at once", EnvVars: twin("concurrency")},
		&cli.IntFlag{Category: groupServer, Name: "queue-limit", Value: 1024, Usage: "accept at most `N` waiting builds", EnvVars: twin("queue-limit")},
		&cli.DurationFlag{Category: groupServer, Name: "grace", Value: 30 * time.Second, Usage: "at SIGTERM, give builds `DURATION` to end before they go back to the queue", EnvVars: twin("grace")},
		text(groupServer, "log-level", "info", "log `LEVEL`: debug, info, warn or error"),

		text(groupFiles, "data-dir", "/var/lib/cargo", "keep everything below `DIR`"),
		text(groupFiles, "storage-dir", "", "keep artifacts in `DIR` (default: storage below the data directory)"),
		text(groupFiles, "log-dir", "", "keep the logs of builds in `DIR` (default: logs below the data directory)"),
		text(groupFiles, "workspace-dir", "", "build in `DIR` (default: workspace below the data directory)"),
		text(groupFiles, "secret-file", "", "seal waiting tokens with the key in `FILE`, made at first start (default: secret below the data directory)"),

		text(groupExecutor, "executor", "containerd", "run builds on `ENGINE`: containerd or docker"),
		text(groupExecutor, "image", defaultImage, "build in `IMAGE`: a registry reference, or the path of an archive"),
		text(groupExecutor, "containerd-address", defaultContainerd, "find containerd at `SOCKET`"),
		text(groupExecutor, "docker-host", defaultDocker, "find Docker at `URL`; it must share this host's files", "DOCKER_HOST"),
		text(groupExecutor, "docker-cert-path", "", "speak TLS to Docker with ca.pem, cert.pem and key.pem in `DIR`", "DOCKER_CERT_PATH"),

		&cli.StringSliceFlag{Category: groupSource, Name: "remote", Value: cli.NewStringSlice("github.com", "gitlab.com", "bitbucket.org", "codeberg.org"),
			Usage: "allow the host `NAME[=BASE_URL]`; repeatable, replaces the default", EnvVars: twin("remote")},
		text(groupSource, "source-limit", "1GiB", "refuse trees of more than `SIZE`"),

		&cli.DurationFlag{Category: groupLimits, Name: "build-timeout", Value: 15 * time.Minute, Usage: "end a build after `DURATION`", EnvVars: twin("build-timeout")},
		text(groupLimits, "memory", "4GiB", "memory of a build: `SIZE`"),
		&cli.Float64Flag{Category: groupLimits, Name: "cpus", Usage: "processors of a build: `N`, 0 for all", EnvVars: twin("cpus")},
		&cli.Int64Flag{Category: groupLimits, Name: "pids", Value: executor.DefaultLimits.Pids, Usage: "processes and threads of a build: `N`", EnvVars: twin("pids")},
		text(groupLimits, "log-limit", "64MiB", "log of a build: `SIZE`"),
		text(groupLimits, "artifact-limit", "1GiB", "what a build may make: `SIZE`"),
	}
}

// text is a flag with a text value. It reads CARGO_NAME, else what others say.
func text(group, name, value, usage string, others ...string) cli.Flag {
	return &cli.StringFlag{Category: group, Name: name, Value: value, Usage: usage, EnvVars: append(twin(name), others...)}
}
