package httpserver

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"
)

var errPanicked = errors.New("a handler panicked")

// statusGone is what the log and the metrics call a request whose client went
// away, or whose server stopped, before there was an answer.
const statusGone = 499

// ServeHTTP finds the handler, turns its error into a problem, and counts and
// logs the request.
func (s *server) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	start := time.Now()
	w := newResponse(rw)
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Robots-Tag", "noindex")
	h.Set("Cache-Control", "no-store")
	h.Set("Vary", "Authorization")

	c, err := find(r)
	c.caller = s.gate.identify(r)
	if err == nil {
		err = s.answer(w, c)
	}
	broken := err != nil && (w.code != 0 || r.Context().Err() != nil || errors.Is(err, http.ErrAbortHandler))
	if err != nil && !broken {
		writeProblem(w, err)
	}
	w.allow(0)
	s.account(w, c, err, time.Since(start))
	if broken {
		panic(http.ErrAbortHandler) // what was sent must not look complete
	}
}

func (s *server) answer(w *response, c call) (err error) {
	defer func() {
		switch v := recover(); v {
		case nil:
		case http.ErrAbortHandler:
			err = http.ErrAbortHandler
		default:
			err = fmt.Errorf("%w: %v\n%s", errPanicked, v, debug.Stack())
		}
	}()
	h, err := s.handler(w, c)
	if err != nil {
		return err
	}
	if err := s.gate.admit(c); err != nil {
		return err
	}
	return h(w, c)
}

// account writes the request into the log and the metrics. Neither sees the
// query or a header; the log has the name of the caller who has a token.
func (s *server) account(w *response, c call, err error, d time.Duration) {
	gone := c.Context().Err() != nil
	code := w.code
	if code == 0 {
		code = http.StatusOK
		if gone {
			code = statusGone
		}
	}
	if s.Metrics != nil {
		s.Metrics.RequestEnded(c.route, code, d)
		if c.route == routeArchive && (code == http.StatusOK || code == http.StatusPartialContent) {
			s.Metrics.ArtifactServed(w.bytes)
		}
	}
	attrs := []slog.Attr{
		slog.String("method", c.Method), slog.String("route", c.route), slog.String("path", c.URL.Path),
		slog.Int("code", code), slog.Int64("ms", d.Milliseconds()), slog.Int64("bytes", w.bytes),
	}
	if c.caller.name != "" {
		attrs = append(attrs, slog.String("caller", c.caller.name))
	}
	level := slog.LevelInfo
	switch {
	case c.route == routeHealth || c.route == routeReady || c.route == routeMetrics: // probes come every few seconds
		level = slog.LevelDebug
	case err == nil:
	case gone || w.err != nil: // nobody's fault
	case problemOf(err).Status == http.StatusInternalServerError:
		level = slog.LevelError
		attrs = append(attrs, slog.Any("err", err))
	case code >= http.StatusInternalServerError:
		level = slog.LevelWarn
		attrs = append(attrs, slog.Any("err", err))
	}
	s.Log.LogAttrs(c.Context(), level, "request", attrs...)
}
