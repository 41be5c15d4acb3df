package httpserver

import (
	"cmp"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/buildlog"
	"github.com/monochromegane/cargo/gitsrc"
	"github.com/monochromegane/cargo/queue"
)

var (
	errNotBuilt     = errors.New("not built")
	errAlreadyBuilt = errors.New("built already")
	errNotReady     = errors.New("nothing can be built yet")
	errUncertain    = errors.New("the outcome of a submit is not known")
	errBadRange     = errors.New("the archive has no such range; Content-Range says how long it is")
	errListing      = errors.New("the server is busy asking git hosts for others; try again soon")
	errWaiting      = errors.New("not ready")
)

// statuses is what a caller sees of an error. Where text is "", the error is
// ours or has a text made for callers, and is shown itself.
var statuses = []struct {
	err   error
	code  int
	text  string
	retry time.Duration // goes into Retry-After
	asks  string        // goes into WWW-Authenticate
}{
	{err: build.ErrInvalid, code: http.StatusBadRequest},
	{err: errNoRoute, code: http.StatusNotFound},
	{err: errMethod, code: http.StatusMethodNotAllowed},
	{err: errPathTooLong, code: http.StatusRequestURITooLong},
	{err: errCrossOrigin, code: http.StatusForbidden},
	{err: errBadRange, code: http.StatusRequestedRangeNotSatisfiable},
	{err: gitsrc.ErrBadAuthorization, code: http.StatusUnauthorized, asks: `Basic realm="cargo", Bearer realm="cargo"`},
	{err: errNoToken, code: http.StatusUnauthorized, asks: tokenHeader + ` realm="cargo"`},
	{err: errWrongToken, code: http.StatusUnauthorized, asks: tokenHeader + ` realm="cargo"`},
	{err: errTooMany, code: http.StatusTooManyRequests},
	// Before the git host, which may be out of reach for that.
	{err: syscall.EMFILE, code: http.StatusServiceUnavailable, text: tooManyFiles, retry: 5 * time.Second},
	{err: syscall.ENFILE, code: http.StatusServiceUnavailable, text: tooManyFiles, retry: 5 * time.Second},
	{err: gitsrc.ErrNotFound, code: http.StatusNotFound, text: "no such repository or version, or no permission to read it; a private one needs an Authorization header with a token that can read it"},
	{err: gitsrc.ErrUnavailable, code: http.StatusServiceUnavailable, text: "the git host does not answer; try again soon", retry: 30 * time.Second},
	{err: buildlog.ErrOffset, code: http.StatusBadRequest},
	{err: queue.ErrNotFound, code: http.StatusNotFound, text: "no such build, or no permission to see it; a private repository's needs an Authorization header with a token that can read it"},
	{err: queue.ErrEnded, code: http.StatusConflict, text: "the build has ended already"},
	{err: queue.ErrFull, code: http.StatusServiceUnavailable, text: "the build queue is full; try again soon", retry: 10 * time.Second},
	{err: queue.ErrCallerFull, code: http.StatusTooManyRequests, retry: 10 * time.Second},
	{err: queue.ErrBroken, code: http.StatusServiceUnavailable, text: badDisk, retry: time.Minute},
	{err: queue.ErrUnavailable, code: http.StatusServiceUnavailable, text: "the build queue does not answer; what it has accepted is safe, and asking again is; try again soon", retry: 5 * time.Second},
	{err: queue.ErrClosed, code: http.StatusServiceUnavailable, text: "the server is stopping; try again soon", retry: 5 * time.Second},
	{err: errNotReady, code: http.StatusServiceUnavailable, retry: 5 * time.Second},
	{err: errListing, code: http.StatusServiceUnavailable, retry: 5 * time.Second},
	{err: errWaiting, code: http.StatusServiceUnavailable, retry: 5 * time.Second},
	{err: errNotBuilt, code: http.StatusNotFound},
	{err: artifact.ErrNotFound, code: http.StatusNotFound, text: "not built; POST the path of the target to build it"},
	{err: errAlreadyBuilt, code: http.StatusConflict},
	{err: artifact.ErrUnavailable, code: http.StatusServiceUnavailable, text: "the artifact store does not answer; try again soon", retry: 10 * time.Second},
	{err: buildlog.ErrUnavailable, code: http.StatusServiceUnavailable, text: "the logs of builds cannot be reached; try again soon", retry: 5 * time.Second},
	{err: syscall.ENOSPC, code: http.StatusServiceUnavailable, text: badDisk, retry: time.Minute},
	{err: syscall.EDQUOT, code: http.StatusServiceUnavailable, text: badDisk, retry: time.Minute},
	{err: syscall.EROFS, code: http.StatusServiceUnavailable, text: badDisk, retry: time.Minute},
	{err: errUncertain, code: http.StatusServiceUnavailable, text: "it is not known whether the build was accepted; ask again, which is safe: what was accepted is not built twice", retry: 5 * time.Second},
}

const (
	tooManyFiles = "the server has too many files open; try again soon"
	badDisk      = "the server cannot write to its disk; try again later"
)

// archiveHeaders are those of an archive that no other answer to its path has.
var archiveHeaders = []string{"Content-Disposition", "ETag", "Last-Modified", "Repr-Digest"}

// A problem is the body of every error: RFC 9457, with members of our own
// where a program could act on them.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	hint

	retry time.Duration
	asks  string
}

// hint is what an error knows that helps the caller on.
type hint struct {
	Download string   `json:"download,omitempty"`  // path and query of an archive that is there
	BuildID  build.ID `json:"build_id,omitempty"`  // the build that made it, or is at it
	NotReady []string `json:"not_ready,omitempty"` // what the server waits for
}

// A hintError is one of statuses with something to add.
type hintError struct {
	error
	hint
}

func (e *hintError) Unwrap() error { return e.error }

func problemOf(err error) problem {
	p := problem{Type: "about:blank", Status: http.StatusInternalServerError, Detail: "something broke on our side; the server's log says what"}
	for _, s := range statuses {
		if errors.Is(err, s.err) {
			p.Status, p.Detail, p.retry, p.asks = s.code, cmp.Or(s.text, err.Error()), s.retry, s.asks
			break
		}
	}
	if e, ok := errors.AsType[*gitsrc.RefusedError](err); ok {
		p.Status, p.Detail = http.StatusUnprocessableEntity, e.Error()
	}
	if e, ok := errors.AsType[*slowError](err); ok {
		p.retry = e.wait
	}
	p.Title = http.StatusText(p.Status)
	if e, ok := errors.AsType[*hintError](err); ok {
		p.hint = e.hint
	}
	return p
}

// writeProblem answers with err, whatever headers a handler had set for a better end.
func writeProblem(w *response, err error) {
	p := problemOf(err)
	h := w.Header()
	for _, name := range slices.Concat(archiveHeaders, []string{"Trailer"}) {
		h.Del(name)
	}
	h.Set("Cache-Control", "no-store")
	if p.retry > 0 {
		h.Set("Retry-After", strconv.Itoa(seconds(p.retry)))
	}
	if p.asks != "" {
		h.Set("WWW-Authenticate", p.asks)
	}
	body, err := json.Marshal(p)
	if err != nil {
		panic(err) // strings and numbers only
	}
	send(w, p.Status, "application/problem+json", append(body, '\n'))
}

// writeJSON answers with v on one line.
func writeJSON(w *response, code int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	send(w, code, "application/json", append(body, '\n'))
	return nil
}

func send(w *response, code int, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(code)
	_, _ = w.Write(body) // a client that is gone has nobody to tell
}
