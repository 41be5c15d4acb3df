package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"runtime"
	"time"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/buildlog"
	"github.com/monochromegane/cargo/disk"
	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/gitsrc"
	"github.com/monochromegane/cargo/httpserver"
	"github.com/monochromegane/cargo/metrics"
	"github.com/monochromegane/cargo/modproxy"
	"github.com/monochromegane/cargo/queue"
	"github.com/monochromegane/cargo/worker"
)

// rooms are the parts of a server or a worker, open.
type rooms struct {
	cfg    config
	log    *slog.Logger
	secret []byte
	lock   *os.File // of the data directory
	name   string   // of this process among workers

	source    *gitsrc.Source
	artifacts store
	logs      logs
	queue     *queue.Queue
	callers   httpserver.Tokens // nil: everybody may build
	metrics   *metrics.Metrics
	crew      *crew
	archivist *archivist
	workshop  *workshop // nil where nothing is built
}

// logs keeps what builds print.
type logs interface {
	worker.Logs
	httpserver.Logs
	Prune(ctx context.Context, now time.Time) (removed int, err error)
}

// openRooms opens everything that cfg asks for. What is wrong with the
// configuration is said here, before anything is served.
func openRooms(ctx context.Context, cfg config, log *slog.Logger) (_ *rooms, err error) {
	if err := cfg.makeDirs(); err != nil {
		return nil, err
	}
	r := &rooms{cfg: cfg, log: log}
	r.crew = &crew{rooms: r}
	r.archivist = newArchivist(r)
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	if r.lock, err = lockData(cfg.dataDir); err != nil {
		return nil, err
	}
	secret, err := readSecret(cfg.secretFile)
	if err != nil {
		return nil, err
	}
	r.secret = secret.key
	if cfg.concurrency > 0 {
		if r.workshop, err = openWorkshop(ctx, r); err != nil {
			return nil, err
		}
	}
	if r.source, err = gitsrc.New(gitsrc.Options{
		Remotes: cfg.remotes,
		Limits:  gitsrc.Limits{TreeBytes: cfg.sourceLimit},
		Owner:   gitsrc.Owner{UID: executor.HostUID, GID: executor.HostUID},
		Secret:  r.secret,
		Log:     log,
	}); err != nil {
		return nil, err
	}
	if cfg.access.tokensFile != "" {
		if r.callers, err = openTokens(cfg.access.tokensFile, log); err != nil {
			return nil, err
		}
	}
	r.metrics = r.newMetrics()
	if r.workshop != nil {
		if err := r.workshop.openCaches(ctx); err != nil {
			return nil, err
		}
	}
	if r.artifacts, err = openStore(ctx, cfg, false, log); err != nil {
		return nil, err
	}
	if err := r.openQueue(ctx, secret); err != nil {
		return nil, err
	}
	return r, r.openLogs(ctx)
}

func (r *rooms) openQueue(ctx context.Context, s secret) error {
	var err error
	if r.name, err = workerName(r.cfg.dataDir); err != nil {
		return err
	}
	o := queueOptions(r.cfg)
	o.Worker, o.Log = r.name, r.log
	o.Dropped = r.dropped
	if r.queue, err = queue.Open(ctx, o); err != nil {
		return usageError{err}
	}
	for _, w := range r.queue.Warnings() {
		r.log.Warn("the queue is not as safe as it could be", "why", w)
	}
	if r.cfg.cluster == nil {
		return nil
	}
	if r.cfg.storage.dir != "" {
		r.log.Warn("artifacts are kept in a directory: every server and worker of this queue must have the same one, or keep them on S3", "directory", r.cfg.storage.dir)
	}
	err = r.queue.CheckSecret(ctx, r.secret)
	if errors.Is(err, queue.ErrSecret) {
		if s.made { // a moment ago, in vain
			_ = os.Remove(r.cfg.secretFile)
			err = fmt.Errorf("there is no such file, and a new secret is of no use: %w", err)
		}
		return usageError{fmt.Errorf("--secret-file %s: %w", r.cfg.secretFile, err)}
	}
	return err
}

// queueOptions is where the queue is and what it allows.
func queueOptions(cfg config) queue.Options {
	o := queue.Options{
		Cluster:     cfg.cluster,
		Limit:       cfg.queueLimit,
		Lease:       cfg.lease,
		CallerLimit: cfg.access.callerBuilds,
		Retention:   cfg.quotas.records,
	}
	if o.Cluster == nil {
		o.Dir = cfg.queueDir
	}
	return o
}

// openLogs opens files, which are enough for one process with a disk of its
// own; else logs are in the queue's JetStream while builds run, and in the
// store once they have ended.
func (r *rooms) openLogs(ctx context.Context) error {
	local, err := buildlog.Open(r.cfg.logDir, buildlog.Options{Retention: r.cfg.quotas.logs, Limit: r.cfg.quotas.logBytes})
	if err != nil {
		return err
	}
	if r.cfg.cluster == nil && r.cfg.storage.s3 == nil {
		r.logs = local
		return nil
	}
	o := buildlog.SharedOptions{
		Local:     local,
		JetStream: r.queue.JetStream(),
		Replicas:  r.queue.Replicas(),
		Archive:   r.artifacts,
		NotFound:  artifact.ErrNotFound,
		Log:       r.log,
	}
	if r.cfg.cluster != nil {
		o.Stream = "cargo-logs" // the account may be others' too
	}
	shared, err := buildlog.OpenShared(ctx, o)
	if err != nil {
		return usageError{err}
	}
	r.logs = shared
	return nil
}

// dropped is told of builds that end without a worker.
func (r *rooms) dropped(b build.Build) {
	r.metrics.BuildDropped(b.Result())
	r.archivist.settle(b)
}

// newMetrics reads the queue at each scrape, when it is open.
func (r *rooms) newMetrics() *metrics.Metrics {
	v := programVersion()
	kept := map[string]func() float64{"artifacts": func() float64 { return float64(r.artifacts.Bytes()) }}
	if s := r.workshop; s != nil {
		kept["packages"] = func() float64 { return float64(s.cache.Bytes()) }
		kept["modules"] = func() float64 { return float64(s.proxy.Bytes()) }
	}
	return metrics.New(metrics.Options{
		QueueDepth: func() float64 { return float64(r.queue.Depth()) },
		Running:    func() float64 { return float64(r.queue.Running()) },
		Workers:    func(state string) float64 { return float64(r.crew.count(state)) },
		States:     workerStates,
		Kept:       kept,
		DiskKind:   r.diskKind,
		DiskKinds:  names([]disk.Kind{disk.Loop, disk.Watch}),
		Modules:    modproxy.Sources(),
		Version:    v.version,
		Commit:     v.commit,
		GoVersion:  runtime.Version(),
		Executors:  []string{r.cfg.executor},
		Results:    results(),
		Phases:     names(build.Phases),
		Routes:     httpserver.Routes,
	})
}

// close closes what is open, in the order of dependence.
func (r *rooms) close() error {
	var errs []error
	if r.queue != nil {
		errs = append(errs, r.queue.Close())
	}
	if c, ok := r.artifacts.(interface{ Close() }); ok {
		c.Close()
	}
	if r.workshop != nil {
		errs = append(errs, r.workshop.close())
	}
	if r.lock != nil {
		errs = append(errs, r.lock.Close())
	}
	return errors.Join(errs...)
}

func (r *rooms) handler() http.Handler {
	ready := &readiness{rooms: r}
	o := httpserver.Options{
		Builds:         r.queue,
		Source:         r.source,
		Artifacts:      r.artifacts,
		Logs:           r.logs,
		Image:          r.crew.image,
		Ready:          ready.missing,
		Weak:           r.weaknesses,
		Access:         r.access(),
		Metrics:        r.metrics,
		MetricsHandler: r.metrics.Handler(),
		Log:            r.log,
	}
	if r.workshop == nil {
		o.NoImage = "no worker has come to this queue yet, and told which builder image it has; start one with cargo worker"
	}
	if s, ok := r.artifacts.(signer); ok && !r.cfg.storage.proxy {
		o.SignedURL = s.SignedURL
	}
	h := httpserver.New(o)
	if !r.cfg.worker {
		return h
	}
	probes := http.NewServeMux()
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		probes.Handle(path, h)
	}
	return probes
}

// access is the rules for those who ask.
func (r *rooms) access() httpserver.Access {
	a := r.cfg.access
	return httpserver.Access{
		Tokens:      r.callers,
		AddressRate: httpserver.Rate{PerMinute: a.addressRate, Burst: a.addressRate},
		TokenRate:   httpserver.Rate{PerMinute: a.tokenRate, Burst: a.tokenRate},
		Proxies:     a.trustedProxies,
		Secret:      r.secret,
	}
}

// weaknesses are what an operator should know of a server that is ready.
func (r *rooms) weaknesses() []string {
	weak := r.queue.Warnings()
	if d := r.disks(); d != nil && d.Weakness() != "" {
		weak = append(weak, d.Weakness())
	}
	return weak
}

// disks are those of builds, nil where there are none, or not yet.
func (r *rooms) disks() *disk.Disks {
	if r.workshop == nil {
		return nil
	}
	return r.workshop.disks.Load()
}

// diskKind is how the disks of builds are bounded, "" while that is not known.
func (r *rooms) diskKind() string {
	if d := r.disks(); d != nil {
		return string(d.Kind())
	}
	return ""
}

// results are the values of the metric label result.
func results() []string {
	return append(names(build.Reasons), string(build.Succeeded), string(build.Canceled))
}

func names[T ~string](values []T) []string {
	s := make([]string, len(values))
	for i, v := range values {
		s[i] = string(v)
	}
	return s
}
