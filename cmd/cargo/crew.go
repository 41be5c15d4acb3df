package main

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/monochromegane/cargo/queue"
)

// A crew is the workers of the queue as this process saw them last, so that
// requests and scrapes cost nothing.
type crew struct {
	*rooms
	workers atomic.Pointer[[]queue.Worker]
	digest  atomic.Pointer[string]
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

// crewTimeout bounds a look at the workers.
const crewTimeout = time.Minute

// watch keeps c up to date until ctx ends.
func (c *crew) watch(ctx context.Context) {
	tick := time.NewTicker(crewEvery)
	defer tick.Stop()
	for {
		c.look(ctx)
		select {
		case <-tick.C:
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
