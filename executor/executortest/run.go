package executortest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/monochromegane/cargo/executor"
)

// A run is one subtest at work.
type run struct {
	*testing.T
	Harness
	owner      string
	newHarness func(t *testing.T, owner string) Harness
}

// newOwner returns a name that no other test on this machine has.
func newOwner() string { return "test-" + strings.ToLower(rand.Text()) }

// step is a step that runs a shell script.
func (r *run) step(script string) executor.Step { return r.command("sh", "-c", script) }

// command is a step that runs one command.
func (r *run) command(args ...string) executor.Step {
	return executor.Step{ID: "step-" + strings.ToLower(rand.Text()), Image: r.Image.Ref, Args: args}
}

// run runs the step and returns what it wrote.
func (r *run) run(ctx context.Context, step executor.Step) (stdout, stderr string, err error) {
	r.Helper()
	var out, errs bytes.Buffer
	step.Stdout, step.Stderr = &out, &errs
	err = r.Executor.Run(ctx, step)
	return out.String(), errs.String(), err
}

// output runs a step that must succeed and returns its standard output.
func (r *run) output(step executor.Step) string {
	r.Helper()
	out, errs, err := r.run(r.Context(), step)
	if err != nil {
		r.Fatalf("Run(%q) = %v, stdout %q, stderr %q", step.Args, err, clip(out), clip(errs))
	}
	return out
}

// exits checks that err is a command's own exit status, and no other error.
func (r *run) exits(err error, code int) {
	r.Helper()
	exit, ok := errors.AsType[*executor.ExitError](err)
	if !ok || exit.Code != code || errors.Is(err, executor.ErrOutOfMemory) || errors.Is(err, executor.ErrTooManyProcesses) {
		r.Errorf("Run = %v, want an ExitError of %d alone", err, code)
	}
}

// exceeds checks that err says that a limit was hit by a command that failed.
func (r *run) exceeds(err, limit error) {
	r.Helper()
	exit, ok := errors.AsType[*executor.ExitError](err)
	if !ok || exit.Code == 0 || !errors.Is(err, limit) {
		r.Errorf("Run = %v, want %v with an ExitError", err, limit)
	}
}

// fault checks that err is the runtime's fault, not the command's.
func (r *run) fault(err error) {
	r.Helper()
	if _, ok := errors.AsType[*executor.ExitError](err); err == nil || ok {
		r.Errorf("Run = %v, want a fault of the runtime", err)
	}
}

func clip(s string) string {
	const most = 2000
	if len(s) > most {
		return fmt.Sprintf("%s … (%d bytes)", s[:most], len(s))
	}
	return s
}

// start starts the step and returns when it has written text. wait waits for
// Run to return and returns the standard output.
func (r *run) start(ctx context.Context, step executor.Step, text string) (wait func() (stdout string, err error)) {
	r.Helper()
	w := newWatcher(text)
	step.Stdout = w
	ended := make(chan struct{})
	var err error
	go func() {
		defer close(ended)
		err = r.Executor.Run(ctx, step)
	}()
	r.Cleanup(func() { <-ended }) // also where the test fails: its context has ended by then
	select {
	case <-w.seen:
	case <-ended:
		r.Fatalf("Run = %v before the step wrote %q; stdout %q", err, text, w)
	}
	return func() (string, error) { <-ended; return w.String(), err }
}

// writableDir is an empty directory that a step can write to.
func (r *run) writableDir() string {
	r.Helper()
	dir := r.TempDir()
	if os.Getuid() == 0 {
		if err := os.Chown(dir, executor.HostUID, executor.HostUID); err != nil {
			r.Fatal(err)
		}
	}
	return dir
}

func mountAt(target, source string, readOnly bool) []executor.Mount {
	return []executor.Mount{{Source: source, Target: target, Writable: !readOnly}}
}
