package worker_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/executortest"
	"github.com/monochromegane/cargo/modproxy"
	"github.com/monochromegane/cargo/worker"
)

// breakDoor gives the door of the build that runs a fault.
func (r *rig) breakDoor(fault error) {
	r.metrics.mu.Lock()
	defer r.metrics.mu.Unlock()
	r.doors[len(r.doors)-1].fault = fault
}

// openProxy has real doors to upstream, with modules kept in dir.
func (r *rig) openProxy(upstream, dir string) {
	r.Helper()
	p, err := modproxy.New(modproxy.Options{GOPROXY: upstream, GOSUMDB: "off", Dir: dir})
	r.must(err)
	r.opts.OpenDoor = func() worker.Door { return p.Door(modproxy.Limits{}) }
}

// ask is what a command asks its door for.
func ask(ctx context.Context, p executortest.Process, path string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.DoorAddr+path, nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// A command that fails while its door is broken has the build handed back.
func TestDoorThatBreaks(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		err  error
		says string
	}{
		"descriptors":    {syscall.EMFILE, "The server has too many files open."},
		"full disk":      {syscall.ENOSPC, "The server has no room left on its disk."},
		"quota":          {syscall.EDQUOT, "The server has no room left on its disk."},
		"read-only disk": {syscall.EROFS, "The server's disk cannot be written."},
		"broken disk":    {syscall.EIO, "The server's disk is broken."},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var calls atomic.Int32
			r := newRig(t, hello, nil)
			r.fake.Script = func(ctx context.Context, p executortest.Process) error {
				if calls.Add(1) > 1 {
					return makes("/go/out/app")(ctx, p)
				}
				r.breakDoor(&modproxy.DoorError{Module: "example.com/m", Err: fmt.Errorf("detail: %w", tc.err)})
				return &executor.ExitError{Code: 1}
			}
			b, log := r.run()
			if b.State != build.Succeeded || b.Attempt != 2 {
				t.Fatalf("record %+v", b)
			}
			if said := log.find(tc.says + " Your build will start again."); len(said) != 1 || said[0]["state"] != "queued" {
				t.Errorf("log: %q", log.messages())
			}
			if said := r.operator.String(); strings.Count(said, "detail: ") != 1 || strings.Count(said, "claims nothing for a while") != 1 {
				t.Error("the operator is not told once what broke, and that builds wait")
			}
		})
	}
}

// Doors whose cache cannot be written, and then can.
func TestRealDoorWithoutDisk(t *testing.T) {
	t.Parallel()
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"Version":"v1.0.0"}`)
	}))
	t.Cleanup(upstream.Close)
	for name, tc := range map[string]struct {
		spoil, mend func(dir string) error
		says        string
	}{
		"full": {
			func(dir string) error {
				if err := os.WriteFile(filepath.Join(dir, "filler"), make([]byte, 2<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
					return fmt.Errorf("it holds more than it should: %w", err)
				}
				return nil
			},
			func(dir string) error { return os.Remove(filepath.Join(dir, "filler")) },
			"The server has no room left on its disk.",
		},
		"read-only": {
			func(dir string) error {
				return syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, "")
			},
			func(dir string) error { return syscall.Mount("", dir, "", syscall.MS_REMOUNT, "") },
			"The server's disk cannot be written.",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			var calls atomic.Int32
			r := newRig(t, hello, func(ctx context.Context, p executortest.Process) error {
				if calls.Add(1) > 1 {
					return makes("/go/out/app")(ctx, p)
				}
				if err := tc.spoil(dir); err != nil {
					return err
				}
				code, err := ask(ctx, p, "/example.com/m/@v/v1.0.0.zip")
				if code != http.StatusInternalServerError || err != nil {
					t.Errorf("%d, %v", code, err)
				}
				return errors.Join(tc.mend(dir), &executor.ExitError{Code: 1})
			})
			if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
				t.Skipf("cannot mount a small disk: %v", err)
			}
			t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
			r.openProxy(upstream.URL, dir)
			b, log := r.run()
			if b.State != build.Succeeded || b.Attempt != 2 {
				t.Fatalf("record %+v", b)
			}
			if len(log.find(tc.says+" Your build will start again.")) != 1 {
				t.Errorf("log: %q", log.messages())
			}
		})
	}
}

// A door that stays broken, or that has a build say so for ever, ends it at last.
func TestDoorThatStaysBroken(t *testing.T) {
	t.Parallel()
	r := newRig(t, hello, nil)
	r.fake.Script = func(context.Context, executortest.Process) error {
		r.breakDoor(&modproxy.DoorError{Module: "example.com/m", Err: syscall.EROFS})
		return &executor.ExitError{Code: 1}
	}
	b, sealed := r.request("linux/amd64", "")
	b.AcceptedAt = time.Now().Add(-16 * time.Minute)
	b = r.enqueue(b, sealed)
	for range 19 {
		c, err := r.queue.Claim(t.Context())
		r.must(err)
		r.must(c.Requeue(t.Context()))
	}
	b = r.work(b)
	r.checkFailed(b, build.ReasonInternal, "The server's disk cannot be written. That was so in the last of 20 attempts")
	if b.ExitCode != nil {
		t.Errorf("exit status %d", *b.ExitCode)
	}
}

// A fault of ours that no ailment is known for is tried three times.
func TestDoorThatBreaksSomehow(t *testing.T) {
	t.Parallel()
	r := newRig(t, hello, nil)
	r.fake.Script = func(context.Context, executortest.Process) error {
		r.breakDoor(&modproxy.DoorError{Module: "example.com/m", Err: syscall.EACCES})
		return &executor.ExitError{Code: 1}
	}
	b, log := r.run()
	r.checkFailed(b, build.ReasonInternal, "Something broke on our side, not yours.")
	if n := len(log.find("Something broke on our side, not yours. Trying again.")); n != 2 {
		t.Errorf("log: %q", log.messages())
	}
}

// What a build did is not put on its door.
func TestFaultThatExplainsNothing(t *testing.T) {
	t.Parallel()
	fault := &modproxy.DoorError{Module: "example.com/m", Err: syscall.EMFILE}
	twoSteps := map[string]string{"main.go": hello["main.go"]} // without go.mod
	for name, tc := range map[string]struct {
		files  map[string]string
		play   func(r *rig, step int) script
		reason build.Reason // "" if it succeeds
	}{
		"success": {hello, func(r *rig, _ int) script {
			r.breakDoor(fault)
			return makes("/go/out/app")
		}, ""},
		"memory": {hello, func(r *rig, _ int) script {
			r.breakDoor(fault)
			return hitsLimit(executor.ErrOutOfMemory)
		}, build.ReasonOutOfMemory},
		"processes": {hello, func(r *rig, _ int) script {
			r.breakDoor(fault)
			return hitsLimit(executor.ErrTooManyProcesses)
		}, build.ReasonTooManyProcesses},
		"disk of the build": {hello, func(r *rig, _ int) script {
			r.breakDoor(fault)
			return func(_ context.Context, p executortest.Process) error {
				return errors.Join(fill(p), &executor.ExitError{Code: 1})
			}
		}, build.ReasonDiskFull},
		"another step": {twoSteps, func(r *rig, step int) script {
			if step == 3 {
				return exits(1)
			}
			r.breakDoor(fault)
			return func(context.Context, executortest.Process) error { return nil }
		}, build.ReasonExit},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, tc.files, nil)
			if tc.reason == build.ReasonDiskFull {
				r.openLoop()
			}
			var step atomic.Int32
			r.fake.Script = func(ctx context.Context, p executortest.Process) error {
				return tc.play(r, int(step.Add(1)))(ctx, p)
			}
			b, log := r.run()
			if tc.reason != "" {
				r.checkFailed(b, tc.reason, "")
			} else if b.State != build.Succeeded {
				t.Errorf("record %+v", b)
			}
			if b.Attempt != 1 || slices.ContainsFunc(log.messages(), func(m string) bool { return strings.Contains(m, "Trying again") }) {
				t.Errorf("it was tried again: %q", log.messages())
			}
		})
	}
}

// A module proxy that does not answer is a forge that does not; one that has
// not what is asked for is the build's affair.
func TestUpstreamOfTheDoor(t *testing.T) {
	t.Parallel()
	const sentence = "The module proxy upstream of the server did not answer for example.com/m"
	for name, tc := range map[string]struct {
		code    int // of the upstream; 0: nobody listens
		reason  build.Reason
		message string
		tries   int
	}{
		"dead":         {0, build.ReasonSource, sentence + "; try again later.", 3},
		"503":          {http.StatusServiceUnavailable, build.ReasonSource, sentence + "; try again later.", 3},
		"no such":      {http.StatusNotFound, build.ReasonExit, "The build failed with exit status 1", 1},
		"not for us":   {http.StatusForbidden, build.ReasonExit, "The build failed with exit status 1", 1},
		"all is there": {http.StatusOK, build.ReasonExit, "The build failed with exit status 1", 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(tc.code) }))
			defer upstream.Close()
			if tc.code == 0 {
				upstream.Close()
			}
			var tries atomic.Int32
			r := newRig(t, hello, func(ctx context.Context, p executortest.Process) error {
				tries.Add(1)
				code, err := ask(ctx, p, "/example.com/m/@v/list")
				if err != nil || code == http.StatusOK != (tc.code == http.StatusOK) {
					t.Errorf("%d, %v", code, err)
				}
				return &executor.ExitError{Code: 1}
			})
			r.openProxy(upstream.URL, t.TempDir())
			b, log := r.run()
			r.checkFailed(b, tc.reason, tc.message)
			if n := int(tries.Load()); n != tc.tries || b.Attempt != 1 {
				t.Errorf("%d tries in %d attempts", n, b.Attempt)
			}
			if n := len(log.find(sentence + ". Trying again.")); n != tc.tries-1 {
				t.Errorf("log: %q", log.messages())
			}
			if strings.Contains(r.operator.String(), "level=ERROR") {
				t.Error("the operator is told of an error that is none of this server's")
			}
		})
	}
}
