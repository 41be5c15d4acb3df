package buildlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/monochromegane/cargo/build"
)

// maxLine is more than a Writer makes of one line.
const maxLine = 16 << 20

// Follow calls emit with each whole line from offset on, line feed included,
// and the offset behind it, until done is closed and all that was logged
// before has been emitted. A log that does not exist yet is waited for. line
// is valid until emit returns; an error of emit ends Follow and is returned as
// it is. A slow emit holds up nobody else.
//
// ErrOffset as for Read; a log that is not there yet has only the offset 0.
func (s *Store) Follow(ctx context.Context, id build.ID, offset int64, done <-chan struct{}, emit func(line []byte, next int64) error) error {
	t, leave := s.join(id)
	defer leave()
	r := lineReader{offset: offset, emit: emit}
	defer func() { r.close() }()
	for {
		grown, writer := s.grown(t)
		last := false
		select {
		case <-done:
			last = true
			if writer != nil {
				writer.write() // what it still holds back belongs to the log
			}
		default:
		}
		if r.file == nil {
			f, err := s.open(id, offset)
			if err != nil && (!errors.Is(err, ErrNotFound) || !id.Valid()) {
				return err
			}
			if f == nil && offset != 0 {
				return fmt.Errorf("log of build %s: offset %d: %w", id, offset, ErrOffset)
			}
			r.file = f
		}
		if err := r.drain(ctx); err != nil || last {
			return err
		}
		select {
		case <-grown:
		case <-done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// A lineReader emits the whole lines of a file that may still grow.
type lineReader struct {
	file   *os.File // nil as long as there is none
	offset int64    // of the first byte not emitted
	buf    []byte
	emit   func(line []byte, next int64) error
}

func (r *lineReader) close() {
	if r.file != nil {
		_ = r.file.Close()
	}
}

// drain goes on until no whole line is left.
func (r *lineReader) drain(ctx context.Context) error {
	if r.file == nil {
		return nil
	}
	if r.buf == nil {
		r.buf = make([]byte, 64<<10)
	}
	for {
		n, err := r.file.ReadAt(r.buf, r.offset)
		if err != nil && err != io.EOF {
			return fmt.Errorf("follow a log: %w", err)
		}
		rest := r.buf[:n]
		for i := bytes.IndexByte(rest, '\n'); i >= 0; i = bytes.IndexByte(rest, '\n') {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			r.offset += int64(i) + 1
			if err := r.emit(rest[:i+1:i+1], r.offset); err != nil {
				return err
			}
			rest = rest[i+1:]
		}
		switch {
		case err == io.EOF:
			return nil
		case len(rest) == len(r.buf) && len(rest) >= maxLine:
			return fmt.Errorf("follow a log: the line at offset %d does not end", r.offset)
		case len(rest) == len(r.buf):
			r.buf = make([]byte, 2*len(r.buf))
		}
	}
}
