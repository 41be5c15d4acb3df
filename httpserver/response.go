package httpserver

import (
	"cmp"
	"io"
	"math"
	"net/http"
	"time"
)

// A response is what handlers write to. It remembers what was sent, and gives
// the client writeTimeout for each piece: however long the whole takes, one
// that stops reading is let go.
type response struct {
	http.ResponseWriter
	conn  *http.ResponseController
	code  int   // 0 until the header is written
	bytes int64 // of the body
	err   error // the first of writing the body
}

const (
	writeTimeout = time.Minute
	piece        = 1 << 20 // bytes that sendfile is given at once
)

func newResponse(w http.ResponseWriter) *response {
	return &response{ResponseWriter: w, conn: http.NewResponseController(w)}
}

// Unwrap is for [http.ResponseController].
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *response) WriteHeader(code int) {
	if w.code == 0 && code >= http.StatusOK {
		w.code = code
	}
	w.allow(writeTimeout)
	w.ResponseWriter.WriteHeader(code)
}

func (w *response) Write(p []byte) (int, error) {
	w.begin()
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	w.err = cmp.Or(w.err, err)
	return n, err
}

// ReadFrom hands src down, so that the kernel copies an *os.File to the
// connection itself; without this method each byte would pass through us.
func (w *response) ReadFrom(src io.Reader) (n int64, err error) {
	rest := int64(math.MaxInt64)
	limited, ok := src.(*io.LimitedReader)
	if ok { // of two nested limits net does not see the file
		src, rest = limited.R, limited.N
	}
	for rest > 0 {
		w.begin()
		part := &io.LimitedReader{R: src, N: min(rest, piece)}
		want := part.N
		m, err := io.Copy(w.ResponseWriter, part)
		n, rest, w.bytes, w.err = n+m, rest-m, w.bytes+m, cmp.Or(w.err, err)
		if ok {
			limited.N -= m
		}
		if err != nil || m < want {
			return n, err
		}
	}
	return n, nil
}

// FlushError sends what was written so far.
func (w *response) FlushError() error {
	w.begin()
	return w.conn.Flush()
}

// Flush is FlushError for those who ask for an [http.Flusher].
func (w *response) Flush() { _ = w.FlushError() }

func (w *response) begin() {
	if w.code == 0 {
		w.code = http.StatusOK
	}
	w.allow(writeTimeout)
}

// allow sets the deadline of writing; 0 takes it away. A connection that knows
// no deadlines, as in tests, does without.
func (w *response) allow(d time.Duration) {
	var t time.Time
	if d > 0 {
		t = time.Now().Add(d)
	}
	_ = w.conn.SetWriteDeadline(t)
}
