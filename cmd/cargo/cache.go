package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/monochromegane/cargo/cache"
	"github.com/monochromegane/cargo/disk"
	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/stdlib"
)

// cacheCommand looks after compiled packages by hand, beside a server that
// runs on the same data directory or without one.
func cacheCommand(stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:            "cache",
		Usage:           "look after the packages that are kept compiled",
		HideHelpCommand: true,
		OnUsageError:    onUsageError,
		Action:          helpOrNoSuch,
		Subcommands: []*cli.Command{
			{
				Name: "list", Usage: "print what is there", OnUsageError: onUsageError,
				Flags: only("data-dir"), Action: cacheAction(stderr, listCache),
			},
			{
				Name: "prepare", Usage: "compile the standard library for the targets of --prepare", OnUsageError: onUsageError,
				Flags:  only("data-dir", "prepare", "executor", "image", "containerd-address", "docker-host", "docker-cert-path", "memory", "cpus", "pids", "disk", "cache-limit"),
				Action: cacheAction(stderr, prepareCache),
			},
			{
				Name: "prune", Usage: "remove what was not used the longest, and is not in use", OnUsageError: onUsageError,
				Flags: append(only("data-dir"), &cli.StringFlag{Name: "keep", Value: "0", Usage: "until no more than `SIZE` is left"}), Action: cacheAction(stderr, pruneCache),
			},
		},
	}
}

func cacheAction(stderr io.Writer, do func(c *cli.Context, cfg config, log *slog.Logger) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		cfg, err := parseConfig(c)
		if err != nil {
			return err
		}
		if err := cfg.makeDirs(); err != nil {
			return err
		}
		return do(c, cfg, slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: cfg.logLevel})))
	}
}

func listCache(c *cli.Context, cfg config, log *slog.Logger) error {
	packages, err := openCache(cfg, log)
	if err != nil {
		return err
	}
	classes, err := packages.List()
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "WHAT\tTOOLCHAIN\tFOR\tLAYERS\tFILES\tSIZE\tLAST USED")
	for _, k := range classes {
		of := k.Repository
		if k.Kind == cache.KindStandard {
			of = k.Platform.String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%s\t%s\n", k.Kind, k.Toolchain, of, k.Layers, k.Files, units.BytesSize(float64(k.Bytes)), k.Used.UTC().Format(time.DateTime))
	}
	fmt.Fprintf(w, "all\t\t\t\t\t%s\t\n", units.BytesSize(float64(packages.Bytes())))
	return w.Flush()
}

func pruneCache(c *cli.Context, cfg config, log *slog.Logger) error {
	keep, err := units.RAMInBytes(c.String("keep"))
	if err != nil || keep < 0 {
		return usageError{fmt.Errorf("--keep %q: want a size such as 5GiB", c.String("keep"))}
	}
	packages, err := openCache(cfg, log)
	if err != nil {
		return err
	}
	freed, err := packages.Prune(c.Context, keep)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s freed, %s kept\n", units.BytesSize(float64(freed)), units.BytesSize(float64(packages.Bytes())))
	return err
}

// prepareCache works in a directory of its own, and with containers of its own:
// a server may be using the others.
func prepareCache(c *cli.Context, cfg config, log *slog.Logger) (err error) {
	ctx := c.Context
	packages, err := openCache(cfg, log)
	if err != nil {
		return err
	}
	cfg.dataDir = filepath.Join(cfg.dataDir, "prepare")
	cfg.workspaceDir = cfg.dataDir
	if err := writable(cfg.dataDir); err != nil {
		return err
	}
	lock, err := lockDir(cfg.dataDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	e, err := openEngine(ctx, cfg, cfg.executor, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	if _, err := e.Reap(ctx); err != nil {
		return fmt.Errorf("reap: %w", err)
	}
	disks, err := disk.Open(ctx, disk.Options{Dir: cfg.workspaceDir, Limit: cfg.diskLimit, Log: log})
	if err != nil {
		return err
	}
	return prepareAll(ctx, cfg, e, packages, disks, log)
}

func prepareAll(ctx context.Context, cfg config, e engine, packages *cache.Cache, disks *disk.Disks, log *slog.Logger) error {
	image, err := readyImage(ctx, cfg, e, log)
	if err != nil {
		return err
	}
	toolchain, err := inspect(ctx, cfg, e, image)
	if err != nil {
		return err
	}
	library := stdlib.New(stdlib.Options{
		Executor: e, Image: image.Ref, Toolchain: toolchain, Cache: packages, Disks: disks,
		Limits: cfg.limits, Metrics: unmeasured{}, Log: log,
	})
	for _, p := range cfg.prepare {
		if err := library.Prepare(ctx, toolchain.Platform(p.goos, p.goarch), false); err != nil {
			return fmt.Errorf("prepare the standard library for %s/%s: %w", p.goos, p.goarch, err)
		}
	}
	return nil
}

// lockDir keeps a second process out of a directory in which only one may work,
// until the file is closed or this process ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, usageError{fmt.Errorf("another `cargo cache prepare` is at work in %s; wait until it has ended", dir)}
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

// unmeasured is the metrics of a program that serves none.
type unmeasured struct{}

func (unmeasured) LibraryPrepared(string, string, float64) {}

func openCache(cfg config, log *slog.Logger) (*cache.Cache, error) {
	return cache.Open(cache.Options{
		Dir:   filepath.Join(cfg.cacheDir, "packages"),
		Limit: cfg.quotas.cache,
		UID:   executor.HostUID,
		GID:   executor.HostUID,
		Log:   log,
	})
}
