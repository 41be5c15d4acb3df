package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/queue"
)

// A settler has logs on JetStream, and archives that of a build that has ended.
type settler interface {
	Settle(ctx context.Context, b build.Build) error
	Unsettled(ctx context.Context) ([]build.ID, error)
}

// An archivist archives the logs of builds that have ended without a worker
// that did it: lost or canceled ones, and those whose worker could not, as while
// S3 was away. Every server and worker has one; what two do at once is done once.
type archivist struct {
	*rooms
	ended chan build.Build  // without a worker
	later []build.Build     // could not be archived yet
	left  map[build.ID]bool // had ended when a sweep looked last; their workers may be at it then
}

const (
	// sweepEvery is how often logs are looked for that nobody has archived.
	sweepEvery = time.Minute
	// settleTimeout bounds the archiving of one log.
	settleTimeout = time.Minute
	// maxEnded is how many builds may wait for it in memory. A sweep finds the others.
	maxEnded = 1024
	// maxFailures is how many logs in a row may fail before the rest of a sweep is
	// left for the next: something is away.
	maxFailures = 3
)

func newArchivist(r *rooms) *archivist {
	return &archivist{rooms: r, ended: make(chan build.Build, maxEnded), left: map[build.ID]bool{}}
}

// settle has the log of b archived soon. It does not block.
func (a *archivist) settle(b build.Build) {
	select {
	case a.ended <- b:
	default:
	}
}

// run archives until ctx ends.
func (a *archivist) run(ctx context.Context) {
	logs, shared := a.logs.(settler)
	if !shared { // a log stays where it was written
		return
	}
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case b := <-a.ended:
			if len(a.later) > 0 || !a.archive(ctx, logs, b) {
				a.postpone(b)
			}
		case <-tick.C:
			a.sweep(ctx, logs)
		case <-ctx.Done():
			return
		}
	}
}

func (a *archivist) postpone(b build.Build) {
	if len(a.later) < maxEnded {
		a.later = append(a.later, b)
	}
}

// archive reports whether nothing is left to do for b.
func (a *archivist) archive(ctx context.Context, logs settler, b build.Build) bool {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	err := logs.Settle(ctx, b)
	if err != nil {
		a.log.Debug("a log is not archived yet", "build", b.ID, "err", err)
	}
	return err == nil
}

// sweep tries again what could not be archived, and looks for what nobody has
// archived: the process that should have may be gone.
func (a *archivist) sweep(ctx context.Context, logs settler) {
	waiting, err := a.unsettled(ctx, logs)
	if err != nil {
		a.log.Debug("cannot look for logs to archive", "err", err)
		return
	}
	waiting = append(waiting, a.later...)
	a.later = nil
	// One that can never be archived must not be in the way of the others for ever.
	rand.Shuffle(len(waiting), func(i, j int) { waiting[i], waiting[j] = waiting[j], waiting[i] })
	done, failures := 0, 0
	for _, b := range waiting {
		if failures < maxFailures && ctx.Err() == nil && a.archive(ctx, logs, b) {
			done, failures = done+1, 0
			continue
		}
		failures++
		a.postpone(b)
	}
	if done > 0 {
		a.log.Info("logs of builds that had ended are archived", "logs", done)
	}
	if len(a.later) > 0 {
		a.log.Warn("logs of builds that have ended cannot be archived yet", "logs", len(a.later))
	}
}

// unsettled are the builds of which the sweep before knew, too, that they had
// ended, and whose logs are still on JetStream.
func (a *archivist) unsettled(ctx context.Context, logs settler) ([]build.Build, error) {
	ids, err := logs.Unsettled(ctx)
	if err != nil {
		return nil, err
	}
	known := map[build.ID]bool{}
	for _, b := range a.later {
		known[b.ID] = true
	}
	var found []build.Build
	left := map[build.ID]bool{}
	for _, id := range ids {
		b, err := a.queue.Get(ctx, id)
		if errors.Is(err, queue.ErrNotFound) {
			continue // the queue has forgotten it; JetStream will
		}
		if err != nil {
			return nil, err
		}
		if !b.State.Ended() {
			continue
		}
		left[id] = true
		if a.left[id] && !known[id] {
			found = append(found, b)
		}
	}
	a.left = left
	return found, nil
}
