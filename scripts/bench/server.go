package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// A server is a running cargo serve.
type server struct {
	*process
	url    string
	client *http.Client
}

// A serving is how a server is started.
type serving struct {
	data    string   // its data directory
	systems []string // whose standard library it prepares, before it is used
	args    []string // more flags
	env     []string // of the process, on top of this one's
}

// serve has f use a server on a copy of the data directory snapshot, which is
// removed in the end.
func (l *lab) serve(ctx context.Context, snapshot string, args []string, f func(*server) error) error {
	return l.inDir("server-", func(dir string) error {
		data := filepath.Join(dir, "data")
		if err := copyTree(ctx, snapshot, data); err != nil {
			return err
		}
		return l.serveOn(ctx, data, args, f)
	})
}

// inDir has f use a directory that is removed in the end.
func (l *lab) inDir(prefix string, f func(dir string) error) error {
	dir, err := os.MkdirTemp(l.scratch, prefix)
	if err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // builds have a user id of their own
		return err
	}
	return errors.Join(f(dir), remove(dir))
}

// serveOn starts a server on the data directory, has f use it when its
// libraries are prepared, and stops it.
func (l *lab) serveOn(ctx context.Context, data string, args []string, f func(*server) error) error {
	return l.serveAs(ctx, serving{data: data, systems: preparedOn, args: args}, func(s *server) error {
		err := s.ready(ctx)
		if l.canPrepare {
			for _, goos := range preparedOn {
				if err == nil {
					err = s.prepared(ctx, goos)
				}
			}
		}
		if err != nil {
			return err
		}
		return f(s)
	})
}

// serveAs starts a server, has f use it at once, and stops it.
func (l *lab) serveAs(ctx context.Context, how serving, f func(*server) error) error {
	s, err := l.startServer(ctx, how)
	if err != nil {
		return err
	}
	err = f(s)
	s.stop()
	if !s.cmd.ProcessState.Success() {
		err = errors.Join(err, fmt.Errorf("cargo serve ended with %s", s.cmd.ProcessState))
	}
	if err != nil && ctx.Err() == nil {
		progress("the last lines of the server:\n%s", s.lastLines())
	}
	return err
}

func (l *lab) startServer(ctx context.Context, how serving) (*server, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	args := []string{"serve", "--grace", "1s", "--concurrency", "2", "--listen", address, "--data-dir", how.data,
		"--executor", l.executor, "--image", l.image, "--remote", remote + "=" + l.apps.url}
	if l.canPrepare {
		args = append(args, "--prepare", platforms(how.systems))
	}
	args = append(append(args, how.args...), l.options.serve...)
	p, err := start(ctx, how.data+".log", how.env, l.cargo, args...)
	if err != nil {
		return nil, err
	}
	return &server{process: p, url: "http://" + address, client: l.client}, nil
}

// pause is that between two questions whether something is so.
const pause = 200 * time.Millisecond

// ready waits until builds are accepted.
func (s *server) ready(ctx context.Context) error {
	return s.until(ctx, 5*time.Minute, pause, "it is ready", func() (bool, error) {
		resp, err := s.do(ctx, http.MethodGet, "/readyz")
		if err != nil {
			return false, nil //nolint:nilerr // it does not listen yet
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK, nil
	})
}

// prepared waits until the standard library is there for the system.
func (s *server) prepared(ctx context.Context, goos string) error {
	return s.until(ctx, 20*time.Minute, pause, "the library of "+goos+" is prepared", func() (bool, error) {
		resp, err := s.do(ctx, http.MethodGet, "/metrics")
		if err != nil {
			return false, err
		}
		defer resp.Body.Close()
		return isPrepared(resp.Body, goos, runtime.GOARCH)
	})
}

// isPrepared looks in metrics whether all of a platform's library is there.
func isPrepared(metrics io.Reader, goos, goarch string) (bool, error) {
	lines := bufio.NewScanner(metrics)
	for lines.Scan() {
		labels, ok := strings.CutPrefix(lines.Text(), "cargo_cache_prepared{")
		if ok && strings.Contains(labels, fmt.Sprintf("goos=%q", goos)) && strings.Contains(labels, fmt.Sprintf("goarch=%q", goarch)) {
			return strings.HasSuffix(labels, "} 1"), nil
		}
	}
	return false, lines.Err()
}

func (s *server) do(ctx context.Context, method, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, nil)
	if err != nil {
		return nil, err
	}
	return s.client.Do(req)
}

// A record is what Cargo says of a build.
type record struct {
	ID       string    `json:"build_id"`
	State    string    `json:"state"`
	Reason   string    `json:"reason"`
	Message  string    `json:"message"`
	Accepted time.Time `json:"accepted_at"`
	Started  time.Time `json:"started_at"`
	Finished time.Time `json:"finished_at"`
	Phases   []phase   `json:"phases"`
	Links    struct {
		Download string `json:"download"`
	} `json:"links"`
}

type phase struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}

// took is Cargo's time.
func (r record) took() time.Duration { return r.Finished.Sub(r.Accepted) }

// target is the path of an app's binary, and the recipe that makes it.
func target(name, goos, version string) string {
	path := fmt.Sprintf("/%s/%s/%s/%s/%s", remote, catalog[name].path, goos, runtime.GOARCH, version)
	if compiled(name) {
		path += "?recipe=go"
	}
	return path
}

// build builds an app and notes where the time went.
func (l *lab) build(ctx context.Context, s *server, label, name, goos, version string) (record, error) {
	id, err := s.post(ctx, target(name, goos, version))
	if err != nil {
		return record{}, err
	}
	r, err := s.wait(ctx, id)
	if err != nil {
		return r, fmt.Errorf("%s: %w", label, err)
	}
	l.report.build(label, r)
	return r, nil
}

// A refusedError is an answer that is not 202.
type refusedError struct {
	status int
	text   string
}

func (e *refusedError) Error() string { return e.text }

// post asks for a build.
func (s *server) post(ctx context.Context, path string) (id string, err error) {
	resp, err := s.do(ctx, http.MethodPost, path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusAccepted {
		return "", &refusedError{resp.StatusCode, fmt.Sprintf("POST %s: %s: %s", path, resp.Status, bytes.TrimSpace(body))}
	}
	var answer struct {
		ID string `json:"build_id"`
	}
	return answer.ID, errors.Join(json.Unmarshal(body, &answer), ctx.Err())
}

// wait waits for the end of a build, which must be a success.
func (s *server) wait(ctx context.Context, id string) (r record, err error) {
	err = s.until(ctx, 20*time.Minute, pause, "the build "+id+" has ended", func() (bool, error) {
		resp, err := s.do(ctx, http.MethodGet, "/builds/"+id)
		if err != nil {
			return false, err
		}
		defer resp.Body.Close()
		r = record{}
		if err := json.NewDecoder(resp.Body).Decode(&r); err != nil {
			return false, err
		}
		return r.State == "succeeded" || r.State == "failed" || r.State == "canceled", nil
	})
	if err == nil && r.State != "succeeded" {
		err = fmt.Errorf("the build %s: %s", strings.TrimSpace(r.State+" "+r.Reason), r.Message)
	}
	return r, err
}

// logSize is the length of a build's log, read to its end.
func (s *server) logSize(ctx context.Context, id string) (int64, error) {
	resp, err := s.do(ctx, http.MethodGet, "/builds/"+id+"/logs")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return io.Copy(io.Discard, resp.Body)
}

// answers says whether a GET of url has status 200.
func (l *lab) answers(ctx context.Context, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := l.client.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}
