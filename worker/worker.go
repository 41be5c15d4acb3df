// Package worker turns a claimed build into a stored artifact. It is the only
// room that knows all the steps: fetch, plan, mount, build, collect, store.
package worker

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
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

// Artifacts keep what builds made. An [artifact.Store] does.
type Artifacts interface {
	// Put stores what write writes, once o.Confirm has agreed.
	// artifact.ErrSuperseded if a later attempt of the build was there first.
	Put(ctx context.Context, m artifact.Meta, o artifact.PutOptions, write func(io.Writer) error) (artifact.Meta, error)
}

// Logs are written while builds run. A [buildlog.Store] is one.
type Logs interface {
	Create(ctx context.Context, b build.Build, limit int64) (*buildlog.Writer, error)
	// Keep moves the log of b, which is complete, to where it stays.
	Keep(ctx context.Context, b build.Build) error
	// Drop removes what Keep has left behind, once the record says that b ended.
	Drop(ctx context.Context, b build.Build) error
}

// Metrics are told what happened. No duration is negative.
type Metrics interface {
	BuildEnded(executor, result string, queued, took time.Duration)
	PhaseEnded(phase string, took time.Duration)
	ArtifactStored(bytes int64)
}

// Options are what a Worker works with. All fields are required but Mend, Draining,
// Running and the limits, whose zero means the default of the room that
// enforces them.
type Options struct {
	Queue     Claimer
	Source    Source
	Executor  executor.Executor
	OpenDoor  func() Door // a new door for one build
	Modules   Modules
	Cache     *cache.Cache
	Library   Library
	Disks     *disk.Disks
	Artifacts Artifacts
	Logs      Logs
	Metrics   Metrics
	Log       *slog.Logger

	Name      string // of the executor, for records and metrics
	Image     executor.Image
	Toolchain stdlib.Toolchain // of the image
	Network   string           // what OpenDoor leads to: modules, or none for those that are kept already
	ModuleEnv []string         // environment that the go command needs to trust what comes through the door

	Concurrency int           // builds at once
	Timeout     time.Duration // of one try, until what it made is collected; storing that is our time

	// Mend puts right what can be put right by itself before a worker whose builds
	// broke claims again, such as an image that somebody has removed; nil: nothing.
	Mend func(ctx context.Context) error

	// Draining says whether the worker shall claim nothing more, and when that
	// has changed: the channel is then closed. nil: it never shall.
	Draining func() (on bool, changed <-chan struct{})
	Running  *atomic.Int64 // counts the builds that are under way; nil: nobody asks

	Limits        executor.Limits
	DiskLimit     int64 // bytes of each of Disks, for what is said of it
	LogLimit      int64 // bytes of log that one attempt may add
	ArtifactLimit int64 // bytes, before packing and after
}

// A Worker works on the builds of a queue.
type Worker struct {
	Options
	gate *gate
}

// New returns a Worker; Run makes it work.
func New(o Options) *Worker {
	o.LogLimit = cmp.Or(o.LogLimit, buildlog.DefaultLimit)
	if o.Draining == nil {
		o.Draining = func() (bool, <-chan struct{}) { return false, nil }
	}
	if o.Mend == nil {
		o.Mend = func(context.Context) error { return nil }
	}
	if o.Running == nil {
		o.Running = new(atomic.Int64)
	}
	return &Worker{Options: o, gate: newGate()}
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
	wg.Go(func() { w.keepGate(ctx) })
	for range w.Concurrency {
		wg.Go(func() { w.loop(ctx, builds) })
	}
	wg.Wait()
}

// maxClaimPause is the longest pause after a queue that failed, which keeps one
// that stays broken from filling the log.
const maxClaimPause = 15 * time.Second

func (w *Worker) loop(ctx, builds context.Context) {
	failing := pause{most: maxClaimPause}
	for ctx.Err() == nil {
		open := w.gate.pass(ctx)
		claim, err := w.Queue.Claim(open)
		switch {
		case err == nil && open.Err() != nil: // the gate shut while it was claimed
			w.giveBack(ctx, claim)
		case err == nil:
			failing.last = 0
			w.work(ctx, builds, claim)
		case open.Err() == nil:
			w.Log.Log(ctx, blame(err), "cannot claim a build", "err", err)
			failing.take(ctx)
		}
	}
}

func (w *Worker) giveBack(ctx context.Context, claim *queue.Claim) {
	if err := settle(ctx, claim.Requeue); err != nil && !errors.Is(err, queue.ErrLeaseLost) {
		w.Log.Error("cannot hand a build back", "build", claim.Build().ID, "err", err)
	}
}

// blame is how loud an error of the queue is said: one that does not answer is
// news of another program.
func blame(err error) slog.Level {
	if errors.Is(err, queue.ErrUnavailable) {
		return slog.LevelWarn
	}
	return slog.LevelError
}
