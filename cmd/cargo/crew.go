package main

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/queue"
)

// A crew is the workers of the queue as this process saw them last, so that
// requests and scrapes cost nothing.
type crew struct {
	*rooms
	workers atomic.Pointer[[]queue.Worker]
	digest  atomic.Pointer[string]
	ended   chan build.Build // without a worker; their logs wait to be archived
}

// The values of the metric label state of a worker.
const (
	stateActive   = "active"
	stateDraining = "draining"
	stateSilent   = "silent"
)

var workerStates = []string{stateActive, stateDraining, stateSilent}

// crewEvery is how old what is known of the workers may be.
const crewEvery = 5 * time.Second

// sweepEvery is how often logs are looked for that were left on JetStream.
const sweepEvery = 10 * time.Minute

// maxEnded is how many logs may wait to be archived.
const maxEnded = 1024

// crewTimeout bounds a look at the workers, and the archiving of one log.
const crewTimeout = time.Minute

// watch keeps c up to date until ctx ends.
func (c *crew) watch(ctx context.Context) {
	tick, sweep := time.NewTicker(crewEvery), time.NewTicker(sweepEvery)
	defer tick.Stop()
	defer sweep.Stop()
	for {
		c.look(ctx)
		select {
		case <-tick.C:
		case <-sweep.C:
			c.sweep(ctx)
		case b := <-c.ended:
			c.archive(ctx, b)
		case <-ctx.Done():
			return
		}
	}
}

// look asks the queue; what cannot be learned stays as it was.
func (c *crew) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, crewTimeout)
	defer cancel()
	workers, err := c.queue.Workers(ctx)
	if err != nil {
		c.log.Debug("cannot see the workers", "err", err)
		return
	}
	c.workers.Store(&workers)
	if c.cfg.cluster == nil {
		return
	}
	digest, err := c.queue.Image(ctx)
	if err != nil {
		c.log.Debug("cannot see the workers' image", "err", err)
		return
	}
	c.digest.Store(&digest)
}

// image is the digest of the builder image: this workshop's, else that of the
// worker which came last; "" while there is none.
func (c *crew) image() string {
	if c.workshop != nil {
		if i := c.workshop.image.Load(); i != nil {
			return i.Digest
		}
	}
	if d := c.digest.Load(); d != nil {
		return *d
	}
	return ""
}

func (c *crew) count(state string) (n int) {
	all := c.workers.Load()
	if all == nil {
		return 0
	}
	for _, w := range *all {
		if stateOf(w, c.cfg.lease) == state {
			n++
		}
	}
	return n
}

// stateOf is one of workerStates. Who was silent for a lease has lost its builds.
func stateOf(w queue.Worker, lease time.Duration) string {
	switch {
	case w.Silent >= lease:
		return stateSilent
	case w.Draining:
		return stateDraining
	}
	return stateActive
}

// A settler archives logs that no worker has archived.
type settler interface {
	Settle(ctx context.Context, b build.Build) error
	Unsettled(ctx context.Context) ([]build.ID, error)
}

// settle has the log of b archived soon. It does not block: what finds no
// place waits for the next sweep.
func (c *crew) settle(b build.Build) {
	if _, ok := c.logs.(settler); !ok {
		return
	}
	select {
	case c.ended <- b:
	default:
	}
}

// sweep archives the logs of builds that have ended and whose log was not
// archived then, as while S3 was away.
func (c *crew) sweep(ctx context.Context) {
	logs, ok := c.logs.(settler)
	if !ok {
		return
	}
	ids, err := logs.Unsettled(ctx)
	if err != nil && ctx.Err() == nil {
		c.log.Warn("cannot look for logs that are not archived", "err", err)
	}
	for _, id := range ids {
		if b, err := c.queue.Get(ctx, id); err == nil && b.State.Ended() && time.Since(b.FinishedAt).Abs() > crewTimeout {
			c.archive(ctx, b)
		}
	}
}

func (c *crew) archive(ctx context.Context, b build.Build) {
	ctx, cancel := context.WithTimeout(ctx, crewTimeout)
	defer cancel()
	if err := c.logs.(settler).Settle(ctx, b); err != nil {
		c.log.Warn("a log stays on JetStream for now", "build", b.ID, "err", err)
	}
}
