package executortest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/monochromegane/cargo/executor"
)

// slack is what a busy machine may need beyond what the contract says.
const slack = 30 * time.Second

var errGone = errors.New("the client went away")

// canceledBy checks that err is the end of a context, and nothing else.
func (r *run) canceledBy(err, cause error) {
	r.Helper()
	if _, ok := errors.AsType[*executor.ExitError](err); ok || !errors.Is(err, cause) {
		r.Errorf("Run = %v, want the cause %v", err, cause)
	}
}

// A command that cleans up on SIGTERM and exits with 0 was canceled all the same.
func testCancelTerm(r *run) {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	wait := r.start(ctx, r.step("trap 'echo got TERM; exit 0' TERM; echo ready; while :; do sleep 0.05; done"), "ready\n")
	cancel(errGone)
	out, err := wait()
	r.canceledBy(err, errGone)
	if !strings.HasSuffix(out, "got TERM\n") {
		r.Errorf("stdout %q: SIGTERM did not arrive, or what followed did not", out)
	}
}

func testCancelKill(r *run) {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	wait := r.start(ctx, r.step("trap '' TERM; echo ready; while :; do sleep 0.05; done"), "ready\n")
	start := time.Now()
	cancel(errGone)
	_, err := wait()
	r.canceledBy(err, errGone)
	if took := time.Since(start); took < executor.Grace || took > executor.Grace+slack {
		r.Errorf("Run took %v after the cancellation, want a little more than %v", took, executor.Grace)
	}
}

func testCancelBefore(r *run) {
	ctx, cancel := context.WithCancelCause(r.Context())
	cancel(errGone)
	dir := r.writableDir()
	step := r.step("touch /go/ran")
	step.Mounts = mountAt("/go", dir, false)
	_, _, err := r.run(ctx, step)
	r.canceledBy(err, errGone)
	if _, err := os.Stat(filepath.Join(dir, "ran")); err == nil {
		r.Error("the command ran")
	}
}

// Whatever moment it is, the cause is kept and nothing is left.
func testCancelWhenever(r *run) {
	for _, after := range []time.Duration{0, 5, 20, 50, 80, 120, 180, 250} {
		ctx, cancel := context.WithCancelCause(r.Context())
		timer := time.AfterFunc(after*time.Millisecond, func() { cancel(errGone) })
		_, _, err := r.run(ctx, r.step("trap 'exit 1' TERM; while :; do sleep 0.02; done"))
		timer.Stop()
		r.canceledBy(err, errGone)
	}
}

func testDeadline(r *run) {
	errLate := errors.New("the build took too long")
	ctx, cancel := context.WithTimeoutCause(r.Context(), time.Second, errLate)
	defer cancel()
	start := time.Now()
	_, _, err := r.run(ctx, r.step("trap 'exit 1' TERM; while :; do sleep 0.05; done"))
	r.canceledBy(err, errLate)
	if took := time.Since(start); took > time.Second+executor.Grace+slack {
		r.Errorf("Run took %v", took)
	}
}
