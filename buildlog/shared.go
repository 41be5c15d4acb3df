package buildlog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/monochromegane/cargo/build"
)

// Errors of a Shared, wrapped.
var (
	ErrUnavailable = errors.New("the log cannot be read now") // NATS or the archive does not answer; trying again is safe
	ErrSuperseded  = errors.New("a later attempt of this build writes the log")
)

// An Archive keeps the logs of ended builds.
type Archive interface {
	// PutLog stores a log. It refuses one of a lower attempt than is there.
	PutLog(ctx context.Context, id build.ID, attempt int, r io.ReaderAt, size int64) error
	// OpenLog returns the log that PutLog stored last.
	OpenLog(ctx context.Context, id build.ID) (_ io.ReadSeekCloser, size int64, err error)
	// PruneLogs removes the logs that were stored before then.
	PruneLogs(ctx context.Context, before time.Time) error
}

// SharedOptions are what a Shared works with. Local, JetStream and Archive are required.
type SharedOptions struct {
	Local     *Store              // where this machine's builds write their logs first
	JetStream jetstream.JetStream // of the queue
	Archive   Archive
	NotFound  error // what OpenLog wraps when there is no such log; nil means ErrNotFound

	Stream   string       // its name and the first token of its subjects; "" means logs
	Replicas int          // of the stream when it is made; 0 means 1
	Bytes    int64        // that the stream may take when it is made; 0 means 2 GiB, which leaves room for the queue in an embedded server
	Log      *slog.Logger // nil discards
}

// A Shared is logs that any machine can follow while the build runs on
// another, and that lie in an archive once it has ended.
//
// A build writes its log to a local file, as in a Store, and never waits for
// anything else. What is in the file is shipped to a JetStream stream as it
// grows. Each message holds whole lines (a line too long for one goes on in
// the next) and the offset of its first byte, and is written by
// compare-and-set on the last message of its log: once a later attempt, or
// Settle, has written to the log, an earlier writer cannot add to it. A later
// attempt begins with what the stream holds, so that offsets stay what they
// are.
//
// As long as the stream holds a log, it holds all of it, from its first byte.
// Drop leaves one message that says that the log is in the archive, until the
// stream forgets it with everything else that is a week old. A log that could
// not be archived stays readable for so long.
//
// Its methods are safe for concurrent use, by any number of processes.
type Shared struct {
	local    *Store
	live     *live
	archive  Archive
	notFound error
	log      *slog.Logger
}

// OpenShared returns the logs that are shared through o. The stream is made at
// first use; what is unsafe about one that is there already goes to o.Log.
func OpenShared(ctx context.Context, o SharedOptions) (*Shared, error) {
	if o.Local == nil || o.JetStream == nil || o.Archive == nil {
		return nil, errors.New("open the shared logs: they need a local store, JetStream and an archive")
	}
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Shared{
		local:    o.Local,
		archive:  o.Archive,
		notFound: cmp.Or(o.NotFound, ErrNotFound),
		log:      log,
		live: &live{
			js:       o.JetStream,
			name:     cmp.Or(o.Stream, "logs"),
			replicas: cmp.Or(o.Replicas, 1),
			bytes:    cmp.Or(o.Bytes, 2<<30),
			log:      log,
		},
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := s.live.open(ctx); err != nil {
		log.Warn("the stream of logs cannot be opened yet", "err", err)
	}
	return s, nil
}

// Prune removes old local files, as [Store.Prune] does: those of a former time
// without sharing, and what killed processes left. removed counts them. Logs in
// the archive go after the local store's retention, too.
func (s *Shared) Prune(ctx context.Context, now time.Time) (removed int, err error) {
	removed, err = s.local.Prune(ctx, now)
	if s.local.retention <= 0 {
		return removed, err
	}
	if err2 := s.archive.PruneLogs(ctx, now.Add(-s.local.retention)); err2 != nil {
		err = errors.Join(err, fmt.Errorf("prune the archive of logs: %w", err2))
	}
	return removed, err
}

const (
	minPause = 20 * time.Millisecond
	maxPause = time.Second

	// patience is how long a request tries before it says ErrUnavailable: an
	// election takes some seconds.
	patience = 15 * time.Second
)

// insist calls try until it succeeds, or fails for another reason than that
// something does not answer or came first. It gives up at the deadline of ctx,
// or without one when its patience ends.
func insist(ctx context.Context, try func(context.Context) error) error {
	var o outage
	patience := patience
	if at, ok := ctx.Deadline(); ok {
		patience = time.Until(at)
	}
	for {
		err := try(ctx)
		if !passing(err) {
			return err
		}
		if err := o.sit(ctx, err, patience); err != nil {
			return err
		}
	}
}

// An outage is a time in which what is tried fails. Its zero value is none.
type outage struct {
	began time.Time
	pause time.Duration
}

// sit waits until it is worth trying again after err, or returns err when the
// outage has lasted too long or ctx has reached its deadline.
func (o *outage) sit(ctx context.Context, err error, patience time.Duration) error {
	if o.pause == 0 {
		o.began, o.pause = time.Now(), minPause
	}
	if time.Since(o.began) < patience && rest(ctx, o.pause) {
		o.pause = min(2*o.pause, maxPause)
		return nil
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return context.Cause(ctx)
	}
	if !errors.Is(err, ErrUnavailable) {
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("%w (%w)", err, context.Cause(ctx))
	}
	return err
}

// passing reports whether an error may go away by itself.
func passing(err error) bool {
	return errors.Is(err, ErrUnavailable) || errors.Is(err, errConflict)
}

// rest waits for d, or reports that ctx ended.
func rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
