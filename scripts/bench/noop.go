package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/buildlog"
	"github.com/monochromegane/cargo/cache"
	"github.com/monochromegane/cargo/disk"
	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/gitsrc"
	"github.com/monochromegane/cargo/modproxy"
	"github.com/monochromegane/cargo/queue"
	"github.com/monochromegane/cargo/stdlib"
	"github.com/monochromegane/cargo/worker"
)

// noopWorkers is the argument that makes this program a worker of which all is
// real but the executor.
const noopWorkers = "noop-worker"

// noopTime is how long the executor takes to do nothing.
const noopTime = 2 * time.Second

// A noopWorker is what such a process is told first.
type noopWorker struct {
	Name        string
	Dir         string // for what it keeps
	URLs        []string
	Host        string // URL of the git host
	Concurrency int
}

// runNoopWorker says that it is ready, and works from the next value on until ctx ends.
func runNoopWorker(ctx context.Context, in *json.Decoder, out *json.Encoder) (err error) {
	var w noopWorker
	if err := in.Decode(&w); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	q, err := queue.Open(ctx, queue.Options{Cluster: &queue.Cluster{URLs: w.URLs}, Worker: w.Name, Log: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, q.Close()) }()
	o, err := w.options(ctx, log)
	if err != nil {
		return err
	}
	o.Queue = q
	if err := out.Encode("ready"); err != nil {
		return err
	}
	var begin string
	if err := in.Decode(&begin); err != nil {
		return err
	}
	worker.New(o).Run(ctx, 0)
	return nil
}

// options are what cargo serve gives to its worker, but for the executor.
func (w noopWorker) options(ctx context.Context, log *slog.Logger) (o worker.Options, err error) {
	o = worker.Options{
		Executor: noop{}, Library: noop{}, Metrics: noop{}, Log: log,
		Name: "noop", Image: executor.Image{Ref: "noop", Digest: noopImage}, Toolchain: stdlib.Toolchain{Version: "go1.26"}, Network: "none",
		Concurrency: w.Concurrency, Timeout: time.Minute, DiskLimit: 64 << 20,
	}
	if o.Source, err = newSource(w.Host); err != nil {
		return o, err
	}
	modules, err := modproxy.New(modproxy.Options{GOPROXY: "off", GOSUMDB: "off", Dir: filepath.Join(w.Dir, "modules")})
	if err != nil {
		return o, err
	}
	o.Modules, o.OpenDoor = modules, func() worker.Door { return modules.Door(modproxy.Limits{}) }
	if o.Cache, err = cache.Open(cache.Options{Dir: filepath.Join(w.Dir, "packages"), UID: executor.HostUID, GID: executor.HostUID, Log: log}); err != nil {
		return o, err
	}
	if o.Disks, err = disk.Open(ctx, disk.Options{Dir: filepath.Join(w.Dir, "workspace"), Limit: o.DiskLimit, Log: log}); err != nil {
		return o, err
	}
	if o.Artifacts, err = artifact.Open(filepath.Join(w.Dir, "storage"), artifact.Options{Log: log}); err != nil {
		return o, err
	}
	o.Logs, err = buildlog.Open(filepath.Join(w.Dir, "logs"), buildlog.Options{})
	return o, err
}

// newSource fetches from one git host.
func newSource(host string) (*gitsrc.Source, error) {
	return gitsrc.New(gitsrc.Options{
		Remotes: map[string]string{remote: host},
		Owner:   gitsrc.Owner{UID: executor.HostUID, GID: executor.HostUID},
		Secret:  make([]byte, 32), // there is no token to be sealed
	})
}

const noopImage = "sha256:noop"

// A noop stands for what a worker needs and this case has not.
type noop struct{}

// Run sleeps, and leaves a file in the tree, so that there is something to store.
func (noop) Run(ctx context.Context, step executor.Step) error {
	select {
	case <-time.After(noopTime):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for _, m := range step.Mounts {
		if below, ok := strings.CutPrefix(step.Dir, m.Target+"/"); ok {
			return os.WriteFile(filepath.Join(m.Source, below, "app"), []byte("made of nothing\n"), 0o644)
		}
	}
	return errors.New("the tree is not mounted")
}

func (noop) Reap(context.Context) (int, error) { return 0, nil }

func (noop) Ping(context.Context) (executor.Info, error) { return executor.Info{Name: "noop"}, nil }

func (noop) Want(cache.Platform) {}

func (noop) BuildEnded(_, _ string, _, _ time.Duration) {}
func (noop) PhaseEnded(string, time.Duration)           {}
func (noop) ArtifactStored(int64)                       {}
