// Package queue keeps the record of every build and hands queued builds to
// workers. What it has acknowledged is on disk.
//
// It is a JetStream server inside the process. A live build (queued or
// running) is one message in the bucket "live", under the digest of its key:
// the record is the queue, so there is no second thing that must agree with
// it, and two builds of one key cannot be live at once. Every change is a
// compare-and-set on the record's revision. A build ends when its record in
// "live" says so; after that, and again at the next Open if a crash came
// between, the record moves to the stream "ended" and the caller's sealed
// token is overwritten in the stream "tokens".
//
// A claim is a lease that its worker renews. It has run out when an observer
// has seen the same revision for the length of the lease on its own monotonic
// clock; no two machines' clocks are ever compared.
package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/monochromegane/cargo/build"
)

// Errors of a Queue, some of them wrapped.
var (
	ErrFull       = errors.New("the build queue is full")
	ErrCallerFull = errors.New("too many builds of one caller")
	ErrNotFound   = errors.New("no such build")
	ErrEnded      = errors.New("the build has ended")
	ErrClosed     = errors.New("the queue is closed")
	ErrCanceled   = errors.New("the build was canceled")
	ErrLeaseLost  = errors.New("the lease of the build is lost")
	ErrBroken     = errors.New("the queue's disk could not be written; make room on it and restart")
)

// maxLost is how many workers may die under a build before it fails.
const maxLost = 3

// writeTimeout bounds a write that must not stop half-way because its caller
// went away.
const writeTimeout = 30 * time.Second

// Options are the settings of a Queue. Only Dir is required.
type Options struct {
	Dir    string        // made with mode 0700 if missing; one process at a time
	Limit  int           // queued builds before Submit says ErrFull; 0 means 1024
	Lease  time.Duration // how long a silent worker keeps its builds; 0 means 60 s
	Worker string        // this process's name among workers, the same after a restart; "" means the host's name
	Log    *slog.Logger  // nil discards

	// CallerLimit is how many builds of one caller may be queued or running
	// before Submit says ErrCallerFull; 0 means any number.
	CallerLimit int

	// Retention is how long an ended build is remembered, 100 ms or more; 0
	// means until a GiB of records pushes it out. It applies to what is there already.
	Retention time.Duration

	// Dropped, if not nil, is told of each build that ends here without a
	// worker's Finish: canceled while it was queued, or lost too often.
	Dropped func(build.Build)
}

// A Queue is the builds of one directory. Its methods are safe for concurrent
// use. A method that waits returns ErrClosed when Close is called.
type Queue struct {
	limits limits
	lease  time.Duration
	worker string
	log    *slog.Logger
	told   func(build.Build) // Options.Dropped

	store  *store
	view   *view
	submit [256]chan struct{} // one Submit at a time for each first byte of a key's digest

	ctx   context.Context // ends with ErrClosed at Close
	close context.CancelCauseFunc
	wg    sync.WaitGroup // watch, tend and the renewal of each claim
}

// Open opens the queue in o.Dir, makes it if it is not there, and finishes
// what a crash left half done. Claims that this worker held stay claimed until
// Recover. The error says what to do if the directory cannot be written or
// belongs to another process.
func Open(ctx context.Context, o Options) (*Queue, error) {
	q := &Queue{
		limits: limits{queued: cmp.Or(o.Limit, 1024), caller: o.CallerLimit},
		lease:  cmp.Or(o.Lease, time.Minute),
		worker: o.Worker,
		log:    o.Log,
		told:   o.Dropped,
		view:   newView(),
	}
	if q.log == nil {
		q.log = slog.New(slog.DiscardHandler)
	}
	if q.worker == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("name this worker: %w", err)
		}
		q.worker = host
	}
	for i := range q.submit {
		q.submit[i] = make(chan struct{}, 1)
	}
	st, err := openStore(ctx, o, q.log)
	if err != nil {
		return nil, fmt.Errorf("open the queue in %s: %w", o.Dir, err)
	}
	q.store = st
	q.ctx, q.close = context.WithCancelCause(context.WithoutCancel(ctx))
	if err := q.start(ctx); err != nil {
		_ = q.Close()
		return nil, fmt.Errorf("open the queue in %s: %w", o.Dir, err)
	}
	return q, nil
}

// start reads the live records, mends what a crash left and begins to watch.
func (q *Queue) start(ctx context.Context) error {
	w, err := q.store.live.WatchAll(q.ctx)
	if err != nil {
		return fmt.Errorf("watch the live builds: %w", err)
	}
	for loaded := false; !loaded; {
		select {
		case e, ok := <-w.Updates():
			if !ok {
				return errors.New("the watch of the live builds ended")
			}
			loaded = e == nil
			q.observe(e)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	q.wg.Go(func() { q.watch(w) })
	if err := q.mend(ctx); err != nil {
		return err
	}
	q.wg.Go(q.tend)
	return nil
}

// Close ends the context of every claim with ErrClosed, waits for the queue's
// goroutines and shuts the store down. Builds that were claimed stay claimed:
// a worker that wants them queued calls Requeue before.
func (q *Queue) Close() error {
	q.close(ErrClosed)
	q.wg.Wait()
	return q.store.close()
}

// watch takes over what other processes wrote; our own writes are in the view
// already when they come back.
func (q *Queue) watch(w jetstream.KeyWatcher) {
	defer func() { _ = w.Stop() }()
	for {
		select {
		case e, ok := <-w.Updates():
			if !ok {
				if q.ctx.Err() == nil {
					q.log.Error("watch of the live builds ended")
				}
				return
			}
			q.observe(e)
		case <-q.ctx.Done():
			return
		}
	}
}

func (q *Queue) observe(e jetstream.KeyValueEntry) {
	if e == nil {
		return
	}
	if e.Operation() != jetstream.KeyValuePut {
		q.view.remove(e.Key(), e.Revision())
		return
	}
	if _, err := q.take(e.Key(), e.Value(), e.Revision()); err != nil {
		q.log.Error("unreadable record of a live build", "key", e.Key(), "err", err)
	}
}

// take puts a record into the view as it stands in the store.
func (q *Queue) take(key string, data []byte, rev uint64) (record, error) {
	r, err := decode(data)
	if err != nil {
		return record{}, err
	}
	r.rev = rev
	q.view.put(key, r)
	return r, nil
}

// Err is nil, or wraps ErrBroken when a write has failed, as on a full disk.
// What was acknowledged is safe, but nothing more is accepted, claimed or
// finished before a restart.
func (q *Queue) Err() error {
	if why := q.store.log.fatal.Load(); why != nil {
		return fmt.Errorf("%w (%s)", ErrBroken, *why)
	}
	return nil
}

// Depth is the number of queued builds, from memory.
func (q *Queue) Depth() int { return q.view.count(build.Queued) }

// Running is the number of running builds, from memory.
func (q *Queue) Running() int { return q.view.count(build.Running) }
