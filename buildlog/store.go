// Package buildlog keeps the log of every build: one file of JSON lines,
// written line by line while the build runs and followed by whoever reads it.
//
// Each line is an object that begins with "build_id", "level" (lower case),
// "msg" and "time" (RFC 3339, UTC, with the fraction of the second), in this
// order, and goes on with what that line knows. A line that was longer than
// the cap ends with "cut_bytes", the length of what is missing.
//
// A reader's place in a log is a byte offset, always at the start of a line.
// It stays valid for as long as the log is there.
package buildlog

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/monochromegane/cargo/build"
)

// Errors of a Store, wrapped.
var (
	ErrNotFound = errors.New("no log of this build")
	ErrOffset   = errors.New("not the start of a line of this log")
	ErrInUse    = errors.New("the log is being written already")
)

// Options are the settings of a Store. The zero value works.
type Options struct {
	LineLimit int           // bytes of a message before the rest of its line is cut; 0 means 64 KiB
	Flush     time.Duration // how long a line may wait before readers see it; 0 means 50 ms
	Retention time.Duration // how long after its last line Prune leaves a log; 0 means forever
	Limit     int64         // bytes of all logs that Prune leaves; 0 means any number
}

// A Store is the logs under one directory: <first 2 digits>/<build id>.jsonl.
// Its methods are safe for concurrent use.
type Store struct {
	dir       string
	lineLimit int
	flush     time.Duration
	retention time.Duration
	limit     int64

	mu    sync.Mutex
	tails map[build.ID]*tail // of logs that somebody writes or follows
}

// A tail is where the writer of a log meets its followers.
type tail struct {
	users  int
	writer *Writer
	grown  chan struct{} // closed, and replaced, when there is more to read
}

// Open returns the store in dir, which is made if it is not there.
func Open(dir string, o Options) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the logs in %s: %w", dir, err)
	}
	return &Store{
		dir:       dir,
		lineLimit: cmp.Or(o.LineLimit, 64<<10),
		flush:     cmp.Or(o.Flush, 50*time.Millisecond),
		retention: o.Retention,
		limit:     o.Limit,
		tails:     map[build.ID]*tail{},
	}, nil
}

func (s *Store) path(id build.ID) (string, error) {
	if !id.Valid() {
		return "", fmt.Errorf("log of build %q: %w", id, ErrNotFound)
	}
	return filepath.Join(s.dir, string(id[:2]), string(id)+suffix), nil
}

// join returns the tail of a log and what to call when it is no longer used.
func (s *Store) join(id build.ID) (*tail, func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tails[id]
	if t == nil {
		t = &tail{grown: make(chan struct{})}
		s.tails[id] = t
	}
	t.users++
	return t, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(s.tails, id)
		}
	}
}

func (s *Store) announce(t *tail) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(t.grown)
	t.grown = make(chan struct{})
}

func (s *Store) grown(t *tail) (<-chan struct{}, *Writer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return t.grown, t.writer
}

// Remove deletes the log of a build; that it is not there is no error.
func (s *Store) Remove(id build.ID) error {
	path, err := s.path(id)
	if err == nil {
		err = os.Remove(path)
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrNotFound) {
		return nil
	}
	return fmt.Errorf("remove the log of build %s: %w", id, err)
}

func (s *Store) open(id build.ID, offset int64) (*os.File, error) {
	path, err := s.path(id)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("log of build %s: %w", id, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("log of build %s: %w", id, err)
	}
	if err := checkOffset(f, offset); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("log of build %s: offset %d: %w", id, offset, err)
	}
	return f, nil
}

// checkOffset wants a line to end just before offset.
func checkOffset(f io.ReaderAt, offset int64) error {
	if offset == 0 {
		return nil
	}
	var b [1]byte
	if offset < 0 {
		return ErrOffset
	}
	if _, err := f.ReadAt(b[:], offset-1); err == io.EOF || err == nil && b[0] != '\n' {
		return ErrOffset
	} else if err != nil {
		return err
	}
	return nil
}

// Read copies the whole lines from offset on, as far as they are written, to w
// and returns the offset to go on from. ErrNotFound if there is no log;
// ErrOffset if offset is not one that Read or Follow has given for this build.
func (s *Store) Read(ctx context.Context, id build.ID, offset int64, w io.Writer) (next int64, err error) {
	f, err := s.open(id, offset)
	if err != nil {
		return offset, err
	}
	defer f.Close()
	end, err := wholeLines(f)
	if err == nil {
		_, err = f.Seek(offset, io.SeekStart)
	}
	const step = 1 << 20 // between looks at ctx
	for next = offset; err == nil && next < end; {
		if ctx.Err() != nil {
			return next, context.Cause(ctx)
		}
		var n int64
		n, err = io.CopyN(w, f, min(step, end-next))
		next += n
	}
	if err != nil {
		return next, fmt.Errorf("read the log of build %s: %w", id, err)
	}
	return next, nil
}

// wholeLines is the offset behind the last line feed: what comes after it is
// still being written, or was torn by a crash.
func wholeLines(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	buf := make([]byte, 4<<10)
	for end := info.Size(); end > 0; {
		begin := max(0, end-int64(len(buf)))
		b := buf[:end-begin]
		if _, err := f.ReadAt(b, begin); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(b, '\n'); i >= 0 {
			return begin + int64(i) + 1, nil
		}
		end = begin
	}
	return 0, nil
}
