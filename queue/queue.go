// Package queue keeps the record of every build and hands queued builds to
// workers. What it has acknowledged is on disk.
//
// It is JetStream: a server inside the process, or a NATS cluster that any
// number of processes share. A live build (queued or running) is one message in
// the bucket "live", under the digest of its key: the record is the queue, so
// there is no second thing that must agree with it, and two builds of one key
// cannot be live at once. Every change is a compare-and-set on the record's
// revision. A build ends when its record in "live" says so; after that, and
// again by whoever sees it there later if a crash came between, the record moves
// to the stream "ended" and the caller's sealed token is overwritten in the
// stream "tokens".
//
// # Exclusion
//
// A claim is a lease that its worker renews. It has run out when an observer has
// seen the same revision for the length of the lease on its own monotonic
// clock; no two machines' clocks are ever compared, and time in which the
// observer could not hear the queue, or stood still itself, does not count.
// Then it takes the build by compare-and-set. Of the worker that still believes
// in its claim and the observer, one writes first, and the other's write fails:
// a majority of the cluster has agreed on one order. So one claim at most ends a
// build, whatever any process believes.
//
// The lease only keeps two workers from working at the same time; it is not what
// makes the result right. A worker that cannot renew stops at three quarters of
// it, before anybody else may start. A worker that stands still (SIGSTOP, a
// paused virtual machine) cannot stop anything: its container may go on beside
// that of the one who has its build now, and between two of its instructions any
// time may pass. When it wakes it can finish nothing, and it learns so from the
// first thing that it asks here. What it does elsewhere is not fenced by this
// package: it calls Confirm last before it makes its artifact visible, and the
// artifact store refuses an attempt that is lower than the one it has.
//
// # Outages
//
// Every request has an end, and is made again with the same id for a while; then
// the error is ErrUnavailable, or ErrBroken if the embedded server cannot write.
// A "not found" is believed only of a server whose index agrees, that has heard
// most of its followers and knows all that the asker knows. Nothing has to be
// restarted: connections, the watch of the live builds and the embedded server
// come back by themselves.
package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
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

	// ErrInUse is what Open says of a directory that another process has open, be
	// it a command that looks at it for a moment.
	ErrInUse = errors.New("another process uses this directory; stop it or choose another directory")

	// ErrBroken: the embedded server cannot write. It goes on by itself once it can.
	ErrBroken = errors.New("the queue's disk could not be written; make room on it")

	// ErrUnavailable: NATS is away, or has no leader or no quorum. What was
	// asked for may or may not have been done; trying again is safe.
	ErrUnavailable = errors.New("the queue does not answer")
)

// maxLost is how many workers may die under a build before it fails.
const maxLost = 3

// writeTimeout bounds a write that must not stop half-way because its caller
// went away.
const writeTimeout = 30 * time.Second

// Options are the settings of a Queue. Only Dir or Cluster is required.
type Options struct {
	Dir     string   // of the embedded server; made with mode 0700 if missing; one process at a time
	Cluster *Cluster // keeps the queue instead; nil for the embedded server

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

	// Guest is for a look, or a word of an operator: the queue must be there, and
	// nothing about it is changed, mended or taken from workers by itself.
	Guest bool

	// Dropped, if not nil, is told of each build that ends here without a
	// worker's Finish: canceled while it was queued, or lost too often.
	Dropped func(build.Build)
}

// A Queue is the builds of one directory or cluster. Its methods are safe for
// concurrent use. A method that waits returns ErrClosed when Close is called.
type Queue struct {
	limits    limits
	lease     time.Duration
	worker    string
	log       *slog.Logger
	told      func(build.Build) // Options.Dropped
	retention time.Duration

	store   *store
	view    *view
	submit  [256]chan struct{} // one Submit at a time for each first byte of a key's digest
	seen    progress
	marks   marks
	created time.Time // the stream of the live records; probe's
	orphans orphans   // tend's

	warnings atomic.Pointer[[]string]

	ctx   context.Context // ends with ErrClosed at Close
	close context.CancelCauseFunc
	wg    sync.WaitGroup // watch, probe, tend, the socket and the renewal of each claim
}

// Open opens the queue in o.Dir or on o.Cluster, makes it if it is not there,
// and finishes what a crash left half done. Claims that this worker held stay
// claimed until Recover. The error says what to do if the directory cannot be
// written or belongs to another process, or the cluster cannot be used.
func Open(ctx context.Context, o Options) (*Queue, error) {
	q, err := newQueue(ctx, o)
	if err != nil {
		return nil, err
	}
	where := o.Dir
	if o.Cluster != nil {
		where = "the NATS cluster " + o.Cluster.String()
		q.store, err = openClusterStore(ctx, o, q.worker, q.log)
	} else {
		q.store, err = openEmbeddedStore(ctx, o, q.log)
	}
	return q.opened(ctx, where, err)
}

// opened starts a queue whose store is open, unless that failed.
func (q *Queue) opened(ctx context.Context, where string, err error) (*Queue, error) {
	if err != nil {
		q.close(ErrClosed)
	} else if err = q.start(ctx); err != nil {
		_ = q.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("open the queue in %s: %w", where, err)
	}
	return q, nil
}

func newQueue(ctx context.Context, o Options) (*Queue, error) {
	q := &Queue{
		limits:    limits{queued: cmp.Or(o.Limit, 1024), caller: o.CallerLimit},
		lease:     cmp.Or(o.Lease, time.Minute),
		worker:    o.Worker,
		log:       o.Log,
		told:      o.Dropped,
		retention: o.Retention,
		view:      newView(),
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
	q.ctx, q.close = context.WithCancelCause(context.WithoutCancel(ctx))
	return q, nil
}

// start reads the live records, mends what a crash left and begins to watch.
func (q *Queue) start(ctx context.Context) error {
	q.created = q.store.records.CachedInfo().Created
	q.view.heard.gap = 3 * q.period()
	w, err := q.firstWatch(ctx)
	if err != nil {
		return fmt.Errorf("read the live builds: %w", err)
	}
	q.view.heard.sign(time.Now())
	q.wg.Go(func() { q.watch(w) })
	q.wg.Go(q.probe)
	if q.store.cluster != nil {
		warnings, err := q.store.inspect(ctx, q.retention)
		if err != nil {
			return fmt.Errorf("look at the streams: %w", err)
		}
		q.warnings.Store(&warnings)
	}
	if q.store.guest {
		return nil
	}
	if err := q.mend(ctx); err != nil {
		return err
	}
	q.wg.Go(q.tend)
	return nil
}

// firstWatch reads the live records. A guest is told soon that the queue does not
// answer; a server waits, and says what for.
func (q *Queue) firstWatch(ctx context.Context) (w *watch, err error) {
	within := ctx
	if q.store.guest {
		var cancel context.CancelFunc
		within, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	said := q.store.guest
	err = q.patiently(within, func() (err error) {
		if w, err = q.newWatch(ctx); err == nil {
			if err = w.list(ctx); err != nil {
				w.close()
				err = fmt.Errorf("%w: %w", ErrUnavailable, err)
			}
		}
		if errors.Is(err, ErrUnavailable) && !said {
			said = true
			q.log.Warn("the live builds cannot be read; the start waits for the queue", "err", err)
		}
		return err
	})
	if errors.Is(err, ErrUnavailable) && q.store.cluster != nil {
		err = fmt.Errorf("%w; see that most servers of the cluster run and reach each other", err)
	}
	return w, err
}

// Close ends the context of every claim with ErrClosed, waits for the queue's
// goroutines and shuts the store down. Builds that were claimed stay claimed:
// a worker that wants them queued calls Requeue before.
func (q *Queue) Close() error {
	q.close(ErrClosed)
	q.wg.Wait()
	return q.store.close()
}

// observe takes over one message of the stream of live records.
func (q *Queue) observe(key string, data []byte, header nats.Header, rev uint64) {
	if gone(header) {
		q.view.remove(key, rev)
		return
	}
	if _, err := q.take(key, data, rev); err != nil {
		q.log.Error("unreadable record of a live build", "key", key, "err", err)
	}
}

// gone reports whether a message says that its key was deleted.
func gone(h nats.Header) bool {
	op := h.Get("KV-Operation")
	return op == "DEL" || op == "PURGE" || h.Get(jetstream.MarkerReasonHeader) != ""
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

// Err is nil, or wraps ErrBroken while the embedded server cannot write, as on
// a full disk, or ErrUnavailable when a server that is elsewhere has not
// answered for some seconds. What was acknowledged is safe, and the queue goes
// on by itself.
func (q *Queue) Err() error {
	if err := q.store.broken(); err != nil {
		return err
	}
	if silence := q.view.heard.silence(); q.store.embedded == nil && silence > silentLimit {
		return fmt.Errorf("%w: nothing was heard for %s", ErrUnavailable, silence.Round(time.Second))
	}
	return nil
}

// Warnings says in words what is unsafe about the cluster that keeps the queue.
// There is nothing to say of an embedded server.
func (q *Queue) Warnings() []string {
	if w := q.warnings.Load(); w != nil {
		return *w
	}
	return nil
}

// JetStream speaks to the server that keeps the queue. It lasts as long as the
// queue: over reconnects, and while the embedded server is started again. What
// is sent while there is no connection fails at once.
func (q *Queue) JetStream() jetstream.JetStream { return q.store.js }

// Replicas is of how many servers each stream that Cargo makes should be kept.
func (q *Queue) Replicas() int { return q.store.replicas }

// Depth is the number of queued builds, from memory.
func (q *Queue) Depth() int { return q.view.count(build.Queued) }

// Running is the number of running builds, from memory.
func (q *Queue) Running() int { return q.view.count(build.Running) }

// Holders names the worker of each running build, from memory.
func (q *Queue) Holders() map[build.ID]string { return q.view.holders() }
