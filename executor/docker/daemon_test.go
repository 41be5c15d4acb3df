package docker_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/docker"
	"github.com/monochromegane/cargo/executor/executortest"
)

// What happens to the daemon under a step is nothing that the step did.
func TestDaemonDies(t *testing.T) {
	requireDocker(t)
	d := newDaemon(t)
	e := newExecutor(t, docker.Options{Owner: "dies", Host: d.host})
	img, err := e.EnsureImage(t.Context(), executortest.Archive(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	// A daemon that stops or starts terminates its containers; the command would end as if by itself.
	const untilTerm = "echo running; while :; do sleep 0.1; done"
	restart := func(s syscall.Signal) func(*testing.T) {
		return func(t *testing.T) {
			d.docker.end(t, s)
			d.startDocker(t)
		}
	}
	for _, tc := range []struct {
		name   string
		script string
		harm   func(t *testing.T)
		code   int // the command's own that must be told, 0 if there is none
	}{
		{"stopped, command succeeds", "trap 'exit 0' TERM; " + untilTerm, restart(syscall.SIGTERM), 0},
		{"stopped, command fails", "trap 'exit 3' TERM; " + untilTerm, restart(syscall.SIGTERM), 0},
		{"killed", "trap 'exit 3' TERM; " + untilTerm, restart(syscall.SIGKILL), 0},
		{"containerd killed", "echo running; sleep 3; exit 7", func(t *testing.T) {
			d.containerd.end(t, syscall.SIGKILL)
			d.startContainerd(t)
		}, 7},
	} {
		t.Run(tc.name, func(t *testing.T) {
			running := make(chan struct{})
			var once sync.Once
			result := make(chan error, 1)
			go func() {
				result <- e.Run(t.Context(), executor.Step{
					ID: "step", Image: img.Ref, Args: []string{"sh", "-c", tc.script},
					Stdout: writerFunc(func(p []byte) (int, error) { once.Do(func() { close(running) }); return len(p), nil }),
				})
			}()
			select {
			case <-running:
			case err := <-result:
				t.Fatalf("Run = %v before any harm was done", err)
			}
			tc.harm(t)
			err := <-result
			exit, ok := errors.AsType[*executor.ExitError](err)
			switch {
			case tc.code != 0 && (!ok || exit.Code != tc.code):
				t.Errorf("Run = %v, want exit status %d", err, tc.code)
			case tc.code == 0 && (ok || err == nil):
				t.Errorf("Run = %v, want a fault of the runtime", err)
			}
			if n, err := e.Reap(t.Context()); n != 0 || err != nil {
				t.Errorf("Reap = %d, %v: Run has left a container behind", n, err)
			}
		})
	}
}

// A daemon is a private one, so that it can be killed.
type daemon struct {
	dir, host          string
	containerd, docker *process
}

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	for _, program := range []string{"containerd", "dockerd"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs its own daemon: %v", err)
		}
	}
	// Not t.TempDir: sockets have short names, and the daemon's mounts may be slow to go.
	dir, err := os.MkdirTemp("", "cargo-docker-") //nolint:usetesting // for the two reasons above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unmountAll(t, dir) // a daemon that was killed leaves some
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	d := &daemon{dir: dir, host: "unix://" + filepath.Join(dir, "docker.sock")}
	d.startContainerd(t)
	d.startDocker(t)
	t.Cleanup(func() { d.docker.end(t, syscall.SIGTERM); d.containerd.end(t, syscall.SIGTERM) })
	return d
}

func (d *daemon) startContainerd(t *testing.T) {
	t.Helper()
	d.containerd = start(t, filepath.Join(d.dir, "containerd.log"), "containerd",
		"--config", "/dev/null",
		"--root", filepath.Join(d.dir, "containerd"),
		"--state", filepath.Join(d.dir, "containerd-state"),
		"--address", filepath.Join(d.dir, "containerd.sock"))
}

// startDocker returns when the daemon answers.
func (d *daemon) startDocker(t *testing.T) {
	t.Helper()
	d.docker = start(t, filepath.Join(d.dir, "dockerd.log"), "dockerd",
		"--host", d.host,
		"--containerd", filepath.Join(d.dir, "containerd.sock"),
		"--data-root", filepath.Join(d.dir, "data"),
		"--exec-root", filepath.Join(d.dir, "exec"),
		"--pidfile", filepath.Join(d.dir, "docker.pid"),
		"--bridge", "none", "--iptables=false", "--ip-forward=false", "--ip-masq=false")
	e, err := docker.New(docker.Options{Owner: "wait", Host: d.host})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if _, err = e.Ping(t.Context()); err == nil {
			return
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(filepath.Join(d.dir, "dockerd.log"))
			t.Fatalf("dockerd does not answer: %v\n%s", err, bytes.TrimSpace(log))
		}
	}
}

func unmountAll(t *testing.T, dir string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			if err := unix.Unmount(f[4], unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
				t.Errorf("unmount %s: %v", f[4], err)
			}
		}
	}
}

type process struct{ cmd *exec.Cmd }

func start(t *testing.T, log string, args ...string) *process {
	t.Helper()
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", strings.Join(args, " "), err)
	}
	return &process{cmd}
}

// end signals the process and waits for its end.
func (p *process) end(t *testing.T, s os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Error(err)
	}
	_ = p.cmd.Wait() // its status is that of the signal
}
