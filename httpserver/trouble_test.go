package httpserver_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/buildlog"
	"github.com/monochromegane/cargo/gitsrc"
	"github.com/monochromegane/cargo/httpserver"
	"github.com/monochromegane/cargo/queue"
)

const inside = "/var/lib/inside"

// troubled is every room at once, each of which fails with its error if there
// is one.
type troubled struct {
	httpserver.Builds
	httpserver.Artifacts
	httpserver.Source
	submit, get, list, lookup, open, resolve error
}

func (r troubled) Submit(ctx context.Context, s queue.Submission) (build.Build, error) {
	if r.submit != nil {
		return build.Build{}, r.submit
	}
	return r.Builds.Submit(ctx, s)
}

func (r troubled) Get(ctx context.Context, id build.ID) (build.Build, error) {
	if r.get != nil {
		return build.Build{}, r.get
	}
	return r.Builds.Get(ctx, id)
}

func (r troubled) List(ctx context.Context, f queue.Filter) ([]build.Build, bool, error) {
	if r.list != nil {
		return nil, false, r.list
	}
	return r.Builds.List(ctx, f)
}

func (r troubled) Lookup(ctx context.Context, slot string) (artifact.Meta, error) {
	if r.lookup != nil {
		return artifact.Meta{}, r.lookup
	}
	return r.Artifacts.Lookup(ctx, slot)
}

func (r troubled) Open(ctx context.Context, m artifact.Meta) (io.ReadSeekCloser, error) {
	if r.open != nil {
		return nil, r.open
	}
	return r.Artifacts.Open(ctx, m)
}

func (r troubled) Resolve(ctx context.Context, repo build.Repository, version string, tok gitsrc.Token, maxAge time.Duration) (gitsrc.Ref, error) {
	if r.resolve != nil {
		return gitsrc.Ref{}, r.resolve
	}
	return r.Source.Resolve(ctx, repo, version, tok, maxAge)
}

func (r *troubled) enter(o *httpserver.Options) {
	r.Builds, r.Artifacts, r.Source = o.Builds, o.Artifacts, o.Source
	o.Builds, o.Artifacts, o.Source = r, r, r
}

// What cannot be done now is a 503 that says when to come again, and nothing of
// what is inside.
func TestTroubles(t *testing.T) {
	disk := func(err error) error { return &fs.PathError{Op: "open", Path: inside, Err: err} }
	for name, tc := range map[string]struct {
		rooms  troubled
		method string
		path   string // "" for the target
		says   string
	}{
		"submit":             {troubled{submit: fmt.Errorf("%s: %w", inside, queue.ErrUnavailable)}, "POST", "", "the build queue does not answer"},
		"submit broken":      {troubled{submit: fmt.Errorf("%w (%s)", queue.ErrBroken, inside)}, "POST", "", "cannot write to its disk"},
		"submit unknown":     {troubled{submit: errors.New(inside)}, "POST", "", "it is not known whether the build was accepted; ask again"},
		"submit full":        {troubled{submit: disk(syscall.ENOSPC)}, "POST", "", "cannot write to its disk"},
		"submit quota":       {troubled{submit: disk(syscall.EDQUOT)}, "POST", "", "cannot write to its disk"},
		"submit read-only":   {troubled{submit: disk(syscall.EROFS)}, "POST", "", "cannot write to its disk"},
		"record":             {troubled{get: fmt.Errorf("%s: %w", inside, queue.ErrUnavailable)}, "GET", "/builds/" + string(build.NewID()), "the build queue does not answer"},
		"cancel":             {troubled{get: fmt.Errorf("%s: %w", inside, queue.ErrUnavailable)}, "DELETE", "/builds/" + string(build.NewID()), "the build queue does not answer"},
		"list":               {troubled{list: fmt.Errorf("%s: %w", inside, queue.ErrUnavailable)}, "GET", "/builds", "the build queue does not answer"},
		"lookup":             {troubled{lookup: fmt.Errorf("%s: %w", inside, artifact.ErrUnavailable)}, "POST", "", "the artifact store does not answer"},
		"lookup of a target": {troubled{lookup: fmt.Errorf("%s: %w", inside, artifact.ErrUnavailable)}, "GET", "", "the artifact store does not answer"},
		"open":               {troubled{open: fmt.Errorf("%s: %w", inside, artifact.ErrUnavailable)}, "GET", archive, "the artifact store does not answer"},
		"descriptors":        {troubled{open: disk(syscall.EMFILE)}, "GET", archive, "too many files open"},
		"all descriptors":    {troubled{lookup: disk(syscall.ENFILE)}, "GET", "", "too many files open"},
		"socket":             {troubled{resolve: fmt.Errorf("%w: %w", gitsrc.ErrUnavailable, syscall.EMFILE)}, "POST", "/github.com/o/other/linux/amd64/v1", "too many files open"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, tc.rooms.enter)
			a.repository("o/r")
			if tc.rooms.open != nil {
				a.do(t, "POST", target).submitted(t)
				a.work(t, []byte("x"))
			}
			if tc.path == "" {
				tc.path = target
			}
			r := a.do(t, tc.method, tc.path)
			if p := r.problem(t, http.StatusServiceUnavailable); !strings.Contains(p.Detail, tc.says) || strings.Contains(p.Detail, "restart") {
				t.Errorf("it says %q, want something of %q", p.Detail, tc.says)
			}
			if strings.Contains(r.body, inside) {
				t.Errorf("the caller reads %q", r.body)
			}
			if log := a.log.String(); !strings.Contains(log, `"level":"WARN"`) || strings.Contains(log, `"level":"ERROR"`) {
				t.Errorf("the log is %s", log)
			}
		})
	}
}

// A log that breaks off in the midst is cut, so that it does not look complete;
// one that cannot be begun is a 503.
func TestLogsThatCannotBeReached(t *testing.T) {
	for _, tc := range []struct {
		query string
		read  bool // whether some of it can be
		code  int
	}{
		{"", false, http.StatusServiceUnavailable},
		{"?offset=7", false, http.StatusServiceUnavailable},
		{"", true, http.StatusOK},
		{"?follow=1", true, http.StatusOK},
		{"events", true, http.StatusOK},
	} {
		a := newAPI(t, func(o *httpserver.Options) { o.Logs = tornLogs{some: tc.read} })
		a.repository("o/r")
		path := "/builds/" + string(a.do(t, "POST", target).submitted(t)) + "/logs"
		headers := []string{}
		query := tc.query
		if query == "events" {
			query, headers = "", []string{"Accept", "text/event-stream"}
		}
		r, err := a.open(t, "GET", path+query, headers...)
		if err != nil {
			if tc.code != http.StatusOK {
				t.Errorf("%q: %v", tc.query, err)
			}
			continue // cut before the header was sent
		}
		body, err := io.ReadAll(r.Body)
		_ = r.Body.Close()
		if r.StatusCode != tc.code {
			t.Errorf("%q, some of it: %t: code %d, %s", tc.query, tc.read, r.StatusCode, body)
		}
		if tc.code == http.StatusOK && err == nil {
			t.Errorf("%q looks complete: %q, trailer %v", tc.query, body, r.Trailer)
		}
		if tc.code != http.StatusOK && !strings.Contains(string(body), "the logs of builds cannot be reached") {
			t.Errorf("%q says %s", tc.query, body)
		}
	}
}

// tornLogs end with their store, some of them after a line that is long enough
// to be sent at once.
type tornLogs struct{ some bool }

var line = append([]byte(`{"msg":"`+strings.Repeat("x", 100_000)+`"}`), '\n')

func (l tornLogs) Read(_ context.Context, _ build.ID, _ int64, w io.Writer) (n int64, err error) {
	if l.some {
		if _, err := w.Write(line); err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("read: %w", buildlog.ErrUnavailable)
}

func (l tornLogs) Follow(_ context.Context, _ build.ID, _ int64, _ <-chan struct{}, emit func([]byte, int64) error) error {
	if l.some {
		if err := emit(line, int64(len(line))); err != nil {
			return err
		}
	}
	return fmt.Errorf("follow: %w", buildlog.ErrUnavailable)
}

// A server that has no worker says so.
func TestNoWorkerYet(t *testing.T) {
	a := newAPI(t, func(o *httpserver.Options) { o.NoImage = "no worker has announced its builder image yet" })
	a.repository("o/r")
	a.become("")
	if p := a.do(t, "POST", target).problem(t, http.StatusServiceUnavailable); !strings.Contains(p.Detail, "no worker has announced its builder image yet") || strings.Contains(p.Detail, "prepared") {
		t.Errorf("POST says %q", p.Detail)
	}
}
