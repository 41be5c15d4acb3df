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
)

func serveCommand(stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:         "serve",
		Usage:        "accept builds over HTTP, run them and serve what they made",
		Flags:        hide(serveFlags(), "labels"),
		OnUsageError: onUsageError,
		Action:       serveAction(stderr, parseConfig),
	}
}

// workerCommand has the flags of serve, so that one environment does for both;
// those of the API are hidden, and mean nothing.
func workerCommand(stderr io.Writer) *cli.Command {
	flags := serveFlags()
	for _, f := range flags {
		if f, ok := f.(*cli.StringFlag); ok && f.Name == "listen" {
			f.Value, f.EnvVars, f.Usage = "", nil, "serve /healthz, /readyz and /metrics on `ADDRESS` (default: nowhere)"
		}
	}
	return &cli.Command{
		Name:  "worker",
		Usage: "run builds of a cluster's queue, without an API",
		Flags: hide(flags, "queue-limit", "s3-proxy", "auth-tokens-file", "open", "address-rate", "token-rate", "caller-builds", "trusted-proxy",
			"record-retention"),
		OnUsageError: onUsageError,
		Action:       serveAction(stderr, parseWorker),
	}
}

func serveAction(stderr io.Writer, parse func(*cli.Context) (config, error)) cli.ActionFunc {
	return func(c *cli.Context) error {
		cfg, err := parse(c)
		if err != nil {
			return err
		}
		log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: cfg.logLevel}))
		return serve(c.Context, cfg, log)
	}
}

// serve runs the server, or the worker, until ctx ends and all work has stopped.
func serve(ctx context.Context, cfg config, log *slog.Logger) (err error) {
	r, err := openRooms(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()

	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	stop, err := r.listen(ctx, fail, &wg)
	if err != nil {
		return err
	}
	wg.Go(func() { r.crew.watch(ctx) })
	wg.Go(func() { r.archivist.run(ctx) })
	wg.Go(func() { r.keepHouse(ctx) })
	if r.workshop == nil {
		log.Info("ready", "queue", cfg.cluster.URLs)
		<-ctx.Done()
	} else if err := r.workshop.work(ctx); err != nil {
		fail(err)
	}
	log.Info("stopping", "why", context.Cause(ctx))
	stop()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// shutdownTimeout is how long requests may take to end after their context has.
const shutdownTimeout = 2 * time.Second

// listen serves HTTP, if an address says so, until stop is called. fail is
// called if that breaks.
func (r *rooms) listen(ctx context.Context, fail context.CancelCauseFunc, wg *sync.WaitGroup) (stop func(), err error) {
	if r.cfg.listen == "" {
		return func() {}, nil
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", r.cfg.listen)
	if err != nil {
		return nil, usageError{fmt.Errorf("--listen %s: %w", r.cfg.listen, err)}
	}
	requests, endRequests := context.WithCancel(context.WithoutCancel(ctx))
	srv := &http.Server{
		Handler:           r.handler(),
		BaseContext:       func(net.Listener) context.Context { return requests },
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(r.log.Handler(), slog.LevelDebug),
	}
	r.log.Info("listening", "address", ln.Addr().String(), "data", r.cfg.dataDir)
	wg.Go(func() {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			fail(err)
		}
	})
	return func() {
		endRequests()
		sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		if err := srv.Shutdown(sctx); err != nil {
			_ = srv.Close()
		}
	}, nil
}

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
		if !rest(ctx, houseEvery) {
			return
		}
	}
}
