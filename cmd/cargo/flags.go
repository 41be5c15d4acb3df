package main

import (
	"runtime"
	"slices"
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
	groupAccess   = "Who may build"
	groupLimits   = "Limits of a build"
	groupQuotas   = "What is kept"
	groupCluster  = "More than one machine"
)

const (
	defaultImage      = "docker.io/library/golang:1.26-bookworm"
	defaultContainerd = "/run/containerd/containerd.sock"
	defaultDocker     = "unix:///var/run/docker.sock"
	defaultReplicas   = 3
	defaultLease      = time.Minute
)

// serveFlags are the flags of cargo serve; each has an environment twin.
func serveFlags() []cli.Flag {
	return []cli.Flag{
		text(groupServer, "listen", "127.0.0.1:8080", "serve HTTP on `ADDRESS`"),
		&cli.IntFlag{Category: groupServer, Name: "concurrency", Value: max(2, runtime.NumCPU()/2), Usage: "run `N` builds at once; 0 runs none and leaves them to cargo worker", EnvVars: twin("concurrency")},
		&cli.IntFlag{Category: groupServer, Name: "queue-limit", Value: 1024, Usage: "accept at most `N` waiting builds", EnvVars: twin("queue-limit")},
		&cli.DurationFlag{Category: groupServer, Name: "grace", Value: 30 * time.Second, Usage: "at SIGTERM, give builds `DURATION` to end before they go back to the queue", EnvVars: twin("grace")},
		text(groupServer, "log-level", "info", "log `LEVEL`: debug, info, warn or error"),

		text(groupFiles, "data-dir", "/var/lib/cargo", "keep everything below `DIR`"),
		text(groupFiles, "storage", "", "keep artifacts at `URL`: file:///DIR, or s3://BUCKET/PREFIX?region=R&endpoint=URL (default: storage below the data directory)"),
		text(groupFiles, "storage-dir", "", "the same as --storage file://`DIR`"),
		&cli.BoolFlag{Category: groupFiles, Name: "s3-proxy", Usage: "send artifacts from S3 through this server, not by a redirect to S3", EnvVars: twin("s3-proxy")},
		text(groupFiles, "log-dir", "", "keep the logs of builds in `DIR` (default: logs below the data directory)"),
		text(groupFiles, "workspace-dir", "", "build in `DIR` (default: workspace below the data directory)"),
		text(groupFiles, "secret-file", "", "seal waiting tokens with the key in `FILE`, made at first start (default: secret below the data directory)"),

		text(groupExecutor, "executor", "containerd", "run builds on `ENGINE`: containerd or docker"),
		text(groupExecutor, "image", defaultImage, "build in `IMAGE`: a registry reference, or the path of an archive"),
		text(groupExecutor, "containerd-address", defaultContainerd, "find containerd at `SOCKET`"),
		text(groupExecutor, "docker-host", defaultDocker, "find Docker at `URL`; it must share this host's files", "DOCKER_HOST"),
		text(groupExecutor, "docker-cert-path", "", "speak TLS to Docker with ca.pem, cert.pem and key.pem in `DIR`", "DOCKER_CERT_PATH"),
		&cli.StringSliceFlag{Category: groupExecutor, Name: "prepare", Value: cli.NewStringSlice("linux/" + runtime.GOARCH),
			Usage: "compile the standard library for `GOOS/GOARCH,...` in the background after the start, and for others once they are asked for; none for no target at all", EnvVars: twin("prepare")},
		text(groupExecutor, "network", "modules", "what builds reach: `modules` through this server, or none but what it keeps"),

		&cli.StringSliceFlag{Category: groupCluster, Name: "queue", Usage: "keep the queue in the NATS JetStream cluster at `URL,...` instead of in this process", EnvVars: twin("queue")},
		text(groupCluster, "queue-creds", "", "NATS credentials in `FILE`"),
		text(groupCluster, "queue-token-file", "", "NATS token in `FILE`; CARGO_QUEUE_TOKEN holds the token itself"),
		text(groupCluster, "queue-ca", "", "trust the certificates in `FILE` for NATS"),
		text(groupCluster, "queue-cert", "", "show NATS the certificate in `FILE`"),
		text(groupCluster, "queue-key", "", "the key of that certificate: `FILE`"),
		&cli.IntFlag{Category: groupCluster, Name: "queue-replicas", Value: defaultReplicas, Usage: "copies of what is made in the NATS cluster: `N`", EnvVars: twin("queue-replicas")},
		&cli.DurationFlag{Category: groupCluster, Name: "lease", Value: defaultLease, Usage: "take builds from a worker that was silent for `DURATION`; the same on all machines", EnvVars: twin("lease")},
		text(groupCluster, "labels", "", "what this worker is called besides its name: `KEY=VALUE,...`"),

		&cli.StringSliceFlag{Category: groupSource, Name: "remote", Value: cli.NewStringSlice("github.com", "gitlab.com", "bitbucket.org", "codeberg.org"),
			Usage: "allow the host `NAME[=BASE_URL]`; repeatable, replaces the default", EnvVars: twin("remote")},
		text(groupSource, "source-limit", "1GiB", "refuse trees of more than `SIZE`"),

		text(groupAccess, "auth-tokens-file", "", "only the callers in `FILE` may POST and DELETE: lines of NAME TOKEN"),
		&cli.BoolFlag{Category: groupAccess, Name: "open", Usage: "anybody who reaches an address that is not loopback may build", EnvVars: twin("open")},
		&cli.IntFlag{Category: groupAccess, Name: "address-rate", Value: 600, Usage: "POST and DELETE requests a minute from one address: `N`, 0 for no limit", EnvVars: twin("address-rate")},
		&cli.IntFlag{Category: groupAccess, Name: "token-rate", Value: 3000, Usage: "the same with one token: `N`", EnvVars: twin("token-rate")},
		&cli.IntFlag{Category: groupAccess, Name: "caller-builds", Value: 512, Usage: "builds of one caller that wait or run: `N`, 0 for no limit", EnvVars: twin("caller-builds")},
		&cli.StringSliceFlag{Category: groupAccess, Name: "trusted-proxy", Usage: "believe the X-Forwarded-For of proxies in `CIDR`; repeatable", EnvVars: twin("trusted-proxy")},

		&cli.DurationFlag{Category: groupLimits, Name: "build-timeout", Value: 15 * time.Minute, Usage: "end a build after `DURATION`", EnvVars: twin("build-timeout")},
		text(groupLimits, "memory", "4GiB", "memory of a build: `SIZE`"),
		&cli.Float64Flag{Category: groupLimits, Name: "cpus", Usage: "processors of a build: `N`, 0 for all", EnvVars: twin("cpus")},
		&cli.Int64Flag{Category: groupLimits, Name: "pids", Value: executor.DefaultLimits.Pids, Usage: "processes and threads of a build: `N`", EnvVars: twin("pids")},
		text(groupLimits, "disk", "10GiB", "what a build may write: `SIZE`"),
		text(groupLimits, "log-limit", "64MiB", "log of a build: `SIZE`"),
		text(groupLimits, "artifact-limit", "1GiB", "what a build may make: `SIZE`"),

		text(groupQuotas, "cache-limit", "20GiB", "compiled packages: `SIZE`"),
		text(groupQuotas, "module-cache-limit", "10GiB", "modules: `SIZE`"),
		text(groupQuotas, "storage-limit", "50GiB", "artifacts: `SIZE`; what was not used the longest goes first, and is built again when asked for"),
		text(groupQuotas, "logs-limit", "10GiB", "all logs together: `SIZE`; the oldest go first"),
		&cli.DurationFlag{Category: groupQuotas, Name: "log-retention", Value: 30 * 24 * time.Hour, Usage: "keep the log of a build for `DURATION`", EnvVars: twin("log-retention")},
		&cli.DurationFlag{Category: groupQuotas, Name: "record-retention", Value: 90 * 24 * time.Hour, Usage: "keep the record of a build for `DURATION`", EnvVars: twin("record-retention")},
		text(groupQuotas, "min-free", "1GiB", "start no build while a disk of this server has less than `SIZE` free"),
	}
}

// text is a flag with a text value. It reads CARGO_NAME, else what others say.
func text(group, name, value, usage string, others ...string) cli.Flag {
	return &cli.StringFlag{Category: group, Name: name, Value: value, Usage: usage, EnvVars: append(twin(name), others...)}
}

// only has the flags of serve, of which the help shows those that are named:
// the others keep their defaults.
func only(names ...string) []cli.Flag {
	return mark(serveFlags(), func(name string) bool { return !slices.Contains(names, name) })
}

// hide has the help not show the flags that are named.
func hide(flags []cli.Flag, names ...string) []cli.Flag {
	return mark(flags, func(name string) bool { return slices.Contains(names, name) })
}

func mark(flags []cli.Flag, hidden func(name string) bool) []cli.Flag {
	for _, f := range flags {
		h := hidden(f.Names()[0])
		switch f := f.(type) {
		case *cli.StringFlag:
			f.Hidden = h
		case *cli.StringSliceFlag:
			f.Hidden = h
		case *cli.IntFlag:
			f.Hidden = h
		case *cli.Int64Flag:
			f.Hidden = h
		case *cli.Float64Flag:
			f.Hidden = h
		case *cli.BoolFlag:
			f.Hidden = h
		case *cli.DurationFlag:
			f.Hidden = h
		}
	}
	return flags
}
