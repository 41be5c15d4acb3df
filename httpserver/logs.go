package httpserver

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/buildlog"
)

// offsetTrailer carries, after a log, the offset to go on from. It is also the
// offset asked for plus the length of the body.
const offsetTrailer = "X-Log-Offset"

// heartbeat is how often an event stream that is silent gets a comment, so that
// no proxy takes it for dead.
const heartbeat = 15 * time.Second

// getLog is GET of a build's log: JSON lines, or server-sent events for those
// who accept them.
func (s *server) getLog(w *response, c call) error {
	q, err := c.query("follow", "offset")
	if err != nil {
		return err
	}
	follow, err := flag(q, "follow")
	if err != nil {
		return err
	}
	events := strings.Contains(c.Header.Get("Accept"), "text/event-stream")
	at := q.Get("offset")
	if last := c.Header.Get("Last-Event-ID"); events && last != "" {
		at = last // a browser comes back with the query it had at first
	}
	offset, err := parseOffset(at)
	if err != nil {
		return err
	}
	b, err := s.visible(c)
	if err != nil {
		return err
	}
	if err := s.checkOffset(c.Context(), b.ID, offset); err != nil {
		return err
	}
	if events {
		return s.sendEvents(w, c, b, offset)
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Trailer", offsetTrailer)
	if c.Method == http.MethodHead {
		w.WriteHeader(http.StatusOK)
		return nil
	}
	var next int64
	if follow {
		next, err = s.followLines(w, c, b, offset)
	} else {
		next, err = s.Logs.Read(c.Context(), b.ID, offset, w)
		if errors.Is(err, buildlog.ErrNotFound) {
			err = nil // it has logged nothing yet
		}
	}
	if err != nil {
		return err
	}
	w.Header().Set(offsetTrailer, strconv.FormatInt(next, 10))
	return nil
}

func parseOffset(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%w: offset %q is not a number of bytes", build.ErrInvalid, s)
	}
	return n, nil
}

// checkOffset refuses an offset at which no line begins, while there is no
// header on its way that says all is well.
func (s *server) checkOffset(ctx context.Context, id build.ID, offset int64) error {
	if offset == 0 {
		return nil
	}
	_, err := s.Logs.Read(ctx, id, offset, enough{})
	switch {
	case errors.Is(err, errEnough):
		return nil
	case errors.Is(err, buildlog.ErrNotFound):
		return fmt.Errorf("offset %d: %w", offset, buildlog.ErrOffset)
	}
	return err
}

// enough ends a read at its first byte.
type enough struct{}

var errEnough = errors.New("enough")

func (enough) Write([]byte) (int, error) { return 0, errEnough }

func (s *server) followLines(w *response, c call, b build.Build, offset int64) (next int64, err error) {
	next = offset
	_, err = s.follow(w, c, b, offset, 0, func(out *bufio.Writer, line []byte, n int64) error {
		next = n
		_, err := out.Write(line)
		return err
	})
	return next, err
}

// sendEvents sends each line as an event whose id is the offset after it, and
// when the build has ended an event "end" whose data is its record.
func (s *server) sendEvents(w *response, c call, b build.Build, offset int64) error {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would hold events back
	if c.Method == http.MethodHead {
		w.WriteHeader(http.StatusOK)
		return nil
	}
	b, err := s.follow(w, c, b, offset, heartbeat, func(out *bufio.Writer, line []byte, n int64) error {
		_, err := fmt.Fprintf(out, "id: %d\ndata: %s\n\n", n, bytes.TrimSuffix(line, []byte("\n")))
		return err
	})
	if err != nil {
		return err
	}
	data, err := json.Marshal(show(b))
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "event: end\ndata: %s\n\n", data)
	return err
}

// follow sends the log of b, each line as write puts it, until the build has
// ended and all is sent; then it returns the record.
func (s *server) follow(w *response, c call, b build.Build, offset int64, beat time.Duration, write writeLine) (build.Build, error) {
	ctx, cancel := context.WithCancelCause(c.Context())
	defer cancel(nil)
	ended := make(chan struct{})
	out := newLiveWriter(w)
	id := b.ID

	var wg sync.WaitGroup
	wg.Go(func() {
		var err error
		if b, err = s.Builds.Wait(ctx, id); err != nil {
			cancel(err)
			return
		}
		close(ended)
	})
	wg.Go(func() {
		if err := out.run(ctx, beat); err != nil {
			cancel(err)
		}
	})
	err := s.Logs.Follow(ctx, id, offset, ended, func(line []byte, next int64) error {
		return out.write(line, next, write)
	})
	cancel(err)
	wg.Wait()
	if err != nil {
		return b, err
	}
	return b, out.flush()
}

// A writeLine writes one line of a log; next is the offset after it.
type writeLine func(out *bufio.Writer, line []byte, next int64) error

// A liveWriter sends lines as they come, but a burst of them at once: while one
// goroutine sends, another fills the buffer.
type liveWriter struct {
	mu    sync.Mutex // for w too, which takes one writer at a time
	w     *response
	buf   *bufio.Writer
	dirty chan struct{} // has room for one: there is something to send
}

func newLiveWriter(w *response) *liveWriter {
	l := &liveWriter{w: w, buf: bufio.NewWriterSize(w, 16<<10), dirty: make(chan struct{}, 1)}
	l.dirty <- struct{}{} // the header is worth sending at once
	return l
}

func (l *liveWriter) write(line []byte, next int64, write writeLine) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.dirty <- struct{}{}:
	default:
	}
	return write(l.buf, line, next)
}

// run sends what is written until ctx ends, and a comment after each beat; 0
// means no comments. It returns the error of the connection.
func (l *liveWriter) run(ctx context.Context, beat time.Duration) error {
	var beats <-chan time.Time
	if beat > 0 {
		t := time.NewTicker(beat)
		defer t.Stop()
		beats = t.C
	}
	for {
		select {
		case <-l.dirty:
		case <-beats:
			l.mu.Lock()
			_, _ = l.buf.WriteString(":\n\n") // flush returns its error
			l.mu.Unlock()
		case <-ctx.Done():
			return nil
		}
		if err := l.flush(); err != nil {
			return err
		}
	}
}

func (l *liveWriter) flush() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.buf.Flush(); err != nil {
		return err
	}
	return l.w.FlushError()
}
