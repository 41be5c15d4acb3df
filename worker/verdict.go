package worker

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/buildlog"
	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/gitsrc"
	"github.com/monochromegane/cargo/modproxy"
	"github.com/monochromegane/cargo/queue"
	"github.com/monochromegane/cargo/recipe"
)

// What ends a build from outside, as causes of its context.
var (
	errTimeout     = errors.New("the build's time is up")
	errLogTooLarge = errors.New("the build's log is full")
	errDiskFull    = errors.New("the build's disk is full")
)

// What takes us too long is an ailment of ours.
var (
	errSlowDisk  = errors.New("a disk for the build cannot be made in time")
	errSlowStore = errors.New("the artifact cannot be stored in time")
)

// ailments are the troubles of this machine and of the services around it that
// a build has nothing to do with, and that somebody will put right: the build
// is handed back. What is said of each is for the user.
var ailments = []struct {
	err  error
	what string
}{
	{errSlowDisk, "The server's disk is too slow."},
	{errSlowStore, "The artifact store does not answer."},
	{artifact.ErrUnavailable, "The artifact store does not answer."},
	{buildlog.ErrUnavailable, "The logs of builds cannot be written."},
	{buildlog.ErrInUse, "An earlier attempt of your build has not stopped yet."},
	{queue.ErrUnavailable, "The build queue does not answer."},
	{queue.ErrBroken, "The build queue cannot be written."},
	{executor.ErrUnavailable, "The container runtime does not answer."},
	{executor.ErrNoImage, "The builder image is missing."},
	{errMachineFull, "The server has no room left on its disk."},
	{syscall.EMFILE, "The server has too many files open."},
	{syscall.ENFILE, "The server has too many files open."},
	{syscall.ENOSPC, "The server has no room left on its disk."},
	{syscall.EDQUOT, "The server has no room left on its disk."},
	{syscall.EROFS, "The server's disk cannot be written."},
	{syscall.EIO, "The server's disk is broken."},
}

// An ailment that stays ends a build that was begun so often, and has been
// waited for so long: many workers that are sick of the same thing, as of a
// disk that they share, hand a build around within seconds. But a build may be
// what makes them sick.
const (
	maxAttempts  = 20
	minPatience  = 15 * time.Minute // since it was accepted
	mostAttempts = 100              // within that
)

// worthWaiting reports whether another attempt follows one that an ailment has
// ended. A build that was accepted in the future says only that a clock was set.
func (j *job) worthWaiting() bool {
	age := time.Since(j.build.AcceptedAt)
	return j.build.Attempt < maxAttempts || j.build.Attempt < mostAttempts && 0 <= age && age < minPatience
}

// A stepError says which command of the recipe err belongs to.
type stepError struct {
	step recipe.Step
	err  error
}

func (e *stepError) Error() string { return fmt.Sprintf("run %s: %v", e.step.Args[0], e.err) }
func (e *stepError) Unwrap() error { return e.err }

// A verdict is how a build ends; or, in the state queued, that it does not:
// another attempt follows.
type verdict struct {
	state   build.State
	reason  build.Reason
	message string // one sentence for people
	exit    *int
	ours    bool // an operator must look
	setback bool // this worker should claim nothing for a while
}

// loudness is how loud the operator's log says it.
func (v verdict) loudness() slog.Level {
	switch {
	case v.ours:
		return slog.LevelError
	case v.setback:
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

func (v verdict) level() slog.Level {
	switch v.state {
	case build.Succeeded:
		return slog.LevelInfo
	case build.Failed:
		return slog.LevelError
	}
	return slog.LevelWarn
}

func failed(r build.Reason, format string, args ...any) verdict {
	return verdict{state: build.Failed, reason: r, message: fmt.Sprintf(format, args...)}
}

// judge says what an error of try means. The user's fault and ours part here.
func (j *job) judge(err error) verdict {
	switch {
	case err == nil:
		return verdict{state: build.Succeeded, message: "Your build succeeded."}
	case errors.Is(err, errShutdown), errors.Is(err, queue.ErrClosed):
		return verdict{state: build.Queued, message: "The server is shutting down. Your build will start again."}
	case errors.Is(err, queue.ErrLeaseLost), superseded(err):
		return verdict{state: build.Queued, message: "The server lost its hold on your build, which will start again."}
	case errors.Is(err, queue.ErrCanceled):
		return verdict{state: build.Canceled, message: "Your build was canceled."}
	case errors.Is(err, errTimeout):
		return failed(build.ReasonTimeout, "The build took longer than %v; --build-timeout raises that.", j.Timeout)
	case errors.Is(err, errLogTooLarge):
		return failed(build.ReasonLogTooLarge, "The build wrote more than %d bytes of log; --log-limit raises that.", j.LogLimit)
	}
	if v, ok := j.judgeStep(err); ok {
		return v
	}
	if errors.Is(err, executor.ErrMount) {
		return failed(build.ReasonExit, "The build put something else in the place of a directory that its next command needs.")
	}
	if errors.Is(err, errDiskFull) || j.noRoom(err) {
		return j.usedUpDisk()
	}
	if what := j.ailment(err); what != "" && j.worthWaiting() {
		return verdict{state: build.Queued, setback: true, message: what + " Your build will start again."}
	} else if what != "" {
		v := failed(build.ReasonInternal, "%s That was so in the last of %d attempts; ask for the build again later.", what, j.build.Attempt)
		v.ours = true
		return v
	}
	if v, ok := judgeSource(err); ok {
		return v
	}
	for _, a := range []struct {
		err    error
		reason build.Reason
	}{
		{artifact.ErrNoArtifact, build.ReasonNoArtifact},
		{artifact.ErrWrongPlatform, build.ReasonWrongPlatform},
		{artifact.ErrTooLarge, build.ReasonArtifactTooLarge},
	} {
		if errors.Is(err, a.err) {
			return failed(a.reason, "%s", sentence(err))
		}
	}
	v := failed(build.ReasonInternal, "%s The server's log says what.", excuse(err))
	v.ours = true
	return v
}

// excuse says who broke an attempt, with nothing of err in it but the name of
// a module.
func excuse(err error) string {
	switch {
	case errors.Is(err, gitsrc.ErrUnavailable):
		return "The forge did not answer."
	case errors.Is(err, modproxy.ErrUnavailable):
		return silence(err) + "."
	}
	return "Something broke on our side, not yours."
}

// silence says which module an upstream module proxy did not answer for.
func silence(err error) string {
	what := "a module"
	if f, ok := errors.AsType[*modproxy.DoorError](err); ok {
		what = f.Module
	}
	return "The module proxy upstream of the server did not answer for " + what
}

// judgeStep judges a command that ran and did not succeed.
func (j *job) judgeStep(err error) (verdict, bool) {
	exit, ok := errors.AsType[*executor.ExitError](err)
	if !ok {
		return verdict{}, false
	}
	limits := j.Limits.Or(executor.DefaultLimits)
	v := failed(build.ReasonExit, "The build failed with %v; the lines above say why.", exit)
	switch {
	case errors.Is(err, executor.ErrOutOfMemory):
		v = failed(build.ReasonOutOfMemory, "The build used more than %d bytes of memory; --memory raises that.", limits.Memory)
	case errors.Is(err, executor.ErrTooManyProcesses):
		v = failed(build.ReasonTooManyProcesses, "The build had more than %d processes; --pids raises that.", limits.Pids)
	case j.diskFull() || j.symptoms.full.Load():
		v = j.usedUpDisk()
	default:
		if s, ok := errors.AsType[*stepError](err); ok && s.step.Failure != build.ReasonExit {
			v = failed(s.step.Failure, "%s failed with %v; the lines above say why.", sentenceCase(s.step.Doing), exit)
		} else if ok && s.step.Args[0] == "make" {
			v.message += " With ?recipe=go Cargo builds it without its Makefile."
		}
	}
	v.exit = &exit.Code
	return v, true
}

func (j *job) usedUpDisk() verdict {
	return failed(build.ReasonDiskFull, "The build used up its disk of %d bytes, or the number or size of the files that it may have there; --disk raises that.", j.DiskLimit)
}

// ailment says what ails us if err has to do with that, else "".
func (j *job) ailment(err error) string {
	for _, a := range ailments {
		if errors.Is(err, a.err) && !j.noRoom(err) {
			return a.what
		}
	}
	return ""
}

// noRoom reports whether err is about the disk of the build being full, and
// not another one.
func (j *job) noRoom(err error) bool {
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return false
	}
	if e, ok := errors.AsType[*fs.PathError](err); ok && filepath.IsAbs(e.Path) {
		return j.onDisk(err)
	}
	return j.diskFull()
}

// onDisk reports whether err is about a file of the workspace.
func (j *job) onDisk(err error) bool {
	e, ok := errors.AsType[*fs.PathError](err)
	return ok && j.disk != nil && strings.HasPrefix(e.Path, j.disk.Dir()+"/")
}

func (j *job) diskFull() bool { return j.disk != nil && j.disk.Full() }

// judgeSource judges a source that cannot be fetched or made sense of.
func judgeSource(err error) (verdict, bool) {
	if e, ok := errors.AsType[*recipe.Error](err); ok {
		return failed(e.Reason, "%s", sentence(e)), true
	}
	if e, ok := errors.AsType[*gitsrc.RefusedError](err); ok {
		return failed(build.ReasonSource, "%s", sentence(e)), true
	}
	switch {
	case errors.Is(err, gitsrc.ErrNotFound):
		return failed(build.ReasonSource, "The repository or the version is gone, or can no longer be read with the token of the request."), true
	case errors.Is(err, gitsrc.ErrMoved):
		return failed(build.ReasonSource, "The version moved to another commit while the build was waiting; ask for it again."), true
	case errors.Is(err, gitsrc.ErrUnavailable):
		return failed(build.ReasonSource, "The forge did not answer; try again later."), true
	case errors.Is(err, modproxy.ErrUnavailable):
		return failed(build.ReasonSource, "%s; try again later.", silence(err)), true
	}
	return verdict{}, false
}

// worthAnotherTry reports whether err may be gone the next time: what broke on
// our side, and a forge or a module proxy that did not answer.
func (j *job) worthAnotherTry(err error) bool {
	return errors.Is(err, gitsrc.ErrUnavailable) || errors.Is(err, modproxy.ErrUnavailable) || j.judge(err).ours
}

func sentence(err error) string {
	s := sentenceCase(err.Error())
	if !strings.HasSuffix(s, ".") {
		s += "."
	}
	return s
}

func sentenceCase(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
