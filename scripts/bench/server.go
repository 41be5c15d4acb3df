package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// A server is a running cargo serve.
type server struct {
	url  string
	data string // its data directory
	log  string // file of its own log
	cmd  *exec.Cmd
	over chan struct{} // closed when the process has ended
}

// serve has f use a server on a copy of the data directory snapshot, which is
// removed in the end.
func (l *lab) serve(ctx context.Context, snapshot string, args []string, f func(*server) error) error {
	dir, err := os.MkdirTemp(l.scratch, "server-")
	if err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	data := filepath.Join(dir, "data")
	if err = copyTree(ctx, snapshot, data); err == nil {
		err = l.serveOn(ctx, data, args, f)
	}
	return errors.Join(err, remove(dir))
}

// serveOn starts a server on the data directory, has f use it and stops it.
func (l *lab) serveOn(ctx context.Context, data string, args []string, f func(*server) error) error {
	s := &server{data: data, log: data + ".log", over: make(chan struct{})}
	if err := s.start(ctx, l, args); err != nil {
		return err
	}
	err := s.ready(ctx)
	if l.canPrepare {
		for _, goos := range preparedOn {
			if err == nil {
				err = s.prepared(ctx, goos)
			}
		}
	}
	if err == nil {
		err = f(s)
	}
	err = errors.Join(err, s.stop())
	if err != nil && ctx.Err() == nil {
		if log, logErr := os.ReadFile(s.log); logErr == nil {
			progress("the last lines of the server:\n%s", tail(string(log), 15))
		}
	}
	return err
}

func (s *server) start(ctx context.Context, l *lab, args []string) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	address := ln.Addr().String()
	if err := ln.Close(); err != nil {
		return err
	}
	log, err := os.Create(s.log)
	if err != nil {
		return err
	}
	defer log.Close()
	all := []string{"serve", "--grace", "1s", "--concurrency", "2", "--listen", address, "--data-dir", s.data,
		"--executor", l.executor, "--image", l.image, "--remote", remote + "=" + l.apps.url}
	if l.canPrepare {
		all = append(all, "--prepare", platforms(preparedOn))
	}
	all = append(append(all, args...), l.options.serve...)
	s.url = "http://" + address
	s.cmd = exec.CommandContext(ctx, l.cargo, all...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt from the terminal comes once, from here
	s.cmd.Cancel = func() error { return s.cmd.Process.Signal(syscall.SIGTERM) }
	s.cmd.WaitDelay = time.Minute
	if err := s.cmd.Start(); err != nil {
		return err
	}
	go func() {
		defer close(s.over)
		_ = s.cmd.Wait() // how it ended is in its state
	}()
	return nil
}

func (s *server) stop() error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-s.over:
	case <-time.After(time.Minute):
		_ = s.cmd.Process.Kill()
		<-s.over
	}
	if !s.cmd.ProcessState.Success() {
		return fmt.Errorf("cargo serve ended with %s", s.cmd.ProcessState)
	}
	return nil
}

// ready waits until builds are accepted.
func (s *server) ready(ctx context.Context) error {
	return s.until(ctx, 5*time.Minute, "it is ready", func() (bool, error) {
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
	return s.until(ctx, 20*time.Minute, "the library of "+goos+" is prepared", func() (bool, error) {
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

// until asks again and again.
func (s *server) until(ctx context.Context, limit time.Duration, what string, f func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("after %s it is not yet so that %s", limit, what))
	defer cancel()
	for {
		if ok, err := f(); ok || err != nil {
			return err
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-s.over:
			return errors.New("cargo serve ended by itself")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *server) do(ctx context.Context, method, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, nil)
	if err != nil {
		return nil, err
	}
	return http.DefaultClient.Do(req)
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
	if catalog[name].main != "" {
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
		return "", fmt.Errorf("POST %s: %s: %s", path, resp.Status, bytes.TrimSpace(body))
	}
	var answer struct {
		ID string `json:"build_id"`
	}
	return answer.ID, errors.Join(json.Unmarshal(body, &answer), ctx.Err())
}

// wait waits for the end of a build, which must be a success.
func (s *server) wait(ctx context.Context, id string) (r record, err error) {
	err = s.until(ctx, 20*time.Minute, "the build "+id+" has ended", func() (bool, error) {
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
