package worker

import (
	"context"
	"sync"
	"time"
)

// A gate is what the slots of a worker pass before they claim. It is shut
// while the worker is drained, and for a while after this machine, or a service
// that it needs, has broken a build.
type gate struct {
	mu      sync.Mutex
	open    context.Context // ends when the gate shuts; it begins ended
	shut    context.CancelFunc
	opened  chan struct{} // closed, and replaced, when the gate opens
	resting bool
	rest    pause
	begun   chan struct{} // has room for one: a rest has begun
}

// maxRest is the longest pause of a worker whose builds break one after the
// other through no fault of theirs.
const maxRest = time.Minute

func newGate() *gate {
	g := &gate{opened: make(chan struct{}), begun: make(chan struct{}, 1), rest: pause{most: maxRest}}
	g.open, g.shut = context.WithCancel(context.Background())
	g.shut()
	return g
}

// pass waits for the gate to be open, or ctx to end. What it returns ends when
// either of this changes.
func (g *gate) pass(ctx context.Context) context.Context {
	for {
		g.mu.Lock()
		open, opened := g.open, g.opened
		g.mu.Unlock()
		if open.Err() == nil {
			return open
		}
		select {
		case <-opened:
		case <-ctx.Done():
			return ctx
		}
	}
}

// setback shuts the gate for longer than the last time.
func (g *gate) setback() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.resting {
		return // builds that broke together are one setback
	}
	g.resting = true
	g.shut()
	select {
	case g.begun <- struct{}{}:
	default:
	}
}

// recover ends a row of setbacks.
func (g *gate) recover() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rest.last = 0
}

func (g *gate) nextRest() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.rest.next()
}

// set opens the gate, for as long as ctx lasts, or shuts it. It stays shut
// during a rest.
func (g *gate) set(ctx context.Context, open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case !open || g.resting:
		g.shut()
	case g.open.Err() != nil:
		g.open, g.shut = context.WithCancel(ctx)
		close(g.opened)
		g.opened = make(chan struct{})
	}
}

// keepGate opens and shuts the gate until ctx ends.
func (w *Worker) keepGate(ctx context.Context) {
	defer w.gate.set(ctx, false)
	drained := false
	for ctx.Err() == nil {
		on, changed := w.Draining()
		if on != drained {
			w.Log.Info("draining", "on", on)
			drained = on
		}
		w.gate.set(ctx, !drained)
		select {
		case <-changed:
		case <-w.gate.begun:
			w.takeRest(ctx)
		case <-ctx.Done():
		}
	}
}

// takeRest returns when a build may be tried here again.
func (w *Worker) takeRest(ctx context.Context) {
	for {
		rest := w.gate.nextRest()
		w.Log.Warn("this worker claims nothing for a while", "rest", rest)
		sleep(ctx, rest)
		if ctx.Err() != nil || w.well(ctx) {
			break
		}
	}
	w.gate.mu.Lock()
	defer w.gate.mu.Unlock()
	w.gate.resting = false
}

const (
	// pingTimeout is how long an executor may take to say that it is there.
	pingTimeout = 10 * time.Second
	// mendTimeout is enough to pull an image.
	mendTimeout = 15 * time.Minute
)

// well asks what can be asked without a build, and has mended what can be. The
// rest only a build can tell.
func (w *Worker) well(ctx context.Context) bool {
	pctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	if _, err := w.Executor.Ping(pctx); err != nil {
		w.Log.Warn("the container runtime does not answer yet", "err", err)
		return false
	}
	mctx, cancel := context.WithTimeout(ctx, mendTimeout)
	defer cancel()
	if err := w.Mend(mctx); err != nil {
		if ctx.Err() == nil {
			w.Log.Error("this worker cannot build yet", "err", err)
		}
		return false
	}
	return true
}

// A pause is twice as long each time, from a second up to most.
type pause struct{ last, most time.Duration }

func (p *pause) next() time.Duration {
	p.last = min(max(2*p.last, time.Second), p.most)
	return p.last
}

func (p *pause) take(ctx context.Context) { sleep(ctx, p.next()) }

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
