package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/buildlog"
	"github.com/monochromegane/cargo/disk"
	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/gitsrc"
	"github.com/monochromegane/cargo/queue"
	"github.com/monochromegane/cargo/recipe"
)

// A job is one claimed build on its way through the phases.
type job struct {
	*Worker
	build build.Build
	claim *queue.Claim
	began time.Time // on the monotonic clock
	log   *buildlog.Writer

	disk    *disk.Disk // the workspace
	root    *os.Root   // of the disk
	top     *os.File   // the same, opened before anything was written
	mounted mounted
	mounts  []executor.Mount // of every step

	removing sync.WaitGroup // of the containers of steps that have ended

	tree     *gitsrc.Tree
	plan     recipe.Plan
	symptoms symptoms
	made     output
}

// maxTries is how often a build is tried when it is our side that breaks.
const maxTries = 3

// tryPause is the pause before the second try; it doubles with each.
const tryPause = time.Second

// layTimeout bounds the making of a disk, which takes milliseconds: one that
// hangs is no reason to call the build too slow.
const layTimeout = time.Minute

// work takes a claimed build to its end and says so to the queue. serving ends
// when the server begins to stop, builds when the grace is over.
func (w *Worker) work(serving, builds context.Context, claim *queue.Claim) {
	w.Running.Add(1)
	defer w.Running.Add(-1)
	j := &job{Worker: w, build: claim.Build(), claim: claim, began: time.Now()}
	j.build.Image = w.Image.Digest // a build may be queued for longer than its image is in use
	log := w.Log.With("build", j.build.ID, "repo", j.build.Repository.String(), "ref", j.build.Version, "platform", j.build.Platform())
	log.Info("build started")

	ctx, cancel := context.WithCancelCause(claim.Context())
	defer cancel(nil)
	defer context.AfterFunc(builds, func() { cancel(context.Cause(builds)) })()

	err := j.try(ctx, cancel)
	v := j.judge(err)
	log.Log(ctx, v.loudness(), "build stopped", "state", v.state, "reason", v.reason, "err", err)
	switch {
	case v.setback: // before the build can be claimed again, by another slot of this worker
		w.gate.setback()
	case v.state.Ended() && !v.ours:
		w.gate.recover()
	}
	if err := j.end(serving, v); err != nil {
		log.Log(ctx, blame(err), "cannot record what became of a build", "err", err)
	}
	j.clear()
}

// try runs the phases, again where the fault was ours, within the log that a
// build may use. Each try has the build's whole time.
func (j *job) try(ctx context.Context, cancel context.CancelCauseFunc) (err error) {
	// What earlier attempts wrote, which ended with their server, takes no room from this one.
	if j.log, err = j.Logs.Create(ctx, j.build, j.LogLimit*int64(j.build.Attempt)); err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	wg.Go(func() {
		select {
		case <-j.log.TooLarge():
			cancel(errLogTooLarge)
		case <-ctx.Done():
		}
	})
	j.log.Log(slog.LevelInfo, "Your build started.", slog.String("workspace", string(j.build.ID)), slog.Int("attempt", j.build.Attempt))
	for try := 1; ; try++ {
		err = j.run(ctx, try)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("%w (%v)", context.Cause(ctx), err)
		case try == maxTries || !j.worthAnotherTry(err):
			return err
		}
		j.Log.Warn("build broke, trying again", "build", j.build.ID, "try", try, "err", err)
		j.log.Log(slog.LevelWarn, excuse(err)+" Trying again.", slog.Int("try", try+1))
		sleep(ctx, tryPause<<(try-1))
	}
}

// run goes through the phases once, on a disk of its own. What counts as the
// build's time ends when what it made is collected.
func (j *job) run(ctx context.Context, try int) error {
	j.clear() // what an earlier try left
	j.build.Phases, j.symptoms = nil, symptoms{}
	if err := within(ctx, layTimeout, errSlowDisk, j.lay); err != nil {
		return fmt.Errorf("lay out the workspace: %w", err)
	}
	var sealing sync.WaitGroup
	defer sealing.Wait()
	err := within(ctx, j.Timeout, errTimeout, func(charged context.Context) error {
		for _, p := range []struct {
			name build.PhaseName
			do   func(context.Context) error
		}{
			{build.PhaseFetch, j.fetch},
			{build.PhasePlan, j.choose},
			{build.PhaseMount, j.mount},
			{build.PhaseBuild, func(ctx context.Context) error { return j.execute(ctx, try) }},
		} {
			if err := j.phase(charged, p.name, p.do); err != nil {
				return err
			}
		}
		sealing.Go(func() { j.seal(ctx) })
		return j.phase(charged, build.PhaseCollect, j.collect)
	})
	if err != nil {
		return err
	}
	return j.phase(ctx, build.PhaseStore, j.store)
}

// within gives do some time. If that was too little, the error is late.
func within(ctx context.Context, d time.Duration, late error, do func(context.Context) error) error {
	timed, stop := context.WithTimeoutCause(ctx, d, late)
	defer stop()
	err := do(timed)
	if err != nil && timed.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("%w (%v)", late, err)
	}
	return err
}

// phase times one part of the build.
func (j *job) phase(ctx context.Context, name build.PhaseName, do func(context.Context) error) error {
	start := time.Now()
	err := do(ctx)
	took := time.Since(start)
	j.build.Phases = append(j.build.Phases, build.Phase{Name: name, Seconds: took.Seconds()})
	j.Metrics.PhaseEnded(string(name), took)
	return err
}

func (j *job) fetch(ctx context.Context) error {
	j.say("cloning repository...", build.PhaseFetch, slog.String("repo", j.build.Repository.String()), slog.String("ref", j.build.RefName))
	tok, err := j.Source.Unseal(j.claim.Sealed(), j.build.ID)
	if err != nil {
		return err
	}
	ref := gitsrc.Ref{Name: j.build.RefName, Commit: j.build.Commit, Public: j.build.Public}
	j.tree, err = j.Source.Fetch(ctx, j.build.Repository, ref, tok, filepath.Join(j.root.Name(), inside(j.treeDir())))
	if err != nil {
		return err
	}
	j.say("cloned", build.PhaseFetch, slog.String("commit", j.tree.Commit), slog.Int("files", j.tree.Files), slog.Int64("bytes", j.tree.Bytes))
	return nil
}

func (j *job) choose(context.Context) error {
	tree, err := j.root.OpenRoot(inside(j.treeDir()))
	if err != nil {
		return err
	}
	defer tree.Close()
	j.plan, err = recipe.For(tree, j.build.Target, recipe.Commit{ID: j.tree.Commit, Time: j.tree.Time}, outDir)
	return err
}

func (j *job) say(msg string, phase build.PhaseName, attrs ...slog.Attr) {
	j.log.Log(slog.LevelInfo, msg, append([]slog.Attr{slog.String("phase", string(phase))}, attrs...)...)
}

func (j *job) warn(msg string, phase build.PhaseName, attrs ...slog.Attr) {
	j.log.Log(slog.LevelWarn, msg, append([]slog.Attr{slog.String("phase", string(phase))}, attrs...)...)
}

// execute runs the steps of the plan, each in a fresh container over the same
// directory, all through one door.
func (j *job) execute(ctx context.Context, try int) (err error) {
	var fault error // of the door during the last step
	defer func() { err = j.pardoned(j.landed(err), fault) }()
	door := j.OpenDoor()
	defer func() {
		_ = door.Close()
		j.say("modules", build.PhaseBuild, door.Usage()...)
	}()
	for n, s := range j.plan.Steps {
		j.say("running", build.PhaseBuild, slog.String("recipe", j.plan.Name), slog.String("command", strings.Join(s.Args, " ")))
		err := j.step(ctx, fmt.Sprintf("%s-%d-%d-%d", j.build.ID, j.build.Attempt, try, n), s, door)
		fault = door.Fault()
		if err != nil {
			return &stepError{step: s, err: err}
		}
	}
	if j.diskFull() {
		j.limited(errDiskFull)
	}
	return nil
}

func (j *job) step(ctx context.Context, id string, s recipe.Step, door Door) error {
	stdout := j.log.Stream("stdout", string(build.PhaseBuild))
	stderr := j.log.Stream("stderr", string(build.PhaseBuild))
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer j.guard(ctx, cancel)()
	err := j.contain(ctx, executor.Step{
		ID:      id,
		Image:   j.Image.Ref,
		Args:    s.Args,
		Env:     j.env(),
		Dir:     j.treeDir(),
		Mounts:  j.mounts,
		Door:    &stepDoor{door: door},
		Limits:  j.Limits,
		Limited: j.limited,
		Stdout:  j.symptoms.watch(stdout),
		Stderr:  j.symptoms.watch(stderr),
	})
	_, _ = stdout.Close(), stderr.Close()
	select {
	case <-j.log.TooLarge(): // the command may have ended before it could be stopped
		return errLogTooLarge
	default:
		return err
	}
}

// contain runs a step and returns when its command has ended. What it leaves
// to be removed is removed meanwhile; clear waits for that.
func (j *job) contain(ctx context.Context, step executor.Step) error {
	ended := make(chan error, 1)
	exited, verdict := false, error(nil)
	step.Exited = func(err error) {
		exited, verdict = true, err
		ended <- err
	}
	j.removing.Go(func() {
		err := j.Executor.Run(ctx, step)
		if !exited {
			ended <- err
			return
		}
		if err != verdict { //nolint:errorlint // the same, unless the removal failed
			j.Log.Error("cannot remove a container", "build", j.build.ID, "err", err)
		}
	})
	return <-ended
}

// guard ends a step on a disk that the kernel does not bound when that is
// over its limit. The caller calls release after the step.
func (j *job) guard(ctx context.Context, cancel context.CancelCauseFunc) (release func()) {
	ctx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-j.disk.Exceeded():
			cancel(errDiskFull)
		case <-ctx.Done():
		}
	})
	return func() { stop(); wg.Wait() }
}

// limited tells of a limit that the build ran into and got over.
func (j *job) limited(limit error) {
	limits := j.Limits.Or(executor.DefaultLimits)
	switch {
	case errors.Is(limit, executor.ErrOutOfMemory):
		j.warn("The kernel ended a process of the build at its memory limit; --memory raises that.", build.PhaseBuild, slog.Int64("bytes", limits.Memory))
	case errors.Is(limit, executor.ErrTooManyProcesses):
		j.warn("The kernel refused the build a process at its limit of processes; --pids raises that.", build.PhaseBuild, slog.Int64("processes", limits.Pids))
	case errors.Is(limit, errDiskFull):
		j.warn("The disk of the build was full for a while; --disk raises that.", build.PhaseBuild, slog.Int64("bytes", j.DiskLimit))
	}
}
