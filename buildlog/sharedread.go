package buildlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/monochromegane/cargo/build"
)

const (
	// followPatience is how long a follower that had something waits for NATS
	// or the archive to come back.
	followPatience = 5 * time.Minute

	// markPatience is how long, after the build has ended, the last message of
	// a log that nobody has closed is waited for.
	markPatience = 2 * time.Second
)

// Read is as [Store.Read]. ErrUnavailable if NATS or the archive does not answer.
//
// The stream is asked before the archive: of a build that was queued again
// after its end, the archive holds only the beginning.
func (s *Shared) Read(ctx context.Context, id build.ID, offset int64, w io.Writer) (next int64, err error) {
	if err := valid(id, offset); err != nil {
		return offset, err
	}
	next = offset
	r := newReader(s.live, id, offset, func(lines []byte, n int64) error {
		if _, err := w.Write(lines); err != nil {
			return fmt.Errorf("read the log of build %s: %w", id, err)
		}
		next = n
		return nil
	})
	defer r.close(ctx)
	var p progress
	for o := (outage{}); ; {
		before := r.place()
		p, err = s.advance(ctx, r)
		if !passing(err) {
			break
		}
		if r.place() != before {
			o = outage{}
		}
		if err = o.sit(ctx, err, patience); err != nil {
			break
		}
	}
	if err == nil && !p.found {
		if err = s.former(id); err == nil {
			return s.local.Read(ctx, id, next, w)
		}
	}
	return next, err
}

// Follow is as [Store.Follow]. A log goes on being followed when it moves to
// another worker or into the archive, and while NATS is away for some minutes;
// ErrUnavailable if it stays away, or is away at the start.
func (s *Shared) Follow(ctx context.Context, id build.ID, offset int64, done <-chan struct{}, emit func(line []byte, next int64) error) error {
	if err := valid(id, offset); err != nil {
		return err
	}
	f := follower{shared: s, id: id, done: done, limit: patience}
	f.reader = newReader(s.live, id, offset, func(lines []byte, next int64) error {
		at := next - int64(len(lines))
		for len(lines) > 0 {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			n := bytes.IndexByte(lines, '\n') + 1
			at += int64(n)
			if err := emit(lines[:n:n], at); err != nil {
				return &emitError{err}
			}
			lines = lines[n:]
		}
		return nil
	})
	defer f.reader.close(ctx)
	for {
		before := f.reader.place()
		over, err := f.round(ctx)
		if failed, ok := errors.AsType[*emitError](err); ok {
			return failed.err
		}
		if f.reader.place() != before {
			f.outage = outage{}
		}
		if passing(err) {
			err = f.outage.sit(ctx, err, f.limit)
		}
		if err != nil || over {
			return err
		}
	}
}

func valid(id build.ID, offset int64) error {
	if !id.Valid() {
		return fmt.Errorf("log of build %q: %w", id, ErrNotFound)
	}
	if offset < 0 {
		return fmt.Errorf("log of build %s: offset %d: %w", id, offset, ErrOffset)
	}
	return nil
}

// An emitError is what emit returned: it ends Follow whatever it is.
type emitError struct{ err error }

func (e *emitError) Error() string { return e.err.Error() }

// A follower is one call of Follow.
type follower struct {
	shared *Shared
	reader *reader
	id     build.ID
	done   <-chan struct{}
	outage outage
	limit  time.Duration // of an outage
	ended  time.Time     // when done was found closed
}

// round goes through what is there and waits for more; over says that nothing
// more will come.
func (f *follower) round(ctx context.Context) (over bool, err error) {
	select {
	case <-f.done:
		if f.ended.IsZero() {
			f.ended = time.Now()
		}
	default:
	}
	p, err := f.shared.advance(ctx, f.reader)
	if err != nil {
		return false, err
	}
	f.limit, f.outage = followPatience, outage{}
	if !p.found && (f.reader.check || !f.ended.IsZero()) {
		return f.former(ctx)
	}
	if f.ended.IsZero() {
		return false, f.reader.wait(ctx, f.done)
	}
	if p.whole {
		return true, nil
	}
	// Nobody has closed the log: its worker is lost, or could not. What it had
	// may still be on its way into the archive.
	if _, err := f.shared.archived(ctx, f.reader); err != nil {
		return false, err
	}
	return time.Since(f.ended) > markPatience || !rest(ctx, 10*minPause), nil
}

// former goes on in a local file, when there is nothing in the stream nor in
// the archive.
func (f *follower) former(ctx context.Context) (over bool, err error) {
	s, at := f.shared, f.reader.begin()
	if err := s.former(f.id); err != nil {
		switch {
		case f.reader.check:
			err = fmt.Errorf("log of build %s: offset %d: %w", f.id, at, ErrOffset)
		case at == 0: // it never wrote anything
			err = nil
		}
		return true, err
	}
	if !f.ended.IsZero() {
		return true, s.local.Follow(ctx, f.id, at, f.done, func(line []byte, next int64) error {
			return f.reader.pass(line, next)
		})
	}
	file, err := s.local.open(f.id, at)
	if err != nil {
		return true, err
	}
	_ = file.Close()
	return false, f.reader.wait(ctx, f.done)
}

// former wants a local file from the time before logs were shared. One that is
// being written is not meant: its lines may never be shared.
func (s *Shared) former(id build.ID) error {
	s.local.mu.Lock()
	t := s.local.tails[id]
	written := t != nil && t.writer != nil
	s.local.mu.Unlock()
	if written {
		return fmt.Errorf("log of build %s: %w", id, ErrNotFound)
	}
	f, err := s.local.open(id, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// progress is what advance found.
type progress struct {
	found bool // there is a log
	whole bool // nothing more will come from the attempt that wrote last
}

// advance takes r to the end of what is there, in the stream or else in the archive.
func (s *Shared) advance(ctx context.Context, r *reader) (progress, error) {
	last, err := s.live.last(ctx, r.id)
	if err != nil {
		return progress{}, err
	}
	if last.seq < r.seq {
		r.seq = 0 // the stream was made anew
		r.lose()
	}
	if last.seq == 0 || last.kind == kindDropped {
		r.seq = last.seq
		r.lose()
		found, err := s.archived(ctx, r)
		return progress{found: found, whole: found}, err
	}
	err = r.catchUp(ctx, last.seq)
	if errors.Is(err, errDropped) {
		return s.advance(ctx, r)
	}
	if errors.Is(err, errGap) { // the log is about to be dropped
		if _, err := s.archived(ctx, r); err != nil {
			return progress{}, err
		}
	}
	if err == nil && r.check { // r begins behind the stream's end: an earlier attempt was archived
		var found bool
		if found, err = s.archived(ctx, r); err == nil && !found {
			err = fmt.Errorf("log of build %s: offset %d: %w", r.id, r.begin(), ErrOffset)
		}
	}
	return progress{found: true, whole: last.kind == kindClosed || last.kind == kindSettled}, err
}

// archived takes r to the end of the log in the archive. found is false if
// there is none.
func (s *Shared) archived(ctx context.Context, r *reader) (found bool, err error) {
	f, size, err := s.archive.OpenLog(ctx, r.id)
	if s.missing(err) {
		return false, nil
	}
	if err != nil {
		return false, s.archiveFailed(ctx, r.id, err)
	}
	defer f.Close()
	if r.check && r.offset >= size {
		return false, fmt.Errorf("log of build %s: offset %d: %w", r.id, r.begin(), ErrOffset)
	}
	r.part = nil
	if r.offset >= size {
		return true, nil
	}
	if _, err := f.Seek(r.offset, io.SeekStart); err != nil {
		return true, s.archiveFailed(ctx, r.id, err)
	}
	buf := make([]byte, maxBatch)
	for {
		n, err := f.Read(buf)
		if err := r.feed(buf[:n]); err != nil {
			return true, err
		}
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil {
			return true, s.archiveFailed(ctx, r.id, err)
		}
		if ctx.Err() != nil {
			return true, context.Cause(ctx)
		}
	}
}

func (s *Shared) missing(err error) bool {
	return errors.Is(err, ErrNotFound) || errors.Is(err, s.notFound)
}

func (s *Shared) archiveFailed(ctx context.Context, id build.ID, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w: archived log of build %s: %w", ErrUnavailable, id, err)
}
