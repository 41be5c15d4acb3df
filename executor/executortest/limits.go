package executortest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	// The same limits without the kill.
	for _, code := range []int{0, 2} {
		step = r.step("exit " + strconv.Itoa(code))
		step.Limits = small
		check := r.limited(&step)
		if _, _, err = r.run(r.Context(), step); code != 0 {
			r.exits(err, code)
		} else if err != nil {
			r.Errorf("Run = %v", err)
		}
		check()
	}
}

func testOutOfMemorySurvived(r *run) {
	step := r.step(eat + " || echo killed; exit 0")
	step.Limits = small
	defer r.limited(&step, executor.ErrOutOfMemory)()
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
	check := r.limited(&step, executor.ErrTooManyProcesses)
	if out := r.output(step); strings.Contains(out, "forked") {
		r.Errorf("stdout %q: nothing was refused", out)
	}
	check()
	// Nobody need want to know.
	step.Limited = nil
	r.output(step)
}

// limited makes step note what it tells of limits. check compares that.
func (r *run) limited(step *executor.Step, want ...error) (check func()) {
	var got []error
	step.Limited = func(limit error) { got = append(got, limit) }
	return func() {
		r.Helper()
		if !slices.Equal(got, want) {
			r.Errorf("Limited was told %v, want %v", got, want)
		}
	}
}

// As make and go do: the first ends with a status of its own, both at once, and
// their cgroup with them.
func testTooManyProcessesChild(r *run) {
	for _, script := range []string{"probe fork 200 || exit 2", "probe threads 200", ":|:|:|:|:|:|:|:|:|:|:|: || exit 2; exit 2"} {
		step := r.step(script)
		step.Limits = executor.Limits{Pids: 10}
		check := r.limited(&step)
		for range 3 {
			_, _, err := r.run(r.Context(), step)
			r.exceeds(err, executor.ErrTooManyProcesses)
			if exit, ok := errors.AsType[*executor.ExitError](err); ok && exit.Code != 2 {
				r.Errorf("%s: exit status %d, want 2", script, exit.Code)
			}
		}
		check()
	}
}

// What ends the step is what Run returns.
func testLimitThenCancel(r *run) {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	step := r.step("trap 'exit 0' TERM; " + eat + "; echo killed; while :; do sleep 0.05; done")
	step.Limits = small
	check := r.limited(&step)
	wait := r.start(ctx, step, "killed\n")
	cancel(errGone)
	_, err := wait()
	r.canceledBy(err, errGone)
	if errors.Is(err, executor.ErrOutOfMemory) {
		r.Errorf("Run = %v", err)
	}
	check()
}

func testBackground(r *run) {
	for _, background := range []bool{false, true} {
		step := r.step("ionice -p $$; echo ready; while ! test -e /go/end; do sleep 0.05; done")
		step.Background = background
		step.Env = []string{"STEP=" + step.ID}
		dir := r.writableDir()
		step.Mounts = mountAt("/go", dir, true)
		wait := r.start(r.Context(), step, "ready\n")
		weight := r.cpuWeight(step.Env[0])
		if err := os.WriteFile(filepath.Join(dir, "end"), nil, 0o644); err != nil {
			r.Fatal(err)
		}
		out, err := wait()
		if err != nil || strings.HasPrefix(out, "idle") != background {
			r.Errorf("Background %v: %v, ionice says %q", background, err, out)
		}
		if least := weight == "2" || weight == "1"; least != background {
			r.Errorf("Background %v: weight %s", background, weight)
		}
	}
}

// cpuWeight returns the weight of the cgroup of a process of the host that has
// variable in its environment, on a scale whose least is 2 on cgroup v1 and 1
// on v2.
func (r *run) cpuWeight(variable string) string {
	r.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		r.Fatal(err)
	}
	for _, f := range files {
		env, err := os.ReadFile(f)
		if err != nil || !slices.Contains(strings.Split(string(env), "\x00"), variable) {
			continue
		}
		cgroups, err := os.ReadFile(filepath.Join(filepath.Dir(f), "cgroup"))
		if err != nil {
			continue // it has ended: another one of the step
		}
		for line := range strings.Lines(string(cgroups)) {
			_, place, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
			controllers, dir, _ := strings.Cut(place, ":")
			for _, file := range []string{
				filepath.Join("/sys/fs/cgroup", controllers, dir, "cpu.shares"),
				filepath.Join("/sys/fs/cgroup", dir, "cpu.weight"),
			} {
				if b, err := os.ReadFile(file); err == nil {
					return strings.TrimSpace(string(b))
				}
			}
		}
	}
	r.Fatal("no process with " + variable + " has a cgroup with a weight")
	return ""
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
