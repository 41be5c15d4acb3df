package worker

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/buildlog"
	"github.com/monochromegane/cargo/queue"
)

const (
	// endTimeout bounds one write to the queue, and what must still be written
	// once the server stops.
	endTimeout = 30 * time.Second
	// keepTimeout is how long the end of a build waits for its log to be kept.
	keepTimeout = time.Minute
	// keepReserve is what is left of that once the server stops.
	keepReserve = 5 * time.Second
	// maxSettlePause is the longest pause between two tries to give up a claim.
	maxSettlePause = 15 * time.Second
)

// end writes the last line of the log, keeps the log and records what became
// of the build; serving ends when the server begins to stop. A build that is
// somebody else's by now is no error.
func (j *job) end(serving context.Context, v verdict) error {
	if j.log != nil {
		j.hint(v)
		j.log.Log(v.level(), v.message, slog.String("state", string(v.state)), slog.String("reason", string(v.reason)))
		if err := j.log.Close(); err != nil {
			j.Log.Error("cannot keep a build's log", "build", j.build.ID, "err", err)
		}
	}
	if !v.state.Ended() {
		return j.handBack(serving)
	}
	b := j.build
	b.State, b.Reason, b.Message, b.ExitCode, b.Executor = v.state, v.reason, v.message, v.exit, j.Name
	took := time.Since(j.began)
	b.FinishedAt = b.StartedAt.Add(took) // a clock that was set meanwhile changes no length
	kept := j.keepLog(serving, b)
	err := settle(serving, func(ctx context.Context) error { return j.claim.Finish(ctx, b) })
	if errors.Is(err, queue.ErrLeaseLost) {
		j.Log.Warn("a build ended after its lease was lost; it is built again", "build", b.ID)
		return j.handBack(serving)
	}
	if err != nil {
		return err
	}
	j.Metrics.BuildEnded(j.Name, b.Result(), max(0, b.StartedAt.Sub(b.AcceptedAt)), took)
	if kept {
		j.dropLog(serving, b)
	}
	return nil
}

// handBack has the build queued again, if nobody has done that or taken it. A
// lease that was lost because the queue was away may still be given back.
func (j *job) handBack(serving context.Context) error {
	if err := settle(serving, j.claim.Requeue); !errors.Is(err, queue.ErrLeaseLost) {
		return err
	}
	return nil
}

// keepLog moves the log to where it stays, before the record says that it is
// there. A build does not wait for ever for that: who settles what has ended
// without its worker can do it later.
func (j *job) keepLog(serving context.Context, b build.Build) (kept bool) {
	if j.log == nil {
		return false
	}
	ctx, cancel := outlast(serving, keepReserve)
	defer cancel()
	ctx, stop := context.WithTimeout(ctx, keepTimeout)
	defer stop()
	failing := pause{most: maxSettlePause}
	for {
		err := j.Logs.Keep(ctx, b)
		switch {
		case err == nil:
			return true
		case superseded(err): // a later attempt's log is the build's
			return false
		case ctx.Err() != nil:
			j.Log.Error("a build's log is not kept yet; it stays where it was written", "build", b.ID, "err", err)
			return false
		}
		failing.take(ctx)
	}
}

// superseded reports whether a later attempt of the build has come between.
func superseded(err error) bool {
	return errors.Is(err, artifact.ErrSuperseded) || errors.Is(err, buildlog.ErrSuperseded)
}

func (j *job) dropLog(serving context.Context, b build.Build) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(serving), endTimeout)
	defer cancel()
	if err := j.Logs.Drop(ctx, b); err != nil {
		j.Log.Warn("a log that is kept stays where it was written, too", "build", b.ID, "err", err)
	}
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
// claim that is kept is renewed for ever. A queue that does not answer is
// waited for until the server stops; without it there is no other work.
func settle(serving context.Context, giveUp func(context.Context) error) error {
	ctx, cancel := outlast(serving, endTimeout)
	defer cancel()
	failing, began := pause{most: maxSettlePause}, time.Now()
	for {
		err := within(ctx, endTimeout, queue.ErrUnavailable, giveUp)
		switch {
		case err == nil, errors.Is(err, queue.ErrLeaseLost), errors.Is(err, queue.ErrClosed), ctx.Err() != nil:
			return err
		case errors.Is(err, queue.ErrUnavailable), errors.Is(err, queue.ErrBroken):
		case time.Since(began) > endTimeout:
			return err
		}
		failing.take(ctx)
	}
}

// outlast returns a context that goes on for rest after serving has ended.
func outlast(serving context.Context, rest time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(serving))
	stop := context.AfterFunc(serving, func() {
		sleep(ctx, rest)
		cancel()
	})
	return ctx, func() {
		stop()
		cancel()
	}
}
