package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/queue"
)

// A config is what cargo serve or cargo worker was told, checked.
type config struct {
	worker      bool   // cargo worker: builds, and has no API
	listen      string // "": nowhere, which only a worker may
	concurrency int
	queueLimit  int
	grace       time.Duration
	logLevel    slog.Level

	logDir, workspaceDir, queueDir, cacheDir string
	dataDir, secretFile                      string

	storage storage
	cluster *queue.Cluster // nil: the queue is in this process
	lease   time.Duration
	labels  map[string]string

	executor                   string
	image                      string
	containerdAddress          string
	dockerHost, dockerCertPath string

	remotes     map[string]string
	sourceLimit int64
	prepare     []platform // whose standard library is compiled after the start; none: nor any other's, ever
	network     string     // modules, or none

	timeout       time.Duration
	limits        executor.Limits
	diskLimit     int64
	logLimit      int64
	artifactLimit int64

	access access
	quotas quotas
}

// networkNone is the network of builds that reach nothing but what this server keeps.
const networkNone = "none"

type platform struct{ goos, goarch string }

// access says who may build, and how much.
type access struct {
	tokensFile             string
	addressRate, tokenRate int // requests a minute; 0 for no limit
	callerBuilds           int
	trustedProxies         []netip.Prefix
}

// minDisk is the least that package disk makes a file system on.
const minDisk = 16 << 20

// quotas bound what is kept.
type quotas struct {
	cache, modules, storage, logBytes, minFree int64 // bytes
	logs, records                              time.Duration
}

// twin is the environment variable of a flag.
func twin(flag string) []string {
	return []string{"CARGO_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))}
}

// parseConfig reads the flags and reports everything that is wrong with them at once.
func parseConfig(c *cli.Context) (config, error) { return parse(parser{c: c}) }

// parseWorker is parseConfig of cargo worker.
func parseWorker(c *cli.Context) (config, error) { return parse(parser{c: c, worker: true}) }

func parse(p parser) (config, error) {
	c := p.c
	if !p.arguments && c.Args().Present() {
		p.fail("unexpected argument %q; flags come with two dashes", c.Args().First())
	}
	data := p.dir("data-dir", "")
	cfg := config{
		worker:      p.worker,
		listen:      p.address("listen"),
		concurrency: p.concurrency(),
		queueLimit:  int(p.positive("queue-limit", int64(c.Int("queue-limit")))),
		grace:       c.Duration("grace"),

		dataDir:      data,
		logDir:       p.dir("log-dir", filepath.Join(data, "logs")),
		workspaceDir: p.dir("workspace-dir", filepath.Join(data, "workspace")),
		secretFile:   p.dir("secret-file", filepath.Join(data, "secret")),
		queueDir:     filepath.Join(data, "queue"),
		cacheDir:     filepath.Join(data, "cache"),

		storage: p.storage(filepath.Join(data, "storage")),
		cluster: p.cluster(),
		lease:   p.duration("lease"),
		labels:  p.labels(),

		executor:          c.String("executor"),
		image:             c.String("image"),
		containerdAddress: c.String("containerd-address"),
		dockerHost:        c.String("docker-host"),
		dockerCertPath:    c.String("docker-cert-path"),

		remotes:     p.remotes(),
		sourceLimit: p.size("source-limit"),
		prepare:     p.platforms("prepare"),
		network:     c.String("network"),

		timeout:       c.Duration("build-timeout"),
		diskLimit:     p.size("disk"),
		limits:        executor.Limits{Memory: p.size("memory"), CPUs: c.Float64("cpus"), Pids: p.positive("pids", c.Int64("pids"))},
		logLimit:      p.size("log-limit"),
		artifactLimit: p.size("artifact-limit"),

		access: p.access(),
		quotas: p.quotas(),
	}
	if err := cfg.logLevel.UnmarshalText([]byte(c.String("log-level"))); err != nil {
		p.fail("--log-level %q: want debug, info, warn or error", c.String("log-level"))
	}
	if cfg.executor != "containerd" && cfg.executor != "docker" {
		p.fail("--executor %q: want containerd or docker", cfg.executor)
	}
	if cfg.image == "" {
		p.fail("--image is empty: want a registry reference or the path of an archive")
	}
	if cfg.network != "modules" && cfg.network != networkNone {
		p.fail("--network %q: want modules or none", cfg.network)
	}
	if 0 < cfg.diskLimit && cfg.diskLimit < minDisk {
		p.fail("--disk %q: want 16MiB or more, which a file system needs", c.String("disk"))
	}
	if cfg.grace < 0 {
		p.fail("--grace %v: want zero or more", cfg.grace)
	}
	if cfg.timeout <= 0 {
		p.fail("--build-timeout %v: want more than zero", cfg.timeout)
	}
	if cfg.limits.CPUs < 0 {
		p.fail("--cpus %v: want zero or more", cfg.limits.CPUs)
	}
	if err := errors.Join(p.errs...); err != nil {
		return config{}, usageError{err}
	}
	return cfg, nil
}

// makeDirs makes the directories of a config and proves that they can be written.
func (cfg config) makeDirs() error {
	var errs []error
	for _, d := range []struct {
		path string
		flag string
	}{
		{cfg.dataDir, "data-dir"},
		{cfg.storage.dir, "storage"},
		{cfg.logDir, "log-dir"},
		{cfg.workspaceDir, "workspace-dir"},
		{cfg.queueDir, "data-dir"},
		{cfg.cacheDir, "data-dir"},
	} {
		if d.path == "" { // artifacts are elsewhere
			continue
		}
		if err := writable(d.path); err != nil {
			errs = append(errs, fmt.Errorf("--%s: cannot write in %s: %w; make it writable for this user, or name another", d.flag, d.path, cause(err)))
			if d.flag == "data-dir" {
				break // the rest is below it
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return usageError{err}
	}
	return nil
}

func writable(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// cause is err without the path that the os package puts before it.
func cause(err error) error {
	if e, ok := errors.AsType[*os.PathError](err); ok {
		return e.Err
	}
	return err
}

// lockData takes the data directory for this process until the file is closed:
// whoever has it may remove what an earlier process left there, and in the engine.
func lockData(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, usageError{fmt.Errorf("--data-dir %s: %w", dir, cause(err))}
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	_ = f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, usageError{fmt.Errorf("--data-dir %s: %w", dir, queue.ErrInUse)}
	}
	return nil, fmt.Errorf("lock %s: %w", dir, err)
}
