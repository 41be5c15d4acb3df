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
	cfg config
	log *slog.Logger

	engine    engine
	source    *gitsrc.Source
	proxy     *modproxy.Proxy
	artifacts *artifact.Store
	logs      *buildlog.Store
	queue     *queue.Queue
	metrics   *metrics.Metrics

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
	if err := r.openProxy(ctx); err != nil {
		return nil, err
	}
	if r.artifacts, err = artifact.Open(cfg.storageDir, artifact.Options{Log: log}); err != nil {
		return nil, err
	}
	if r.logs, err = buildlog.Open(cfg.logDir, buildlog.Options{}); err != nil {
		return nil, err
	}
	r.metrics = r.newMetrics()
	if r.queue, err = queue.Open(ctx, queue.Options{
		Dir:     cfg.queueDir,
		Limit:   cfg.queueLimit,
		Worker:  owner(cfg.dataDir),
		Log:     log,
		Dropped: func(b build.Build) { r.metrics.BuildDropped(b.Result()) },
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
		Version:    v.version,
		Commit:     v.commit,
		GoVersion:  runtime.Version(),
		Executors:  []string{r.cfg.executor},
		Results:    results(),
		Phases:     names(build.Phases),
		Routes:     httpserver.Routes,
	})
}

// openProxy opens the door's module proxy over this host's own settings.
func (r *rooms) openProxy(ctx context.Context) (err error) {
	env := moduleEnv(ctx)
	r.proxy, err = modproxy.New(modproxy.Options{
		GOPROXY:   env["GOPROXY"],
		GOSUMDB:   env["GOSUMDB"],
		GONOSUMDB: env["GONOSUMDB"],
		GONOPROXY: env["GONOPROXY"],
		GOPRIVATE: env["GOPRIVATE"],
		Dir:       filepath.Join(r.cfg.cacheDir, "modules"),
		Log:       r.log,
	})
	if err != nil {
		return usageError{fmt.Errorf("the go command's settings: %w", err)}
	}
	return nil
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
		Metrics:        r.metrics,
		MetricsHandler: r.metrics.Handler(),
		Log:            r.log,
	})
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
	return missing
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
