package buildlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/monochromegane/cargo/build"
)

// Create is as [Store.Create], for b.Attempt. An attempt after the first goes
// on with the log that earlier ones left in the stream or in the archive, and
// fences them out. The first one asks nobody. ErrSuperseded if there was a
// later attempt; ErrUnavailable if NATS or the archive does not answer until
// the deadline of ctx, or for some seconds if it has none.
func (s *Shared) Create(ctx context.Context, b build.Build, limit int64) (*Writer, error) {
	p := s.newShipper(b)
	w, err := s.local.newWriter(b.ID, limit, func() error { return s.takeOver(ctx, p) })
	if err != nil {
		return nil, err
	}
	path, err := s.local.path(b.ID)
	if err == nil {
		p.file, err = os.Open(path)
	}
	if err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("create the log of build %s: %w", b.ID, err)
	}
	p.grown = func() <-chan struct{} {
		grown, _ := s.local.grown(w.tail)
		return grown
	}
	w.shipper = p
	p.start(ctx)
	return w, nil
}

func (s *Shared) newShipper(b build.Build) *shipper {
	return &shipper{live: s.live, id: b.ID, attempt: attempt(b), log: s.log}
}

// attempt is that of b, also where nobody counts them.
func attempt(b build.Build) int { return max(b.Attempt, 1) }

// takeOver makes the local file begin with what others can read, and p the one
// shipper of the log.
func (s *Shared) takeOver(ctx context.Context, p *shipper) error {
	path, err := s.local.path(p.id)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(path); p.attempt == 1 && errors.Is(err, fs.ErrNotExist) {
		p.placed = true // at the beginning; if it is not, the first message will not be written
		return nil
	}
	return insist(ctx, func(ctx context.Context) error {
		last, err := s.live.last(ctx, p.id)
		if err != nil {
			return err
		}
		if last.shut(p.attempt) {
			return ErrSuperseded
		}
		m := message{kind: kindOpen}
		p.placed, p.seq = true, last.seq
		p.offset, err = s.restore(ctx, path, p.id, last)
		if errors.Is(err, errGap) {
			s.log.Error("the beginning of a build's log is gone from the stream", "build", p.id)
			m.alone, p.offset, err = true, 0, nil
		}
		if err == nil {
			err = p.put(ctx, m)
		}
		if errors.Is(err, errFull) {
			return nil // nobody else can write either; the first message that gets through is the fence
		}
		return err
	})
}

// restore makes the file at path begin with what the stream holds up to last,
// or else with what the archive holds, and returns how much of it is in the
// stream. What the file has beyond that, it keeps.
func (s *Shared) restore(ctx context.Context, path string, id build.ID, last message) (shipped int64, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return 0, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	m := mirror{file: f}
	r := newReader(s.live, id, 0, m.write)
	defer r.close(ctx)
	if last.seq == 0 || last.kind == kindDropped {
		_, err := s.archived(ctx, r)
		return 0, err
	}
	err = r.catchUp(ctx, last.seq)
	switch {
	case errors.Is(err, errDropped):
		err = errConflict // and look again
	case errors.Is(err, errGap):
		if _, err := s.archived(ctx, r); err != nil {
			return 0, err
		}
	}
	return r.offset, err
}

// A mirror makes a file begin with what it is given, and cuts off the rest
// where that differs.
type mirror struct {
	file *os.File
	buf  []byte
}

func (m *mirror) write(lines []byte, next int64) error {
	at := next - int64(len(lines))
	m.buf = append(m.buf[:0], lines...)
	if n, _ := m.file.ReadAt(m.buf, at); bytes.Equal(m.buf[:n], lines) {
		return nil
	}
	if err := m.file.Truncate(at); err != nil {
		return err
	}
	_, err := m.file.WriteAt(lines, at)
	return err
}
