package buildlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/monochromegane/cargo/build"
)

// DefaultLimit is the size of a log where Create is given none.
const DefaultLimit = 64 << 20

// maxHeld is how much a Writer keeps in memory before it writes at once.
const maxHeld = 1 << 20

// A Writer appends to the log of one build. Its methods are safe for
// concurrent use. Nothing that is logged fails: lines that the disk does not take
// are dropped, which a later one says, and Close. So is output beyond the limit.
type Writer struct {
	store *Store
	tail  *tail
	leave func()
	id    build.ID
	limit int64
	full  chan struct{}

	mu     sync.Mutex
	held   []byte // whole lines that are not in the file yet
	size   int64  // of the file and held
	cut    int64  // bytes of lines that were too long; they count towards the limit
	mute   bool   // the limit is reached
	closed bool

	writing sync.Mutex // guards what follows; taken before mu
	file    *logFile   // nil when it has been closed
	spare   []byte

	wake chan struct{} // held is no longer empty
	stop chan struct{}
	wg   sync.WaitGroup

	shipper *shipper // nil unless the log is shared
}

// Create opens the log of a build to append to it, and makes it if there is
// none. A last line that a crash left torn is cut off. limit is in bytes, of
// the whole file and what was cut out of its lines; output beyond it is dropped, lines of Log are not; 0 means
// DefaultLimit. ErrInUse if the log has a Writer.
func (s *Store) Create(_ context.Context, b build.Build, limit int64) (*Writer, error) {
	return s.newWriter(b.ID, limit, func() error { return nil })
}

// Keep does nothing: the file is where the log stays.
func (s *Store) Keep(context.Context, build.Build) error { return nil }

// Drop does nothing: there is no other copy.
func (s *Store) Drop(context.Context, build.Build) error { return nil }

// newWriter calls prepare when nobody else can become the writer any more and
// the file is not open yet.
func (s *Store) newWriter(id build.ID, limit int64, prepare func() error) (*Writer, error) {
	if limit <= 0 {
		limit = DefaultLimit
	}
	w := &Writer{
		store: s,
		id:    id,
		limit: limit,
		full:  make(chan struct{}),
		wake:  make(chan struct{}, 1),
		stop:  make(chan struct{}),
	}
	w.tail, w.leave = s.join(id)
	err := s.enter(w)
	if err == nil {
		if err = prepare(); err == nil {
			w.file, err = s.create(id)
		}
		if err != nil {
			s.quit(w)
		}
	}
	if err != nil {
		w.leave()
		return nil, fmt.Errorf("create the log of build %s: %w", id, err)
	}
	if w.size = w.file.whole; w.size > limit {
		w.mute = true
		close(w.full)
	}
	w.wg.Go(w.run)
	s.announce(w.tail)
	return w, nil
}

// enter makes w the one writer of its log, until quit.
func (s *Store) enter(w *Writer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.tail.writer != nil {
		return ErrInUse
	}
	w.tail.writer = w
	return nil
}

func (s *Store) quit(w *Writer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.tail.writer = nil
}

func (s *Store) create(id build.ID) (*logFile, error) {
	path, err := s.path(id)
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	size, err := wholeLines(f)
	if info, statErr := f.Stat(); err == nil && statErr == nil && info.Size() > size {
		err = f.Truncate(size)
	}
	if err == nil {
		err = errors.Join(syncDir(dir), syncDir(s.dir))
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &logFile{file: f, id: id, whole: size}, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Log writes one line. Levels are as in slog, in lower case. Attributes must
// not be named like the four fields that begin each line, nor "cut_bytes".
func (w *Writer) Log(level slog.Level, msg string, attrs ...slog.Attr) {
	text, cut := cutText(msg, w.store.lineLimit)
	w.line(false, func(b []byte, now time.Time) []byte {
		b = appendHead(b, w.id, level, text, now)
		for _, a := range attrs {
			b = appendAttr(b, a, w.store.lineLimit)
		}
		return appendEnd(b, cut)
	})
}

// Stream returns a writer for one output of a container: each line of it is a
// line of the log with the attributes "stream" and, unless it is empty,
// "phase". Lines end with \n, \r\n or \r; so a progress bar that draws over
// itself is seen as it moves. What is not UTF-8 becomes U+FFFD. Close logs a
// last line without an end; it does not close the Writer. Write never fails.
func (w *Writer) Stream(name, phase string) io.WriteCloser {
	attrs := appendAttr(nil, slog.String("stream", name), w.store.lineLimit)
	if phase != "" {
		attrs = appendAttr(attrs, slog.String("phase", phase), w.store.lineLimit)
	}
	return &stream{split: splitter{limit: w.store.lineLimit, drop: w.drop, emit: func(text []byte, cut int64) {
		w.line(true, func(b []byte, now time.Time) []byte {
			b = appendHead(b, w.id, slog.LevelInfo, text, now)
			return appendEnd(append(b, attrs...), cut)
		})
	}}}
}

// TooLarge is closed when output has filled the log up to its limit. A line
// says so; later output is dropped.
func (w *Writer) TooLarge() <-chan struct{} { return w.full }

// line appends what encode makes; if that is output, only where there is room.
func (w *Writer) line(output bool, encode func(b []byte, now time.Time) []byte) {
	w.mu.Lock()
	if w.closed || output && w.mute {
		w.mu.Unlock()
		return
	}
	now := time.Now().UTC()
	before := len(w.held)
	w.held = encode(w.held, now)
	if output && w.size+w.cut+int64(len(w.held)-before) > w.limit {
		w.held = w.held[:before]
		w.overflow(now)
	}
	w.size += int64(len(w.held) - before)
	much := len(w.held) >= maxHeld
	w.mu.Unlock()

	if much {
		w.write()
		return
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// overflow ends the output, under mu, with a line that says so.
func (w *Writer) overflow(now time.Time) {
	w.held = appendHead(w.held, w.id, slog.LevelError, "the log has reached its limit: later output is dropped; --log-limit raises it", now)
	w.held = appendEnd(appendAttr(w.held, slog.Int64("limit_bytes", w.limit), w.store.lineLimit), 0)
	w.mute = true
	close(w.full)
}

// drop counts n bytes of a line that is too long: one without an end must not
// go on for ever.
func (w *Writer) drop(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut += n; !w.closed && !w.mute && w.size+w.cut > w.limit {
		before := len(w.held)
		w.overflow(time.Now().UTC())
		w.size += int64(len(w.held) - before)
	}
}

// run writes the first line at once and what follows it in portions.
func (w *Writer) run() {
	for {
		select {
		case <-w.wake:
		case <-w.stop:
			return
		}
		w.write()
		select {
		case <-time.After(w.store.flush):
		case <-w.stop:
			return
		}
	}
}

// write moves what is held to the file and tells the followers.
func (w *Writer) write() {
	w.writing.Lock()
	defer w.writing.Unlock()
	w.mu.Lock()
	lines := w.held
	w.held = w.spare[:0]
	w.mu.Unlock()
	w.spare = lines
	if len(lines) == 0 || w.file == nil {
		return
	}
	w.file.add(lines)
	w.store.announce(w.tail)
}

// Close writes and syncs what is left. It returns the first error of the disk.
// A log that is shared is also shipped, as far as that takes some seconds at most.
func (w *Writer) Close() error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return nil
	}
	w.closed = true
	w.mu.Unlock()

	err := w.end()
	if w.shipper != nil {
		w.shipper.finish()
	}
	if err != nil {
		return fmt.Errorf("write the log of build %s: %w", w.id, err)
	}
	return nil
}

// end writes and syncs what is left, and closes the file.
func (w *Writer) end() error {
	close(w.stop)
	w.wg.Wait()
	w.write()
	w.store.quit(w)
	w.leave()
	w.writing.Lock()
	defer w.writing.Unlock()
	err := w.file.close()
	w.file = nil // for a follower that still asks for a write
	return err
}
