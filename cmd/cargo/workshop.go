package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/monochromegane/cargo/cache"
	"github.com/monochromegane/cargo/disk"
	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/modproxy"
	"github.com/monochromegane/cargo/queue"
	"github.com/monochromegane/cargo/stdlib"
	"github.com/monochromegane/cargo/worker"
)

// A workshop is where builds run: an engine, and what builds share on this machine.
type workshop struct {
	*rooms
	engine engine
	proxy  *modproxy.Proxy
	cache  *cache.Cache

	disks atomic.Pointer[disk.Disks]     // nil until what an earlier process left is swept
	image atomic.Pointer[executor.Image] // nil until it is ready
}

// openWorkshop connects to the engine; openCaches opens the rest.
func openWorkshop(ctx context.Context, r *rooms) (*workshop, error) {
	e, err := openEngine(ctx, r.cfg, r.cfg.executor, r.log)
	if err != nil {
		return nil, err
	}
	return &workshop{rooms: r, engine: e}, nil
}

func (s *workshop) openCaches(ctx context.Context) (err error) {
	if err := s.openProxy(ctx); err != nil {
		return err
	}
	s.cache, err = openCache(s.cfg, s.log)
	return err
}

// openProxy opens the door's module proxy over this host's own settings.
func (s *workshop) openProxy(ctx context.Context) (err error) {
	env := moduleEnv(ctx)
	s.proxy, err = modproxy.New(modproxy.Options{
		GOPROXY:    env["GOPROXY"],
		GOSUMDB:    env["GOSUMDB"],
		GONOSUMDB:  env["GONOSUMDB"],
		GONOPROXY:  env["GONOPROXY"],
		GOPRIVATE:  env["GOPRIVATE"],
		Dir:        filepath.Join(s.cfg.cacheDir, "modules"),
		CacheLimit: s.cfg.quotas.modules,
		UID:        executor.HostUID,
		GID:        executor.HostUID,
		Offline:    s.cfg.network == networkNone,
		Metrics:    s.metrics,
		Log:        s.log,
	})
	if err != nil {
		return usageError{fmt.Errorf("the go command's settings: %w", err)}
	}
	return nil
}

func (s *workshop) openDoor() worker.Door { return s.proxy.Door(modproxy.Limits{}) }

func (s *workshop) close() error { return s.engine.Close() }

// work puts right what an earlier process left, readies the image, joins the
// queue's workers and builds until ctx ends.
func (s *workshop) work(ctx context.Context) error {
	left, err := s.sweep(ctx)
	if err != nil {
		return err
	}
	image, toolchain, err := s.ready(ctx)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	library := s.library(image, toolchain)
	for _, p := range s.cfg.prepare {
		library.Want(toolchain.Platform(p.goos, p.goarch))
	}
	s.image.Store(&image)
	running := new(atomic.Int64)
	member, err := s.join(ctx, image, running)
	if err != nil {
		return err
	}
	defer func() { _ = member.Close() }()
	// Not before it is certain that no other process has this name.
	back, err := s.queue.Recover(ctx)
	if err != nil {
		return fmt.Errorf("recover builds: %w", err)
	}
	if left+back > 0 {
		s.log.Info("put right what the last run left", "containers", left, "builds", back)
	}
	s.log.Info("ready", "image", s.cfg.image, "digest", image.Digest, "toolchain", toolchain.Version)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { library.Run(ctx) })
	s.worker(image, toolchain, library, member, running).Run(ctx, s.cfg.grace)
	return nil
}

// sweep removes the containers and the disks of earlier processes.
func (s *workshop) sweep(ctx context.Context) (containers int, err error) {
	if err := reapFormer(ctx, s.cfg, s.log); err != nil {
		return 0, err
	}
	n, err := s.engine.Reap(ctx)
	if err != nil {
		return n, fmt.Errorf("reap: %w", err)
	}
	disks, err := disk.Open(ctx, disk.Options{Dir: s.cfg.workspaceDir, Limit: s.cfg.diskLimit, Log: s.log})
	if err != nil {
		return n, fmt.Errorf("the disks of builds in %s: %w", s.cfg.workspaceDir, err)
	}
	s.disks.Store(disks)
	if weak := disks.Weakness(); weak != "" {
		s.log.Warn("the disk of a build is bounded weakly", "why", weak)
	}
	return n, nil
}

func (s *workshop) ready(ctx context.Context) (executor.Image, stdlib.Toolchain, error) {
	image, err := readyImage(ctx, s.cfg, s.engine, s.log)
	if err != nil {
		return image, stdlib.Toolchain{}, err
	}
	toolchain, err := inspect(ctx, s.cfg, s.engine, image)
	return image, toolchain, err
}

// keepImage sees that the engine still has the image, and fetches it again where
// somebody has pruned it. Another one under its name is for the next start, which
// tells the queue of it.
func (s *workshop) keepImage(ctx context.Context, image executor.Image) error {
	now, err := s.engine.EnsureImage(ctx, s.cfg.image, s.log.Info)
	if err == nil && now != image {
		err = fmt.Errorf("--image %s is %s now, and was %s when this program started: start it again", s.cfg.image, now.Digest, image.Digest)
	}
	return err
}

// join announces this workshop among the workers of the queue.
func (s *workshop) join(ctx context.Context, image executor.Image, running *atomic.Int64) (*queue.Membership, error) {
	v := programVersion()
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("name this worker's host: %w", err)
	}
	m, err := s.queue.Join(ctx, queue.Worker{
		Name:        s.name,
		Host:        host,
		Started:     time.Now().UTC(),
		Labels:      s.cfg.labels,
		Executor:    s.cfg.executor,
		Version:     v.version,
		Concurrency: s.cfg.concurrency,
		Image:       s.cfg.image,
		ImageDigest: image.Digest,
	}, func() int { return int(running.Load()) })
	if errors.Is(err, queue.ErrNameTaken) {
		return nil, usageError{err}
	}
	return m, err
}

func (s *workshop) library(image executor.Image, toolchain stdlib.Toolchain) *stdlib.Library {
	return stdlib.New(stdlib.Options{
		Executor:  s.engine,
		Image:     image.Ref,
		Toolchain: toolchain,
		Cache:     s.cache,
		Disks:     s.disks.Load(),
		Limits:    s.cfg.limits,
		Metrics:   s.metrics,
		Log:       s.log,
	})
}

// wanted is what builds ask for the library of their target: nothing with
// --prepare none.
func (s *workshop) wanted(library *stdlib.Library) worker.Library {
	if len(s.cfg.prepare) == 0 {
		return noLibrary{}
	}
	return library
}

type noLibrary struct{}

func (noLibrary) Want(cache.Platform) {}

// A claimer claims nothing while a disk is nearly full.
type claimer struct{ *rooms }

func (c claimer) Claim(ctx context.Context) (*queue.Claim, error) {
	for {
		c.waitForSpace(ctx)
		claim, err := c.queue.Claim(ctx)
		if err != nil || c.lowSpace() == "" {
			return claim, err
		}
		// The disk has filled up while there was nothing to do. A claim that is
		// kept would be renewed for ever.
		for err = claim.Requeue(ctx); err != nil && !errors.Is(err, queue.ErrLeaseLost) && ctx.Err() == nil; err = claim.Requeue(ctx) {
			c.log.Warn("a build is not handed back yet", "build", claim.Build().ID, "err", err)
			rest(ctx, spacePause)
		}
	}
}

func (s *workshop) worker(image executor.Image, toolchain stdlib.Toolchain, library *stdlib.Library, member *queue.Membership, running *atomic.Int64) *worker.Worker {
	return worker.New(worker.Options{
		Queue:         claimer{s.rooms},
		Source:        s.source,
		Executor:      s.engine,
		OpenDoor:      s.openDoor,
		Modules:       s.proxy,
		Cache:         s.cache,
		Library:       s.wanted(library),
		Disks:         s.disks.Load(),
		Artifacts:     s.artifacts,
		Logs:          s.logs,
		Metrics:       s.metrics,
		Log:           s.log,
		Name:          s.cfg.executor,
		Image:         image,
		Toolchain:     toolchain,
		Network:       s.cfg.network,
		ModuleEnv:     s.proxy.Env(),
		Concurrency:   s.cfg.concurrency,
		Mend:          func(ctx context.Context) error { return s.keepImage(ctx, image) },
		Draining:      member.Draining,
		Running:       running,
		Timeout:       s.cfg.timeout,
		Limits:        s.cfg.limits,
		DiskLimit:     s.cfg.diskLimit,
		LogLimit:      s.cfg.logLimit,
		ArtifactLimit: s.cfg.artifactLimit,
	})
}
