package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/buildlog"
	"github.com/monochromegane/cargo/cache"
	"github.com/monochromegane/cargo/disk"
	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/gitsrc"
	"github.com/monochromegane/cargo/httpserver"
	"github.com/monochromegane/cargo/metrics"
	"github.com/monochromegane/cargo/modproxy"
	"github.com/monochromegane/cargo/queue"
	"github.com/monochromegane/cargo/worker"
)

// rooms are the parts of a server, open.
type rooms struct {
	cfg    config
	log    *slog.Logger
	secret []byte

	engine    engine
	source    *gitsrc.Source
	proxy     *modproxy.Proxy
	cache     *cache.Cache
	artifacts *artifact.Store
	logs      *buildlog.Store
	queue     *queue.Queue
	callers   httpserver.Tokens // nil: everybody may build
	metrics   *metrics.Metrics

	disks atomic.Pointer[disk.Disks]     // nil until what an earlier process left is swept
	image atomic.Pointer[executor.Image] // nil until it is ready
}

// openRooms opens everything that a server needs. What is wrong with the
// configuration is said here, before anything is served.
func openRooms(ctx context.Context, cfg config, log *slog.Logger) (_ *rooms, err error) {
	if err := cfg.makeDirs(); err != nil {
		return nil, err
	}
	secret, err := readSecret(cfg.secretFile)
	if err != nil {
		return nil, err
	}
	r := &rooms{cfg: cfg, log: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	if r.engine, err = openEngine(ctx, cfg, cfg.executor, log); err != nil {
		return nil, err
	}
	if r.source, err = gitsrc.New(gitsrc.Options{
		Remotes: cfg.remotes,
		Limits:  gitsrc.Limits{TreeBytes: cfg.sourceLimit},
		Owner:   gitsrc.Owner{UID: executor.HostUID, GID: executor.HostUID},
		Secret:  secret,
		Log:     log,
	}); err != nil {
		return nil, err
	}
	if cfg.access.tokensFile != "" {
		if r.callers, err = openTokens(cfg.access.tokensFile, log); err != nil {
			return nil, err
		}
	}
	r.secret = secret
	r.metrics = r.newMetrics()
	if err := r.openProxy(ctx); err != nil {
		return nil, err
	}
	if r.cache, err = openCache(cfg, log); err != nil {
		return nil, err
	}
	if r.artifacts, err = artifact.Open(cfg.storageDir, artifact.Options{Limit: cfg.quotas.storage, Log: log}); err != nil {
		return nil, err
	}
	if r.logs, err = buildlog.Open(cfg.logDir, buildlog.Options{Retention: cfg.quotas.logs, Limit: cfg.quotas.logBytes}); err != nil {
		return nil, err
	}
	if r.queue, err = queue.Open(ctx, queue.Options{
		Dir:         cfg.queueDir,
		Limit:       cfg.queueLimit,
		CallerLimit: cfg.access.callerBuilds,
		Retention:   cfg.quotas.records,
		Worker:      owner(cfg.dataDir),
		Log:         log,
		Dropped:     func(b build.Build) { r.metrics.BuildDropped(b.Result()) },
	}); err != nil {
		return nil, usageError{err}
	}
	return r, nil
}

// newMetrics reads the queue at each scrape, when it is open.
func (r *rooms) newMetrics() *metrics.Metrics {
	v := programVersion()
	return metrics.New(metrics.Options{
		QueueDepth: func() float64 { return float64(r.queue.Depth()) },
		Running:    func() float64 { return float64(r.queue.Running()) },
		Kept: map[string]func() float64{
			"packages":  func() float64 { return float64(r.cache.Bytes()) },
			"modules":   func() float64 { return float64(r.proxy.Bytes()) },
			"artifacts": func() float64 { return float64(r.artifacts.Bytes()) },
		},
		DiskKind:  r.diskKind,
		DiskKinds: names([]disk.Kind{disk.Loop, disk.Watch}),
		Modules:   modproxy.Sources(),
		Version:   v.version,
		Commit:    v.commit,
		GoVersion: runtime.Version(),
		Executors: []string{r.cfg.executor},
		Results:   results(),
		Phases:    names(build.Phases),
		Routes:    httpserver.Routes,
	})
}

// openProxy opens the door's module proxy over this host's own settings.
func (r *rooms) openProxy(ctx context.Context) (err error) {
	env := moduleEnv(ctx)
	r.proxy, err = modproxy.New(modproxy.Options{
		GOPROXY:    env["GOPROXY"],
		GOSUMDB:    env["GOSUMDB"],
		GONOSUMDB:  env["GONOSUMDB"],
		GONOPROXY:  env["GONOPROXY"],
		GOPRIVATE:  env["GOPRIVATE"],
		Dir:        filepath.Join(r.cfg.cacheDir, "modules"),
		CacheLimit: r.cfg.quotas.modules,
		UID:        executor.HostUID,
		GID:        executor.HostUID,
		Offline:    r.cfg.network == networkNone,
		Metrics:    r.metrics,
		Log:        r.log,
	})
	if err != nil {
		return usageError{fmt.Errorf("the go command's settings: %w", err)}
	}
	return nil
}

func openCache(cfg config, log *slog.Logger) (*cache.Cache, error) {
	return cache.Open(cache.Options{
		Dir:   filepath.Join(cfg.cacheDir, "packages"),
		Limit: cfg.quotas.cache,
		UID:   executor.HostUID,
		GID:   executor.HostUID,
		Log:   log,
	})
}

func (r *rooms) openDoor() worker.Door { return r.proxy.Door(modproxy.Limits{}) }

// close closes what is open, in the order of dependence.
func (r *rooms) close() error {
	var errs []error
	if r.queue != nil {
		errs = append(errs, r.queue.Close())
	}
	if r.engine != nil {
		errs = append(errs, r.engine.Close())
	}
	return errors.Join(errs...)
}

func (r *rooms) handler() http.Handler {
	ready := &readiness{rooms: r}
	return httpserver.New(httpserver.Options{
		Builds:         r.queue,
		Source:         r.source,
		Artifacts:      r.artifacts,
		Logs:           r.logs,
		Image:          r.imageDigest,
		Ready:          ready.missing,
		Weak:           r.weaknesses,
		Access:         r.access(),
		Metrics:        r.metrics,
		MetricsHandler: r.metrics.Handler(),
		Log:            r.log,
	})
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

// readiness remembers what an engine said for a moment, so that probes cost nothing.
type readiness struct {
	*rooms
	said atomic.Pointer[said]
}

type said struct {
	at      time.Time
	problem string
}

// readyAge is how old an engine's answer may be.
const readyAge = 2 * time.Second

// missing names what is not ready.
func (r *readiness) missing(ctx context.Context) []string {
	var missing []string
	if r.image.Load() == nil {
		missing = append(missing, "the builder image is not there yet")
	}
	if r.queue.Err() != nil {
		missing = append(missing, "the queue cannot be written; see that its disk is not full, and start again")
	}
	s := r.said.Load()
	if s == nil || time.Since(s.at) > readyAge {
		s = &said{at: time.Now()}
		if _, err := r.engine.Ping(ctx); err != nil {
			s.problem = fmt.Sprintf("the executor %s does not answer", r.cfg.executor)
		}
		r.said.Store(s)
	}
	if s.problem != "" {
		missing = append(missing, s.problem)
	}
	if low := r.lowSpace(); low != "" {
		missing = append(missing, low)
	}
	return missing
}

// weaknesses are what an operator should know of a server that is ready.
func (r *rooms) weaknesses() []string {
	if d := r.disks.Load(); d != nil && d.Weakness() != "" {
		return []string{d.Weakness()}
	}
	return nil
}

// diskKind is how the disks of builds are bounded, "" while that is not known.
func (r *rooms) diskKind() string {
	if d := r.disks.Load(); d != nil {
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
