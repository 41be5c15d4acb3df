package executortest

import (
	"errors"
	"os/exec"
	"strconv"
	"strings"

	"github.com/monochromegane/cargo/executor"
)

// eat is a command that wants four times the memory that small gives it.
const eat = "probe eat 256"

var small = executor.Limits{Memory: 64 << 20, Pids: 64}

func testOutOfMemory(r *run) {
	step := r.command(strings.Fields(eat)...)
	step.Limits = small
	_, _, err := r.run(r.Context(), step)
	r.exceeds(err, executor.ErrOutOfMemory)
	r.killed(err)
}

// killed checks that the command's status is that of SIGKILL.
func (r *run) killed(err error) {
	r.Helper()
	if exit, ok := errors.AsType[*executor.ExitError](err); ok && exit.Code != 137 {
		r.Errorf("exit status %d, want 137", exit.Code)
	}
}

// As make does: its own status says nothing of the kill.
func testOutOfMemoryChild(r *run) {
	step := r.step(eat + " || exit 2")
	step.Limits = small
	_, _, err := r.run(r.Context(), step)
	r.exceeds(err, executor.ErrOutOfMemory)
	if exit, ok := errors.AsType[*executor.ExitError](err); ok && exit.Code != 2 {
		r.Errorf("exit status %d, want 2", exit.Code)
	}
	// The same limits and status without the kill.
	step = r.step("exit 2")
	step.Limits = small
	_, _, err = r.run(r.Context(), step)
	r.exits(err, 2)
}

func testOutOfMemorySurvived(r *run) {
	step := r.step(eat + " || echo killed; exit 0")
	step.Limits = small
	if out := r.output(step); out != "killed\n" {
		r.Errorf("stdout %q: the command was not killed", out)
	}
}

func testForkBomb(r *run) {
	step := r.step("bomb() { bomb | bomb & bomb; }; bomb")
	step.Limits = small
	step.Limits.Memory = 256 << 20
	_, _, err := r.run(r.Context(), step)
	r.exceeds(err, executor.ErrTooManyProcesses)
	if out, err := exec.Command("echo", "alive").Output(); err != nil || string(out) != "alive\n" {
		r.Errorf("the host: %q, %v", out, err)
	}
}

// The default holds where the step says nothing.
func testTooManyProcesses(r *run) {
	_, errs, err := r.run(r.Context(), r.command("probe", "fork", strconv.FormatInt(executor.DefaultLimits.Pids, 10)))
	r.exceeds(err, executor.ErrTooManyProcesses)
	if errs == "" {
		r.Error("stderr is empty: want what refused the process")
	}
}

func testTooManyProcessesSurvived(r *run) {
	step := r.step("probe fork 200; exit 0")
	step.Limits = small
	step.Limits.Memory = 256 << 20
	if out := r.output(step); strings.Contains(out, "forked") {
		r.Errorf("stdout %q: nothing was refused", out)
	}
}

func testCPUs(r *run) {
	step := r.command("probe", "spin", "1000")
	step.Limits.CPUs = 0.2
	ms, err := strconv.Atoi(strings.TrimSpace(r.output(step)))
	if err != nil || ms > 500 {
		r.Errorf("a second of 0.2 cores gave %d ms, %v", ms, err)
	}
}

func testTmpBounded(r *run) {
	step := r.step("head -c 1000000 /dev/zero >/tmp/fits && echo fits; head -c 9000000 /dev/zero >/tmp/large || echo full; df -k /tmp | tail -n 1")
	step.Limits.Tmp = 4 << 20
	out := r.output(step)
	if !strings.HasPrefix(out, "fits\nfull\n") {
		r.Errorf("stdout %q", out)
	}
	f := strings.Fields(r.output(r.step("df -k /tmp | tail -n 1")))
	if want := strconv.FormatInt(executor.DefaultLimits.Tmp>>10, 10); len(f) < 2 || f[1] != want {
		r.Errorf("/tmp is %q by default, want %s KiB", f, want)
	}
}
