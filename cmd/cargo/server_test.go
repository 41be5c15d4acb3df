package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

// patience is how long a test waits for what must come.
const patience = 4 * time.Minute

// A server is a cargo serve in a process of its own.
type server struct {
	t      *testing.T
	url    string
	args   []string
	cmd    *exec.Cmd
	stderr *output
}

// An output collects what a process writes; safe for concurrent use.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// require skips the test where what is missing, or fails it where
// CARGO_TEST_REQUIRE names it.
func require(t *testing.T, what string, missing error) {
	t.Helper()
	if missing == nil {
		return
	}
	if slices.Contains(strings.Split(os.Getenv("CARGO_TEST_REQUIRE"), ","), what) {
		t.Fatalf("%s is required: %v", what, missing)
	}
	t.Skipf("no %s here: %v", what, missing)
}

// engines runs test once for each engine.
func engines(t *testing.T, test func(t *testing.T, engine string)) {
	for engine, socket := range map[string]string{"containerd": defaultContainerd, "docker": strings.TrimPrefix(defaultDocker, "unix://")} {
		t.Run(engine, func(t *testing.T) {
			conn, err := net.Dial("unix", socket)
			require(t, engine, err)
			_ = conn.Close()
			test(t, engine)
		})
	}
}

// builderImage is the archive that `make builder-image` makes.
func builderImage(t *testing.T) string {
	path, err := filepath.Abs("../../bin/builder.tar")
	if err == nil {
		_, err = os.Stat(path)
	}
	require(t, "builder-image", err)
	return path
}

// newServer starts a server on a data directory, with host as the remote
// git.test, and waits until it is ready. It prepares no standard library and
// waits for no build at its end unless args say so. At the end of the test it is stopped, and everything of it is gone.
func newServer(t *testing.T, engine, data string, host *gitsrctest.Host, args ...string) *server {
	t.Helper()
	s := &server{t: t, args: append([]string{"cargo", "serve",
		"--executor", engine, "--data-dir", data, "--image", builderImage(t), "--remote", "git.test=" + host.URL}, args...)}
	for flag, value := range map[string]string{"--prepare": "none", "--grace": "1s"} {
		if !slices.Contains(args, flag) {
			s.args = append(s.args, flag, value)
		}
	}
	s.start()
	t.Cleanup(func() {
		s.stop()
		if t.Failed() {
			t.Logf("the server's log:\n%s", s.stderr)
		}
	})
	return s
}

// start starts the process and waits until it is ready.
func (s *server) start() {
	s.t.Helper()
	s.launch()
	until(s.t, "the server is ready", func() bool {
		if s.cmd.Process.Signal(syscall.Signal(0)) != nil {
			s.t.Fatalf("the server is gone:\n%s", s.stderr)
		}
		resp, err := http.Get(s.url + "/readyz")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// launch starts the process on a free port.
func (s *server) launch() {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	s.url = "http://" + address
	s.stderr = &output{}
	s.cmd = &exec.Cmd{Path: self, Args: append(slices.Clone(s.args), "--listen", address), Stderr: s.stderr, Env: os.Environ()}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
}

// kill ends the process with SIGKILL.
func (s *server) kill() {
	if s.cmd.ProcessState == nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	}
}

// stop ends the process with SIGTERM, if it has not ended, and returns its
// exit status.
func (s *server) stop() int {
	if s.cmd.ProcessState == nil {
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		_ = s.cmd.Wait()
	}
	return s.cmd.ProcessState.ExitCode()
}

// until polls ok until it holds.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v until %s", patience, what)
		}
	}
}

// A reply is an answer whose body has been read.
type reply struct {
	*http.Response
	body []byte
}

// do sends a request with a token, "" for none.
func (s *server) do(method, path, token string) reply {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "token "+token)
	}
	return s.send(req)
}

// send sends a request and reads the answer.
func (s *server) send(req *http.Request) reply {
	s.t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return reply{resp, body}
}

// post asks for a build and returns its id.
func (s *server) post(path, token string) build.ID {
	s.t.Helper()
	return accepted(s.t, s.do(http.MethodPost, path, token))
}

// accepted is the id of the build that the answer to a POST names.
func accepted(t *testing.T, r reply) build.ID {
	t.Helper()
	var body struct {
		ID build.ID `json:"build_id"`
	}
	if err := json.Unmarshal(r.body, &body); err != nil || r.StatusCode != http.StatusAccepted || !body.ID.Valid() {
		t.Fatalf("POST %s = %s %s", r.Request.URL.Path, r.Status, r.body)
	}
	return body.ID
}

// record is the record of a build.
func (s *server) record(id build.ID, token string) build.Build {
	s.t.Helper()
	r := s.do(http.MethodGet, "/builds/"+string(id), token)
	var b build.Build
	if err := json.Unmarshal(r.body, &b); err != nil || r.StatusCode != http.StatusOK {
		s.t.Fatalf("GET /builds/%s = %s %s", id, r.Status, r.body)
	}
	return b
}

// ended follows the build's log to its end and returns its record and the log.
func (s *server) ended(id build.ID, token string) (build.Build, string) {
	s.t.Helper()
	r := s.do(http.MethodGet, "/builds/"+string(id)+"/logs?follow=1", token)
	if r.StatusCode != http.StatusOK {
		s.t.Fatalf("logs of %s = %s %s", id, r.Status, r.body)
	}
	b := s.record(id, token)
	if !b.State.Ended() {
		s.t.Fatalf("the log of %s has ended, its state is %s", id, b.State)
	}
	return b, string(r.body)
}

// want fails the test unless the build ended as stated.
func (s *server) want(id build.ID, token string, state build.State, reason build.Reason) (build.Build, string) {
	s.t.Helper()
	b, log := s.ended(id, token)
	if b.State != state || b.Reason != reason {
		s.t.Fatalf("build %s is %s %s (%s), want %s %s; its log:\n%s", id, b.State, b.Reason, b.Message, state, reason, log)
	}
	return b, log
}

// download unpacks the artifact at path into a directory and returns that.
func (s *server) download(path, token string) string {
	s.t.Helper()
	r := s.do(http.MethodGet, path, token)
	if r.StatusCode != http.StatusOK {
		s.t.Fatalf("GET %s = %s %s", path, r.Status, r.body)
	}
	dir := s.t.TempDir()
	tar := exec.CommandContext(s.t.Context(), "tar", "xz", "-C", dir)
	tar.Stdin = bytes.NewReader(r.body)
	if out, err := tar.CombinedOutput(); err != nil {
		s.t.Fatalf("unpack %s: %v %s", path, err, out)
	}
	return dir
}

// hello is a program that says what was stamped into it, and compiles quickly.
func hello(says string) map[string]string {
	return map[string]string{
		"go.mod":  "module git.test/me/hello\n\ngo 1.22\n",
		"main.go": fmt.Sprintf("package main\n\nvar version, commit, date string\n\nfunc main() { println(%q, version, commit, date) }\n", says),
	}
}
