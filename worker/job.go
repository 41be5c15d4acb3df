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
	log   *buildlog.Writer

	disk    *disk.Disk // the workspace
	root    *os.Root   // of the disk
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

// work takes a claimed build to its end and says so to the queue.
func (w *Worker) work(builds context.Context, claim *queue.Claim) {
	j := &job{Worker: w, build: claim.Build(), claim: claim}
	j.build.Image = w.Image.Digest // a build may be queued for longer than its image is in use
	log := w.Log.With("build", j.build.ID, "repo", j.build.Repository.String(), "ref", j.build.Version, "platform", j.build.Platform())
	log.Info("build started")

	ctx, cancel := context.WithCancelCause(claim.Context())
	defer cancel(nil)
	defer context.AfterFunc(builds, func() { cancel(context.Cause(builds)) })()

	err := j.try(ctx, cancel)
	v := j.judge(err)
	level := slog.LevelInfo
	if v.ours {
		level = slog.LevelError
	}
	log.Log(ctx, level, "build stopped", "state", v.state, "reason", v.reason, "err", err)
	if err := j.end(ctx, v); err != nil {
		log.Error("cannot record what became of a build", "err", err)
	}
	j.clear()
}

// try runs the phases, again where the fault was ours, within the time and
// the log that a build may use.
func (j *job) try(ctx context.Context, cancel context.CancelCauseFunc) (err error) {
	// What earlier attempts wrote, which ended with their server, takes no room from this one.
	if j.log, err = j.Logs.Create(j.build.ID, j.LogLimit*int64(j.build.Attempt)); err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, stop := context.WithTimeoutCause(ctx, j.Timeout, errTimeout)
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

// run goes through the phases once, on a disk of its own.
func (j *job) run(ctx context.Context, try int) error {
	j.clear() // what an earlier try left
	if err := j.lay(ctx); err != nil {
		return fmt.Errorf("lay out the workspace: %w", err)
	}
	j.build.Phases, j.symptoms = nil, symptoms{}
	for _, p := range []struct {
		name build.PhaseName
		do   func(context.Context) error
	}{
		{build.PhaseFetch, j.fetch},
		{build.PhasePlan, j.choose},
		{build.PhaseMount, j.mount},
		{build.PhaseBuild, func(ctx context.Context) error { return j.execute(ctx, try) }},
	} {
		if err := j.phase(ctx, p.name, p.do); err != nil {
			return err
		}
	}
	var sealing sync.WaitGroup
	sealing.Go(func() { j.seal(ctx) })
	defer sealing.Wait()
	if err := j.phase(ctx, build.PhaseCollect, j.collect); err != nil {
		return err
	}
	return j.phase(ctx, build.PhaseStore, j.store)
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
func (j *job) execute(ctx context.Context, try int) error {
	door := j.OpenDoor()
	defer func() {
		_ = door.Close()
		j.say("modules", build.PhaseBuild, door.Usage()...)
	}()
	for n, s := range j.plan.Steps {
		j.say("running", build.PhaseBuild, slog.String("recipe", j.plan.Name), slog.String("command", strings.Join(s.Args, " ")))
		if err := j.step(ctx, fmt.Sprintf("%s-%d-%d", j.build.ID, try, n), s, door); err != nil {
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

// end writes the last line of the log and records what became of the build.
func (j *job) end(ctx context.Context, v verdict) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	if j.log != nil {
		j.hint(v)
		j.log.Log(v.level(), v.message, slog.String("state", string(v.state)), slog.String("reason", string(v.reason)))
		if err := j.log.Close(); err != nil {
			j.Log.Error("cannot keep a build's log", "build", j.build.ID, "err", err)
		}
	}
	if !v.state.Ended() {
		if err := settle(ctx, j.claim.Requeue); !errors.Is(err, queue.ErrLeaseLost) { // then it is queued already
			return err
		}
		return nil
	}
	b := j.build
	b.State, b.Reason, b.Message, b.ExitCode = v.state, v.reason, v.message, v.exit
	b.FinishedAt, b.Executor = time.Now().UTC(), j.Name
	if err := settle(ctx, func(ctx context.Context) error { return j.claim.Finish(ctx, b) }); err != nil {
		return err
	}
	j.Metrics.BuildEnded(j.Name, b.Result(), b.StartedAt.Sub(b.AcceptedAt), b.FinishedAt.Sub(b.StartedAt))
	return nil
}

// hint says why a Makefile that wants something from a network has failed.
func (j *job) hint(v verdict) {
	if v.reason == build.ReasonExit && j.plan.RunsCode && j.symptoms.network.Load() {
		j.warn("A build reaches no network: with --network "+j.Network+" there are "+reach[j.Network]+". See docs/builds.md#network.", build.PhaseBuild)
	}
}

// reach is what a build may have, by Options.Network.
var reach = map[string]string{
	"modules": "the Go modules that this server's module proxy has, and nothing else",
	"none":    "the Go modules that this server keeps already, and nothing else",
}

// settle gives up a claim, again until that is done or the claim is gone: a
// claim that is kept is renewed for ever.
func settle(ctx context.Context, giveUp func(context.Context) error) error {
	for {
		err := giveUp(ctx)
		if err == nil || ctx.Err() != nil || errors.Is(err, queue.ErrLeaseLost) || errors.Is(err, queue.ErrClosed) || errors.Is(err, queue.ErrBroken) {
			return err
		}
		sleep(ctx, claimPause)
	}
}
