// Package worker turns a claimed build into a stored artifact. It is the only
// room that knows all the steps: fetch, plan, mount, build, collect, store.
package worker

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/buildlog"
	"github.com/monochromegane/cargo/cache"
	"github.com/monochromegane/cargo/disk"
	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/gitsrc"
	"github.com/monochromegane/cargo/queue"
	"github.com/monochromegane/cargo/stdlib"
)

// A Claimer hands out builds to work on. [queue.Queue] is one.
type Claimer interface {
	// Claim blocks until there is a build, or ctx ends.
	Claim(ctx context.Context) (*queue.Claim, error)
}

// A Source fetches trees. [gitsrc.Source] is one.
type Source interface {
	Unseal(sealed []byte, id build.ID) (gitsrc.Token, error)
	Fetch(ctx context.Context, repo build.Repository, ref gitsrc.Ref, tok gitsrc.Token, dir string) (*gitsrc.Tree, error)
}

// Metrics are told what happened.
type Metrics interface {
	BuildEnded(executor, result string, queued, took time.Duration)
	PhaseEnded(phase string, took time.Duration)
	ArtifactStored(bytes int64)
}

// Options are what a Worker works with. All fields are required but the
// limits, whose zero means the default of the room that enforces them.
type Options struct {
	Queue     Claimer
	Source    Source
	Executor  executor.Executor
	OpenDoor  func() Door // a new door for one build
	Modules   Modules
	Cache     *cache.Cache
	Library   Library
	Disks     *disk.Disks
	Artifacts *artifact.Store
	Logs      *buildlog.Store
	Metrics   Metrics
	Log       *slog.Logger

	Name      string // of the executor, for records and metrics
	Image     executor.Image
	Toolchain stdlib.Toolchain // of the image
	Network   string           // what OpenDoor leads to: modules, or none for those that are kept already
	ModuleEnv []string         // environment that the go command needs to trust what comes through the door

	Concurrency int           // builds at once
	Timeout     time.Duration // of one build, from its claim to its stored artifact

	Limits        executor.Limits
	DiskLimit     int64 // bytes of each of Disks, for what is said of it
	LogLimit      int64 // bytes of log that one attempt may add
	ArtifactLimit int64 // bytes, before packing and after
}

// A Worker works on the builds of a queue.
type Worker struct {
	Options
}

// New returns a Worker; Run makes it work.
func New(o Options) *Worker {
	o.LogLimit = cmp.Or(o.LogLimit, buildlog.DefaultLimit)
	return &Worker{o}
}

// errShutdown ends the builds that are still under way when the grace is over.
var errShutdown = errors.New("the server is shutting down")

// stopReserve is the part of the grace that is kept for ending the containers
// and handing the builds back.
const stopReserve = executor.Grace + 3*time.Second

// Run works until ctx ends. Then it claims no more, lets the builds under way
// end within grace, and hands back to the queue those that did not.
func (w *Worker) Run(ctx context.Context, grace time.Duration) {
	builds, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	defer context.AfterFunc(ctx, func() {
		sleep(builds, max(grace-stopReserve, 0))
		stop(errShutdown)
	})()

	var wg sync.WaitGroup
	for range w.Concurrency {
		wg.Go(func() { w.loop(ctx, builds) })
	}
	wg.Wait()
}

// claimPause is the pause after a queue that failed, so that one that stays
// broken does not fill the log.
const claimPause = time.Second

func (w *Worker) loop(ctx, builds context.Context) {
	for {
		claim, err := w.Queue.Claim(ctx)
		if ctx.Err() != nil {
			if err == nil {
				w.giveBack(claim)
			}
			return
		}
		if err != nil {
			w.Log.Error("cannot claim a build", "err", err)
			sleep(ctx, claimPause)
			continue
		}
		w.work(builds, claim)
	}
}

func (w *Worker) giveBack(claim *queue.Claim) {
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	if err := settle(ctx, claim.Requeue); err != nil {
		w.Log.Error("cannot hand a build back", "build", claim.Build().ID, "err", err)
	}
}

// endTimeout bounds what must still be written after a build's context ended.
const endTimeout = 30 * time.Second

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
