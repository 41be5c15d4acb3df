package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

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
	if err := r.queue.Err(); err != nil {
		missing = append(missing, err.Error())
	}
	if r.workshop == nil {
		if r.crew.image() == "" {
			missing = append(missing, "no worker has come to this queue yet")
		}
		return missing
	}
	if r.workshop.image.Load() == nil {
		missing = append(missing, "the builder image is not there yet")
	}
	s := r.said.Load()
	if s == nil || time.Since(s.at) > readyAge {
		s = &said{at: time.Now()}
		if _, err := r.workshop.engine.Ping(ctx); err != nil {
			s.problem = fmt.Sprintf("the executor %s does not answer", r.cfg.executor)
		}
		r.said.Store(s)
	}
	if s.problem != "" {
		missing = append(missing, s.problem)
	}
	if low := r.lowSpace(); low != "" {
		missing = append(missing, low)
	}
	return missing
}
