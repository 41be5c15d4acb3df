package containerd_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/containerd"
)

// A server is a containerd of our own, to be killed and started again.
type server struct {
	address, state, config string
	cmd                    *exec.Cmd
}

func newServer(t *testing.T) *server {
	t.Helper()
	bin, err := exec.LookPath("containerd")
	if err != nil {
		need(t, err)
	}
	if os.Getuid() != 0 {
		need(t, errors.New("needs root to start a containerd"))
	}
	dir := t.TempDir()
	// The root of a user namespace must get through to the containers' roots.
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	s := &server{
		address: filepath.Join(dir, "state", "containerd.sock"),
		state:   filepath.Join(dir, "state"),
		config:  filepath.Join(dir, "config.toml"),
	}
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n",
		filepath.Join(dir, "root"), s.state, s.address)
	if err := os.WriteFile(s.config, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	s.start(t, bin)
	t.Cleanup(func() { s.kill(t) })
	return s
}

func (s *server) start(t *testing.T, bin string) {
	t.Helper()
	s.cmd = exec.Command(bin, "--config", s.config, "--log-level", "error")
	s.cmd.Stderr = t.Output()
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	e := open(t, containerd.Options{Address: s.address})
	eventually(t, func() bool { _, err := e.Ping(t.Context()); return err == nil })
}

// kill gives containerd no chance to say good-bye.
func (s *server) kill(t *testing.T) {
	t.Helper()
	if s.cmd.ProcessState != nil {
		return
	}
	if err := s.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	_ = s.cmd.Wait()
}

func (s *server) restart(t *testing.T) {
	t.Helper()
	s.kill(t)
	s.start(t, s.cmd.Path)
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("did not happen in a minute")
		}
	}
}

// A lines is an output that can be looked at while it grows.
type lines struct {
	mu  sync.Mutex
	buf strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// containerd is killed under a running step, three times over: the step must
// go on as if nothing had happened.
func TestRestart(t *testing.T) {
	s := newServer(t)
	owner := "restart-" + rand.Text() // what an earlier run left must not matter
	e, img := ready(t, containerd.Options{Address: s.address, Owner: owner})
	const script = "echo up; while ! test -e /go/end; do sleep 0.02; done; seq 1 1000; exit 7"

	for _, tc := range []struct {
		name string
		at   func(t *testing.T, end func(), cancel func())
		want string // of the error
	}{
		{"the command ends after the restart", func(t *testing.T, end, _ func()) { s.restart(t); end() }, "exit status 7"},
		{"the command ends while containerd is away", func(t *testing.T, end, _ func()) { s.kill(t); end(); s.start(t, s.cmd.Path) }, "exit status 7"},
		{"the step is canceled while containerd is away", func(t *testing.T, _, cancel func()) { s.kill(t); cancel(); s.start(t, s.cmd.Path) }, "canceled: enough"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			var out lines
			step := executor.Step{
				ID: "restart", Image: img.Ref, Args: []string{"sh", "-c", script},
				Mounts: []executor.Mount{{Source: dir, Target: "/go"}}, Stdout: &out,
			}
			done := make(chan error, 1)
			go func() { done <- e.Run(ctx, step) }()
			eventually(t, func() bool {
				select {
				case err := <-done:
					t.Fatalf("Run = %v before the restart, output %q", err, &out)
				default:
				}
				return out.String() == "up\n"
			})
			tc.at(t,
				func() {
					if err := os.WriteFile(filepath.Join(dir, "end"), nil, 0o644); err != nil {
						t.Error(err)
					}
					// The output does not wait for containerd.
					eventually(t, func() bool { return strings.HasSuffix(out.String(), "\n1000\n") })
				},
				func() { cancel(errors.New("enough")) })
			err := <-done
			if err == nil || err.Error() != tc.want {
				t.Errorf("Run = %v, want %s", err, tc.want)
			}
			if left := leftovers(t, s.address, s.state, owner); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}

	s.kill(t)
	if _, err := e.Ping(t.Context()); !errors.Is(err, executor.ErrUnavailable) {
		t.Errorf("Ping = %v, want %v", err, executor.ErrUnavailable)
	}
	err := e.Run(t.Context(), executor.Step{ID: "away", Image: img.Ref, Args: []string{"true"}})
	if !errors.Is(err, executor.ErrUnavailable) || !strings.Contains(err.Error(), s.address) {
		t.Errorf("Run = %v, want %v at %s", err, executor.ErrUnavailable, s.address)
	}
	if _, err := e.Reap(t.Context()); !errors.Is(err, executor.ErrUnavailable) {
		t.Errorf("Reap = %v, want %v", err, executor.ErrUnavailable)
	}
}
