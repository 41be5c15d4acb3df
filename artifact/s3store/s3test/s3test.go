// Package s3test runs a real S3 server for tests: versitygw on a directory.
package s3test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A Server is an S3 server on loopback. It ends with its test.
type Server struct {
	Endpoint       string // host:port, without TLS
	Access, Secret string
	Bucket         string // exists, and is empty at the start
	Dir            string // bucket/key below it is an object's content

	t       testing.TB
	program string
	process *exec.Cmd
	ended   chan struct{}
	output  bytes.Buffer
}

// patience is how long a server may take to answer or to end.
const patience = 30 * time.Second

// Start starts a server. Without the program versitygw the test is skipped, or
// fails where CARGO_TEST_REQUIRE names versitygw.
func Start(t testing.TB) *Server {
	t.Helper()
	program, err := find("versitygw")
	if err != nil {
		if slices.Contains(strings.Split(os.Getenv("CARGO_TEST_REQUIRE"), ","), "versitygw") {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	s := &Server{
		Access: "access-of-tests", Secret: "secret-of-tests", Bucket: "cargo-tests", Dir: filepath.Join(t.TempDir(), "buckets"),
		t: t, program: program,
	}
	if err := os.MkdirAll(filepath.Join(s.Dir, s.Bucket), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	const attempts = 5 // the port that is free now may be taken a moment later
	for range attempts {
		s.Endpoint = freeAddress(t)
		if err = s.start(); err == nil {
			return s
		}
	}
	t.Fatal(err)
	return nil
}

// find looks for a program in bin at the root of the project, and in PATH.
func find(program string) (string, error) {
	dir, err := os.Getwd()
	for ; err == nil; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			if p, err := exec.LookPath(filepath.Join(dir, "bin", program)); err == nil {
				return p, nil
			}
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	p, err := exec.LookPath(program)
	if err != nil {
		return "", fmt.Errorf("%w; `make bin/%s` makes it", err, program)
	}
	return p, nil
}

func freeAddress(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// start starts the process and waits until it answers.
func (s *Server) start() error {
	s.output.Reset()
	s.process = exec.Command(s.program, "--port", s.Endpoint, "--quiet", "--health", "/health", "posix", s.Dir)
	s.process.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+s.Access, "ROOT_SECRET_KEY="+s.Secret)
	s.process.Dir = filepath.Dir(s.Dir)
	s.process.Stdout, s.process.Stderr = &s.output, &s.output
	s.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // also where the test is killed
	started, ended := make(chan error), make(chan struct{})
	s.ended = ended
	go func(p *exec.Cmd) { // until the process has ended: Kill waits for it
		defer close(ended)
		runtime.LockOSThread() // that signal comes when the thread ends, not the process
		defer runtime.UnlockOSThread()
		err := p.Start()
		started <- err
		if err == nil {
			_ = p.Wait()
		}
	}(s.process)
	if err := <-started; err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		select {
		case <-ended:
			return fmt.Errorf("versitygw has ended: %s", s.output.String())
		case <-ctx.Done():
			s.Kill()
			return errors.New("versitygw does not answer")
		case <-time.After(10 * time.Millisecond):
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Endpoint+"/health", nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
	}
}

// Kill ends the server as kill -9 does, and returns when it is gone. It may be
// called again.
func (s *Server) Kill() {
	if s.process == nil || s.process.Process == nil {
		return
	}
	_ = s.process.Process.Kill()
	<-s.ended
}

// Restart starts the server again on the same address, with what it held.
func (s *Server) Restart() {
	s.t.Helper()
	s.Kill()
	if err := s.start(); err != nil {
		s.t.Fatal(err)
	}
}

// Pause stops the server as SIGSTOP does: connections stay, and nothing answers.
func (s *Server) Pause() { s.signal(syscall.SIGSTOP) }

// Resume lets a paused server go on.
func (s *Server) Resume() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.process.Process.Signal(sig); err != nil {
		s.t.Error(err)
	}
}

// PID is that of the server.
func (s *Server) PID() int { return s.process.Process.Pid }

// Objects are the keys that the bucket holds, sorted. What is being uploaded in
// parts is not among them.
func (s *Server) Objects() []string {
	s.t.Helper()
	var keys []string
	root := filepath.Join(s.Dir, s.Bucket)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if d.IsDir() && d.Name() == scratch {
			return fs.SkipDir
		}
		if !d.IsDir() {
			key, err := filepath.Rel(root, path)
			keys = append(keys, key)
			return err
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return keys
}

// scratch is where versitygw keeps what is not an object yet.
const scratch = ".sgwtmp"

// Uploads are the files of uploads in parts that have not been completed.
func (s *Server) Uploads() []string {
	s.t.Helper()
	var files []string
	err := filepath.WalkDir(filepath.Join(s.Dir, s.Bucket, scratch, "multipart"), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && !d.IsDir() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return files
}
