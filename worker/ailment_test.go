package worker_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/buildlog"
	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/executortest"
	"github.com/monochromegane/cargo/queue"
	"github.com/monochromegane/cargo/worker"
)

// putter is Artifacts as a test wants them.
type putter func(ctx context.Context, m artifact.Meta, o artifact.PutOptions, write func(io.Writer) error) (artifact.Meta, error)

func (p putter) Put(ctx context.Context, m artifact.Meta, o artifact.PutOptions, write func(io.Writer) error) (artifact.Meta, error) {
	return p(ctx, m, o, write)
}

// failPuts has the first n Puts fail with err.
func (r *rig) failPuts(n int, err error) {
	var puts atomic.Int32
	r.opts.Artifacts = putter(func(ctx context.Context, m artifact.Meta, o artifact.PutOptions, write func(io.Writer) error) (artifact.Meta, error) {
		if int(puts.Add(1)) <= n {
			return artifact.Meta{}, fmt.Errorf("store artifact: %w", err)
		}
		return r.artifacts.Put(ctx, m, o, write)
	})
}

// A machine or a service that is sick for a while costs a build another
// attempt, and nothing else.
func TestHandedBack(t *testing.T) {
	t.Parallel()
	const detail = "detail-of-the-trouble"
	for name, tc := range map[string]struct {
		err  error
		says string
	}{
		"engine":         {fmt.Errorf("%w: %s", executor.ErrUnavailable, detail), "The container runtime does not answer."},
		"image":          {fmt.Errorf("%w: %s", executor.ErrNoImage, detail), "The builder image is missing."},
		"queue":          {fmt.Errorf("%s: %w", detail, queue.ErrUnavailable), "The build queue does not answer."},
		"logs":           {fmt.Errorf("%s: %w", detail, buildlog.ErrUnavailable), "The logs of builds cannot be written."},
		"descriptors":    {&fs.PathError{Op: "open", Path: "/" + detail, Err: syscall.EMFILE}, "The server has too many files open."},
		"all files":      {fmt.Errorf("%s: %w", detail, syscall.ENFILE), "The server has too many files open."},
		"full disk":      {&fs.PathError{Op: "write", Path: "/" + detail, Err: syscall.ENOSPC}, "The server has no room left on its disk."},
		"quota":          {&fs.PathError{Op: "write", Path: "/" + detail, Err: syscall.EDQUOT}, "The server has no room left on its disk."},
		"read-only disk": {&fs.PathError{Op: "open", Path: "/" + detail, Err: syscall.EROFS}, "The server's disk cannot be written."},
		"broken disk":    {fmt.Errorf("%s: %w", detail, syscall.EIO), "The server's disk is broken."},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var calls atomic.Int32
			r := newRig(t, hello, func(ctx context.Context, p executortest.Process) error {
				if calls.Add(1) == 1 {
					return tc.err
				}
				return makes("/go/out/app")(ctx, p)
			})
			b, log := r.run()
			if b.State != build.Succeeded || b.Attempt != 2 {
				t.Fatalf("record %+v", b)
			}
			checkStored(r, b, map[string]string{"app": "executable"})
			if said := log.find(tc.says + " Your build will start again."); len(said) != 1 || said[0]["state"] != "queued" || said[0]["level"] != "warn" {
				t.Errorf("log: %q", log.messages())
			}
			if strings.Contains(fmt.Sprint(log), detail) {
				t.Errorf("the user is told what broke: %v", log)
			}
			if said := r.operator.String(); strings.Count(said, detail) != 1 || strings.Contains(said, "level=ERROR") || strings.Count(said, "claims nothing for a while") != 1 {
				t.Error("the operator is not told once, without alarm, and that builds wait")
			}
			if ended := r.metrics.endings(); !slices.Equal(ended, []string{"fake succeeded"}) {
				t.Errorf("counted %q", ended)
			}
		})
	}
}

// What stays broken ends a build at last, but not within the seconds in which
// many workers can hand it around.
func TestHandedBackTooOften(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	r := newRig(t, hello, func(ctx context.Context, p executortest.Process) error {
		if calls.Add(1) == 2 {
			return makes("/go/out/app")(ctx, p)
		}
		return executor.ErrUnavailable
	})
	tryOften := func(b build.Build) build.Build {
		for range 19 {
			c, err := r.queue.Claim(t.Context())
			r.must(err)
			r.must(c.Requeue(t.Context()))
		}
		return r.work(b)
	}
	if b := tryOften(r.submit("linux/amd64", "")); b.State != build.Succeeded || b.Attempt != 21 {
		t.Errorf("record of the build that was accepted just now: %+v", b)
	}
	old, sealed := r.request("linux/arm64", "")
	old.AcceptedAt = time.Now().Add(-16 * time.Minute)
	b := tryOften(r.enqueue(old, sealed))
	r.checkFailed(b, build.ReasonInternal, "The container runtime does not answer. That was so in the last of 20 attempts")
}

// A log that another attempt still writes is waited for.
func TestLogInUse(t *testing.T) {
	t.Parallel()
	r := newRig(t, hello, makes("/go/out/app"))
	b := r.submit("linux/amd64", "")
	other, err := r.logs.Create(t.Context(), b, 0)
	r.must(err)
	stop := r.start(0)
	for b.Attempt == 0 || b.State != build.Queued {
		b, err = r.queue.Get(r.patience(), b.ID)
		r.must(err)
	}
	r.must(other.Close())
	b = r.wait(b.ID)
	stop()
	if b.State != build.Succeeded || b.Attempt < 2 {
		t.Errorf("record %+v", b)
	}
}

// A store that does not answer for longer than a build may take is no timeout.
func TestStoreThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	for name, trouble := range map[string]error{
		"unavailable": artifact.ErrUnavailable,
		"full":        &fs.PathError{Op: "write", Path: "/storage/blobs/x", Err: syscall.ENOSPC},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, hello, makes("/go/out/app"))
			r.opts.Timeout = 2500 * time.Millisecond
			r.failPuts(2, trouble) // the pauses take three seconds
			b, log := r.run()
			if b.State != build.Succeeded || b.Attempt != 1 {
				t.Fatalf("record %+v", b)
			}
			checkStored(r, b, map[string]string{"app": "executable"})
			waits := slices.DeleteFunc(log, func(l map[string]any) bool {
				return !strings.HasSuffix(l["msg"].(string), "What your build made is stored as soon as that is over.")
			})
			if len(waits) != 2 || waits[0]["phase"] != "store" || waits[0]["level"] != "warn" {
				t.Errorf("log: %v", waits)
			}
		})
	}
}

// The disk of a build is full, and so is that of the store: the second is no
// fault of the build.
func TestStoreFullAfterDiskFull(t *testing.T) {
	t.Parallel()
	r := newRig(t, hello, func(ctx context.Context, p executortest.Process) error {
		return errors.Join(makes("/go/out/app")(ctx, p), fill(p))
	})
	r.openLoop()
	r.failPuts(1, &fs.PathError{Op: "write", Path: "/storage/blobs/x", Err: syscall.ENOSPC})
	if b, log := r.run(); b.State != build.Succeeded {
		t.Errorf("record %+v\n%q", b, log.messages())
	}
}

// A log that a later attempt writes is not waited for: the build is that one's.
func TestLogSuperseded(t *testing.T) {
	t.Parallel()
	r := newRig(t, hello, makes("/go/out/app"))
	a := r.archive(func(context.Context) error { return fmt.Errorf("keep: %w", buildlog.ErrSuperseded) })
	began := time.Now()
	if b, _ := r.run(); b.State != build.Succeeded || time.Since(began) > 30*time.Second {
		t.Errorf("record %+v after %s", b, time.Since(began))
	}
	if len(a.asked) != 1 {
		t.Errorf("asked %q, want one keep", a.asked)
	}
	r.archive(nil).create = func() error { return fmt.Errorf("create: %w", buildlog.ErrSuperseded) }
	b := r.submit("linux/arm64", "")
	stop := r.start(0)
	for b.Attempt == 0 || b.State != build.Queued {
		var err error
		b, err = r.queue.Get(r.patience(), b.ID)
		r.must(err)
		if b.State.Ended() {
			t.Fatalf("record %+v", b)
		}
	}
	stop()
}

// An attempt that was overtaken stores nothing and ends nothing. Before it
// stores, it is asked whether the build is still its own.
func TestSuperseded(t *testing.T) {
	t.Parallel()
	r := newRig(t, hello, makes("/go/out/app"))
	var puts atomic.Int32
	r.opts.Artifacts = putter(func(ctx context.Context, m artifact.Meta, o artifact.PutOptions, write func(io.Writer) error) (artifact.Meta, error) {
		if o.Confirm == nil {
			t.Error("the claim cannot be confirmed")
		} else if err := o.Confirm(ctx); err != nil {
			t.Errorf("the claim is not confirmed: %v", err)
		}
		if puts.Add(1) == 1 {
			return artifact.Meta{}, fmt.Errorf("store artifact: %w", artifact.ErrSuperseded)
		}
		return r.artifacts.Put(ctx, m, o, write)
	})
	b, log := r.run()
	if b.State != build.Succeeded || b.Attempt != 2 {
		t.Errorf("record %+v", b)
	}
	if len(log.find("The server lost its hold on your build, which will start again.")) != 1 {
		t.Errorf("log: %q", log.messages())
	}
	if strings.Contains(r.operator.String(), "level=ERROR") {
		t.Error("the operator is told of an error that is none")
	}
}

// archive is Logs that are kept elsewhere. It notes what it is asked for, and
// how far the build was then.
type archive struct {
	*rig
	keep   func(ctx context.Context) error // nil: it succeeds
	create func() error                    // the same

	mu    sync.Mutex
	asked []string
}

func (a *archive) Create(ctx context.Context, b build.Build, limit int64) (*buildlog.Writer, error) {
	if a.create != nil {
		if err := a.create(); err != nil {
			return nil, err
		}
	}
	return a.logs.Create(ctx, b, limit)
}

func (a *archive) note(what string, b build.Build) {
	now, err := a.queue.Get(context.Background(), b.ID)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked = append(a.asked, fmt.Sprintf("%s attempt %d of a %s build that is %s, %v", what, b.Attempt, b.State, now.State, err))
}

func (a *archive) Keep(ctx context.Context, b build.Build) error {
	a.note("keep", b)
	if last := a.log(b.ID).last(); last["state"] != string(b.State) {
		a.Errorf("the log is not complete: %v", last)
	}
	if a.keep != nil {
		return a.keep(ctx)
	}
	return nil
}

func (a *archive) Drop(_ context.Context, b build.Build) error {
	a.note("drop", b)
	return nil
}

func (r *rig) archive(keep func(ctx context.Context) error) *archive {
	a := &archive{rig: r, keep: keep}
	r.opts.Logs = a
	return a
}

// The log of a build is where it stays before the record says that it ended,
// and what is left of it goes after that.
func TestLogIsKept(t *testing.T) {
	t.Parallel()
	for name, play := range map[string]script{"succeeded": makes("/go/out/app"), "failed": exits(2)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, hello, play)
			tries := 0
			a := r.archive(func(ctx context.Context) error {
				if d, ok := ctx.Deadline(); !ok || time.Until(d) > time.Minute {
					t.Errorf("it may take until %s", d)
				}
				if tries++; tries == 1 {
					return artifact.ErrUnavailable
				}
				return nil
			})
			b, _ := r.run()
			keep := fmt.Sprintf("keep attempt 1 of a %s build that is running, <nil>", name)
			drop := fmt.Sprintf("drop attempt 1 of a %s build that is %s, <nil>", name, name)
			if want := []string{keep, keep, drop}; string(b.State) != name || !slices.Equal(a.asked, want) {
				t.Errorf("%s: asked %q, want %q", b.State, a.asked, want)
			}
		})
	}
}

// A log that cannot be kept holds up neither its build nor the server's stop,
// and is not dropped; one whose build goes on is neither kept nor dropped.
func TestLogThatCannotBeKept(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{}, 1)
	r := newRig(t, hello, makes("/go/out/app"))
	a := r.archive(func(ctx context.Context) error {
		asked <- struct{}{}
		<-ctx.Done()
		return context.Cause(ctx)
	})
	b := r.submit("linux/amd64", "")
	stop := r.start(time.Hour)
	r.receive(asked)
	stop()
	if b = r.wait(b.ID); b.State != build.Succeeded {
		t.Errorf("record %+v", b)
	}
	if len(a.asked) != 1 || !strings.Contains(r.operator.String(), "a build's log is not kept yet") {
		t.Errorf("asked %q", a.asked)
	}

	begun := make(chan struct{}, 1)
	r.fake.Script = hangs(t, begun, nil)
	r.submit("linux/arm64", "")
	stop = r.start(0)
	r.receive(begun)
	stop()
	if len(a.asked) != 1 {
		t.Errorf("asked %q", a.asked)
	}
}

// A clock that is set while a build waits or runs makes no time negative.
func TestClockThatJumps(t *testing.T) {
	t.Parallel()
	r := newRig(t, hello, makes("/go/out/app"))
	b, sealed := r.request("linux/amd64", "")
	b.AcceptedAt = time.Now().Add(time.Hour).UTC()
	b = r.work(r.enqueue(b, sealed))
	if took := b.FinishedAt.Sub(b.StartedAt); len(r.metrics.took) != 1 || took != r.metrics.took[0] {
		t.Errorf("by its record the build took %v, by the metrics %v", took, r.metrics.took)
	}
	if ended := r.metrics.endings(); !slices.Equal(ended, []string{"fake succeeded"}) {
		t.Errorf("counted %q", ended) // the recorder marks impossible times
	}
}

// drain is what stands for the registry of workers.
type drain struct {
	mu      sync.Mutex
	on      bool
	changed chan struct{}
}

func (d *drain) state() (bool, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.on, d.changed
}

func (d *drain) set(on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	close(d.changed)
	d.on, d.changed = on, make(chan struct{})
}

// A drained worker ends what it has and claims nothing, until it may again.
func TestDrain(t *testing.T) {
	t.Parallel()
	begun, goOn := make(chan struct{}, 2), make(chan struct{})
	r := newRig(t, hello, func(ctx context.Context, p executortest.Process) error {
		begun <- struct{}{}
		select {
		case <-goOn:
		case <-ctx.Done():
		}
		return makes("/go/out/app")(ctx, p)
	})
	d := &drain{changed: make(chan struct{})}
	r.opts.Draining, r.opts.Running, r.opts.Concurrency = d.state, new(atomic.Int64), 2
	claimable := make(chan context.Context, 8)
	r.opts.Queue = claimer(func(ctx context.Context) (*queue.Claim, error) {
		claimable <- ctx
		return r.queue.Claim(ctx)
	})
	stop := r.start(0)
	first := r.submit("linux/amd64", "")
	r.receive(begun)
	if n := r.opts.Running.Load(); n != 1 {
		t.Errorf("%d builds are running", n)
	}
	d.set(true)
	for range 2 { // both slots have asked while they might, and may no longer
		r.receive((<-claimable).Done())
	}
	second := r.submit("freebsd/amd64", "")
	close(goOn)
	if b := r.wait(first.ID); b.State != build.Succeeded {
		t.Errorf("record %+v", b)
	}
	select {
	case <-begun:
		t.Error("a drained worker begins a build")
	case <-claimable:
		t.Error("a drained worker asks for a build")
	case <-time.After(50 * time.Millisecond): // too short a wait can only miss an error
	}
	d.set(false)
	if b := r.wait(second.ID); b.State != build.Succeeded {
		t.Errorf("record %+v", b)
	}
	stop()
	if n := r.opts.Running.Load(); n != 0 {
		t.Errorf("%d builds are running", n)
	}
}

var _ worker.Logs = (*archive)(nil)
