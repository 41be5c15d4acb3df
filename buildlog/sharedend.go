package buildlog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/monochromegane/cargo/build"
)

// errNotKept keeps Drop from dropping the only copy.
var errNotKept = errors.New("the log is not in the archive yet: it stays in the stream for a week")

// Keep archives the log of a build, after its Writer is closed and before the
// record says that the build ended. It ships what is left first, so that what
// followers have seen and what is archived are the same. ErrSuperseded if a
// later attempt writes the log: this one must not end the build.
//
// It tries until the deadline of ctx. After an error of the archive the log is
// complete in the stream, and the build may end; Settle archives it later.
func (s *Shared) Keep(ctx context.Context, b build.Build) error {
	err := s.keep(ctx, b)
	if err != nil {
		return fmt.Errorf("keep the log of build %s: %w", b.ID, err)
	}
	return nil
}

func (s *Shared) keep(ctx context.Context, b build.Build) error {
	f, err := s.local.open(b.ID, 0)
	if errors.Is(err, ErrNotFound) { // this attempt has no log; earlier ones may have
		err := insist(ctx, func(ctx context.Context) error {
			_, err := s.salvage(ctx, b)
			return err
		})
		if errors.Is(err, errDropped) {
			return nil
		}
		return err
	}
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := wholeLines(f)
	if err != nil {
		return err
	}
	p := s.newShipper(b)
	p.file = f
	if err := insist(ctx, func(ctx context.Context) error { return p.closeLog(ctx, size) }); err != nil {
		return err
	}
	return s.archive.PutLog(ctx, b.ID, p.attempt, f, size)
}

// closeLog ships what is left of a file and says that this is all. That it can
// proves that no later attempt has begun.
func (p *shipper) closeLog(ctx context.Context, size int64) error {
	err := p.ship(ctx)
	if err == nil && p.offset != size {
		return fmt.Errorf("the stream has %d bytes of a log of %d", p.offset, size)
	}
	if err == nil {
		err = p.put(ctx, message{kind: kindClosed})
	}
	if errors.Is(err, errFull) {
		return nil // the archive itself prefers later attempts
	}
	return err
}

// Drop ends the live copy of a log that Keep has archived, after the record
// says that the build has ended: in the stream it is replaced by a message
// that says so, and the local file goes. A log that is not in the archive stays.
func (s *Shared) Drop(ctx context.Context, b build.Build) error {
	err := insist(ctx, func(ctx context.Context) error {
		last, err := s.live.last(ctx, b.ID)
		if err != nil {
			return err
		}
		if last.attempt > attempt(b) {
			return ErrSuperseded
		}
		if last.kind == kindDropped {
			return nil
		}
		if err := s.kept(ctx, b.ID, last.end()); err != nil {
			return err
		}
		return s.drop(ctx, b, last.seq)
	})
	if err == nil {
		err = s.local.discard(b.ID)
	}
	if err != nil {
		return fmt.Errorf("drop the live log of build %s: %w", b.ID, err)
	}
	return nil
}

// kept wants a log of size bytes, or more, in the archive.
func (s *Shared) kept(ctx context.Context, id build.ID, size int64) error {
	f, has, err := s.archive.OpenLog(ctx, id)
	if s.missing(err) {
		return errNotKept
	}
	if err != nil {
		return s.archiveFailed(ctx, id, err)
	}
	if err := f.Close(); err != nil {
		return s.archiveFailed(ctx, id, err)
	}
	if has < size {
		return errNotKept
	}
	return nil
}

// drop replaces all messages about a log, the last of which is seq.
func (s *Shared) drop(ctx context.Context, b build.Build, seq uint64) error {
	m := message{kind: kindDropped, attempt: attempt(b), alone: true}
	_, err := s.live.put(ctx, b.ID, seq, m)
	if !errors.Is(err, errFull) {
		return err
	}
	if err := s.live.purge(ctx, b.ID, seq); err != nil {
		return err
	}
	_, err = s.live.put(ctx, b.ID, 0, m) // or somebody came in between, and it is tried again
	return err
}

// Settle archives and drops the log of a build that ended without its worker:
// lost, or canceled while it was queued. A worker that is still there can add
// nothing after that. It may be called for any build that has ended, by
// several processes at once and again after an error; of a build that a later
// attempt has taken up it leaves everything as it is.
func (s *Shared) Settle(ctx context.Context, b build.Build) error {
	err := insist(ctx, func(ctx context.Context) error {
		seq, err := s.salvage(ctx, b)
		if err != nil || seq == 0 && b.Attempt == 0 { // nobody has ever claimed it
			return err
		}
		return s.drop(ctx, b, seq)
	})
	if err == nil || errors.Is(err, ErrSuperseded) || errors.Is(err, errDropped) {
		return nil
	}
	return fmt.Errorf("settle the log of build %s: %w", b.ID, err)
}

// Unsettled are the builds whose log is in the stream: they run, or they have
// ended and their log could not be archived. Settle of those that have ended,
// called from time to time, archives it when the archive is back.
func (s *Shared) Unsettled(ctx context.Context) ([]build.ID, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	ids, err := s.live.several(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the live logs: %w", err)
	}
	return ids, nil
}

// salvage archives what is in the stream, after it has fenced out whoever may
// still write there, and returns the last message.
func (s *Shared) salvage(ctx context.Context, b build.Build) (seq uint64, err error) {
	last, err := s.live.last(ctx, b.ID)
	switch {
	case err != nil:
		return 0, err
	case last.attempt > attempt(b):
		return 0, ErrSuperseded
	case last.kind == kindDropped:
		return 0, errDropped
	case last.seq == 0:
		return 0, nil
	case last.kind == kindClosed:
		if err := s.kept(ctx, b.ID, last.end()); !errors.Is(err, errNotKept) {
			return last.seq, err // Keep has done it
		}
	}
	seq = last.seq
	if last.kind != kindSettled || last.attempt < attempt(b) {
		seq, err = s.live.put(ctx, b.ID, last.seq, message{kind: kindSettled, attempt: attempt(b), offset: last.end()})
		if errors.Is(err, errFull) {
			seq, err = last.seq, nil // nobody else can write either
		}
		if err != nil {
			return 0, err
		}
	}
	f, err := scratch(s.local.dir)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	r := newReader(s.live, b.ID, 0, func(lines []byte, _ int64) error {
		_, err := f.Write(lines)
		return err
	})
	defer r.close(ctx)
	if err := r.catchUp(ctx, seq); err != nil || r.offset == 0 {
		return seq, err
	}
	return seq, s.archive.PutLog(ctx, b.ID, attempt(b), f, r.offset)
}

// scratch is a file without a name: nothing is left of it after a crash.
func scratch(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "settle-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// discard removes a local file, unless somebody writes it: then it is a later
// attempt's.
func (s *Store) discard(id build.ID) error {
	path, err := s.path(id)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.tails[id]; t != nil && t.writer != nil {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
