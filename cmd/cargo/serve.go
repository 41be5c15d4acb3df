package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/monochromegane/cargo/cache"
	"github.com/monochromegane/cargo/disk"
	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/queue"
	"github.com/monochromegane/cargo/stdlib"
	"github.com/monochromegane/cargo/worker"
)

func serveCommand(stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:         "serve",
		Usage:        "accept builds over HTTP, run them and serve what they made",
		Flags:        serveFlags(),
		OnUsageError: onUsageError,
		Action: func(c *cli.Context) error {
			cfg, err := parseConfig(c)
			if err != nil {
				return err
			}
			log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: cfg.logLevel}))
			return serve(c.Context, cfg, log)
		},
	}
}

// serve runs the server until ctx ends and all work has stopped.
func serve(ctx context.Context, cfg config, log *slog.Logger) (err error) {
	r, err := openRooms(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	ln, err := net.Listen("tcp", cfg.listen)
	if err != nil {
		return usageError{fmt.Errorf("--listen %s: %w", cfg.listen, err)}
	}

	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	requests, endRequests := context.WithCancel(context.WithoutCancel(ctx))
	defer endRequests()
	srv := &http.Server{
		Handler:           r.handler(),
		BaseContext:       func(net.Listener) context.Context { return requests },
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	log.Info("listening", "address", ln.Addr().String(), "data", cfg.dataDir)

	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			fail(err)
		}
	})
	if err := r.build(ctx, fail); err != nil {
		fail(err)
	}
	log.Info("stopping", "why", context.Cause(ctx))
	endRequests()
	sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := srv.Shutdown(sctx); err != nil {
		_ = srv.Close()
	}
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// shutdownTimeout is how long requests may take to end after their context has.
const shutdownTimeout = 2 * time.Second

// build puts right what an earlier process left, readies the image and works
// until ctx ends. fail ends ctx where nothing but a new start helps.
func (r *rooms) build(ctx context.Context, fail context.CancelCauseFunc) error {
	if err := reapFormer(ctx, r.cfg, r.log); err != nil {
		return err
	}
	n, err := r.engine.Reap(ctx)
	if err != nil {
		return fmt.Errorf("reap: %w", err)
	}
	disks, err := disk.Open(ctx, disk.Options{Dir: r.cfg.workspaceDir, Limit: r.cfg.diskLimit, Log: r.log})
	if err != nil {
		return fmt.Errorf("the disks of builds in %s: %w", r.cfg.workspaceDir, err)
	}
	r.disks.Store(disks)
	if weak := disks.Weakness(); weak != "" {
		r.log.Warn("the disk of a build is bounded weakly", "why", weak)
	}
	back, err := r.queue.Recover(ctx)
	if err != nil {
		return fmt.Errorf("recover builds: %w", err)
	}
	if n+back > 0 {
		r.log.Info("put right what the last run left", "containers", n, "builds", back)
	}
	image, err := readyImage(ctx, r.cfg, r.engine, r.log)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	toolchain, err := inspect(ctx, r.cfg, r.engine, image)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	library := r.library(image, toolchain)
	for _, p := range r.cfg.prepare {
		library.Want(toolchain.Platform(p.goos, p.goarch))
	}
	r.image.Store(&image)
	r.log.Info("ready", "image", r.cfg.image, "digest", image.Digest, "toolchain", toolchain.Version)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { library.Run(ctx) })
	wg.Go(func() { r.keepHouse(ctx) })
	r.worker(image, toolchain, library, fail).Run(ctx, r.cfg.grace)
	return nil
}

func (r *rooms) library(image executor.Image, toolchain stdlib.Toolchain) *stdlib.Library {
	return stdlib.New(stdlib.Options{
		Executor:  r.engine,
		Image:     image.Ref,
		Toolchain: toolchain,
		Cache:     r.cache,
		Disks:     r.disks.Load(),
		Limits:    r.cfg.limits,
		Metrics:   r.metrics,
		Log:       r.log,
	})
}

// wanted is what builds ask for the library of their target: nothing with
// --prepare none.
func (r *rooms) wanted(library *stdlib.Library) worker.Library {
	if len(r.cfg.prepare) == 0 {
		return noLibrary{}
	}
	return library
}

type noLibrary struct{}

func (noLibrary) Want(cache.Platform) {}

// houseEvery is how often what is too old is looked for.
const houseEvery = time.Hour

// keepHouse removes logs whose time is over, until ctx ends.
func (r *rooms) keepHouse(ctx context.Context) {
	for {
		if n, err := r.logs.Prune(ctx, time.Now()); err != nil && ctx.Err() == nil {
			r.log.Error("cannot remove old logs", "err", err)
		} else if n > 0 {
			r.log.Info("old logs removed", "logs", n)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(houseEvery):
		}
	}
}

// A claimer claims nothing while a disk is nearly full. It ends the server when
// the queue can no longer be written: an embedded store does not recover by
// itself, and what was accepted is on the disk.
type claimer struct {
	*rooms
	fail context.CancelCauseFunc
}

func (c claimer) Claim(ctx context.Context) (*queue.Claim, error) {
	for {
		c.waitForSpace(ctx)
		claim, err := c.queue.Claim(ctx)
		if errors.Is(err, queue.ErrBroken) {
			c.fail(err)
		}
		if err != nil || c.lowSpace() == "" {
			return claim, err
		}
		// The disk has filled up while there was nothing to do.
		if err := claim.Requeue(ctx); err != nil {
			return nil, err
		}
	}
}

func (r *rooms) worker(image executor.Image, toolchain stdlib.Toolchain, library *stdlib.Library, fail context.CancelCauseFunc) *worker.Worker {
	return worker.New(worker.Options{
		Queue:         claimer{r, fail},
		Source:        r.source,
		Executor:      r.engine,
		OpenDoor:      r.openDoor,
		Modules:       r.proxy,
		Cache:         r.cache,
		Library:       r.wanted(library),
		Disks:         r.disks.Load(),
		Artifacts:     r.artifacts,
		Logs:          r.logs,
		Metrics:       r.metrics,
		Log:           r.log,
		Name:          r.cfg.executor,
		Image:         image,
		Toolchain:     toolchain,
		Network:       r.cfg.network,
		ModuleEnv:     r.proxy.Env(),
		Concurrency:   r.cfg.concurrency,
		Timeout:       r.cfg.timeout,
		Limits:        r.cfg.limits,
		DiskLimit:     r.cfg.diskLimit,
		LogLimit:      r.cfg.logLimit,
		ArtifactLimit: r.cfg.artifactLimit,
	})
}

// imageDigest is the builder image's, or "" while it is not ready.
func (r *rooms) imageDigest() string {
	if i := r.image.Load(); i != nil {
		return i.Digest
	}
	return ""
}
