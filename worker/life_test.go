package worker_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/disk"
	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/executortest"
	"github.com/monochromegane/cargo/queue"
	"github.com/monochromegane/cargo/worker"
)

// hangs is a command that says when it has begun, ends when it is told to and
// checks why.
func hangs(t *testing.T, begun chan<- struct{}, want error) script {
	return func(ctx context.Context, p executortest.Process) error {
		fmt.Fprintln(p.Stdout, "at work")
		begun <- struct{}{}
		<-ctx.Done()
		if cause := context.Cause(ctx); want != nil && !errors.Is(cause, want) {
			t.Errorf("stopped for %v, want %v", cause, want)
		}
		return nil
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	begun := make(chan struct{}, 1)
	r := newRig(t, hello, hangs(t, begun, queue.ErrCanceled))
	b := r.submit("linux/amd64", "")
	stop := r.start(0)
	r.receive(begun)
	r.must(r.queue.Cancel(t.Context(), b.ID))
	b = r.wait(b.ID)
	stop()
	if b.State != build.Canceled || b.Reason != "" || b.Message != "Your build was canceled." || b.Artifact != nil || len(b.Phases) != 4 {
		t.Errorf("record %+v", b)
	}
	if last := r.log(b.ID).last(); last["state"] != "canceled" || last["level"] != "warn" || last["msg"] != b.Message {
		t.Errorf("last line %v", last)
	}
	if ended := r.metrics.endings(); !slices.Equal(ended, []string{"fake canceled"}) {
		t.Errorf("counted %q", ended)
	}
}

// A server that stops hands its build back, and the next one builds it from
// the start; the log that is there takes no room from it.
func TestShutdown(t *testing.T) {
	t.Parallel()
	begun := make(chan struct{}, 1)
	hang := hangs(t, begun, nil)
	r := newRig(t, hello, func(ctx context.Context, p executortest.Process) error {
		fmt.Fprintln(p.Stdout, strings.Repeat("x", 6000))
		return hang(ctx, p)
	})
	r.opts.LogLimit = 10_000
	b := r.submit("linux/amd64", "")
	stop := r.start(0)
	r.receive(begun)
	stop()
	got, err := r.queue.Get(t.Context(), b.ID)
	r.must(err)
	if got.State != build.Queued || !got.StartedAt.IsZero() || r.queue.Depth() != 1 || r.queue.Running() != 0 {
		t.Fatalf("record %+v", got)
	}
	if last := r.log(b.ID).last(); last["state"] != "queued" || last["msg"] != "The server is shutting down. Your build will start again." || last["level"] != "warn" {
		t.Errorf("last line %v", last)
	}
	if ended := r.metrics.endings(); len(ended) != 0 {
		t.Errorf("counted %q", ended)
	}

	left := filepath.Join(r.workspace, string(b.ID)+"-1", "go/src/git.test/me/app/left") // as by a server that was killed
	r.must(os.MkdirAll(left, 0o755))
	r.openDisks(disk.Options{Kind: disk.Watch}) // as the next server does
	r.fake.Script = func(ctx context.Context, p executortest.Process) error {
		if _, err := os.Lstat(p.Path(treeDir + "/left")); err == nil {
			t.Error("the workspace is that of the first attempt")
		}
		fmt.Fprintln(p.Stdout, strings.Repeat("x", 6000))
		return makes("/go/out/app")(ctx, p)
	}
	b = r.work(b)
	if b.State != build.Succeeded || b.Attempt != 2 {
		t.Errorf("record %+v", b)
	}
	starts := r.log(b.ID).find("Your build started.")
	if len(starts) != 2 || starts[0]["attempt"] != 1.0 || starts[1]["attempt"] != 2.0 {
		t.Errorf("starts %v", starts)
	}
	if strings.Contains(r.operator.String(), "trying again") {
		t.Error("what the first attempt left was in the way")
	}
	if ended := r.metrics.endings(); !slices.Equal(ended, []string{"fake succeeded"}) {
		t.Errorf("counted %q", ended)
	}
}

// Within its grace a server ends what is under way, and begins nothing.
func TestGrace(t *testing.T) {
	t.Parallel()
	begun, goOn := make(chan struct{}, 1), make(chan struct{})
	r := newRig(t, hello, func(ctx context.Context, p executortest.Process) error {
		begun <- struct{}{}
		select {
		case <-goOn:
			return makes("/go/out/app")(ctx, p)
		case <-ctx.Done():
			return nil
		}
	})
	first := r.submit("linux/amd64", "")
	second := r.submit("linux/386", "")
	stop := r.start(time.Hour)
	r.receive(begun)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		stop()
	}()
	select {
	case <-stopped:
		t.Error("Run returns while a build is under way")
	case <-time.After(50 * time.Millisecond): // too short a wait can only miss an error
	}
	close(goOn)
	r.receive(stopped)
	if b := r.wait(first.ID); b.State != build.Succeeded {
		t.Errorf("record %+v", b)
	}
	if b, err := r.queue.Get(t.Context(), second.ID); err != nil || b.State != build.Queued || b.Attempt != 0 {
		t.Errorf("the second build: %+v, %v", b, err)
	}
}

// A lateExecutor runs commands that end well just before they can be stopped.
type lateExecutor struct{ *executortest.Fake }

func (e lateExecutor) Run(ctx context.Context, s executor.Step) error {
	err := e.Fake.Run(ctx, s)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// The queue of this test lies on a disk that fills up under the build, so that
// its lease cannot be renewed. What the command makes after that is dropped,
// and the build is queued again once there is room.
func TestLeaseLost(t *testing.T) {
	t.Parallel()
	begun := make(chan struct{}, 1)
	hang := hangs(t, begun, queue.ErrLeaseLost)
	r := newRig(t, hello, func(ctx context.Context, p executortest.Process) error {
		return errors.Join(hang(ctx, p), makes("/go/out/app")(ctx, p))
	})
	r.opts.Executor = lateExecutor{r.fake}
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=16m"); err != nil {
		t.Skipf("cannot mount a small disk: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
	r.openQueue(queue.Options{Dir: filepath.Join(disk, "queue"), Worker: "w", Lease: 3 * time.Second})
	b := r.submit("linux/amd64", "")
	stop := r.start(time.Hour)
	r.receive(begun)
	fill, err := os.Create(filepath.Join(disk, "fill"))
	r.must(err)
	for err == nil {
		_, err = fill.Write(make([]byte, 4<<10))
	}
	if _ = fill.Close(); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	const lost = "The server lost its hold on your build, which will start again."
	ctx := r.patience()
	err = r.logs.Follow(ctx, b.ID, 0, ctx.Done(), func(line []byte, _ int64) error {
		if strings.Contains(string(line), lost) {
			return errSeen
		}
		return nil
	})
	if !errors.Is(err, errSeen) {
		t.Fatalf("the log does not say that the lease is lost: %v", err)
	}
	r.must(os.Remove(fill.Name()))
	stop()
	if last := r.log(b.ID).last(); last["state"] != "queued" || last["level"] != "warn" || last["msg"] != lost {
		t.Errorf("last line %v", last)
	}
	if m, ok := r.stored(b); ok {
		t.Errorf("stored %+v", m)
	}
	if got, err := r.queue.Get(t.Context(), b.ID); err != nil || got.State != build.Queued {
		t.Errorf("record %+v, %v", got, err)
	}
	if ended := r.metrics.endings(); len(ended) != 0 {
		t.Errorf("counted %q", ended)
	}
	if strings.Contains(r.operator.String(), "level=ERROR msg=\"cannot record") {
		t.Error("the operator is told of an error that is none")
	}
}

var errSeen = errors.New("seen")

// With a concurrency of two, two builds are under way at once and no third.
func TestConcurrency(t *testing.T) {
	t.Parallel()
	begun, goOn := make(chan struct{}, 3), make(chan struct{})
	var mu sync.Mutex
	running, most := 0, 0
	r := newRig(t, hello, func(ctx context.Context, p executortest.Process) error {
		mu.Lock()
		running++
		most = max(most, running)
		mu.Unlock()
		defer func() {
			mu.Lock()
			defer mu.Unlock()
			running--
		}()
		begun <- struct{}{}
		select {
		case <-goOn:
		case <-ctx.Done():
		}
		return makes("/go/out/app")(ctx, p)
	})
	r.opts.Concurrency = 2
	var builds []build.Build
	for _, platform := range []string{"linux/amd64", "freebsd/amd64", "netbsd/amd64"} {
		builds = append(builds, r.submit(platform, ""))
	}
	stop := r.start(0)
	r.receive(begun)
	r.receive(begun)
	if r.queue.Running() != 2 || r.queue.Depth() != 1 {
		t.Errorf("%d running, %d queued", r.queue.Running(), r.queue.Depth())
	}
	close(goOn)
	for i, b := range builds {
		builds[i] = r.wait(b.ID)
	}
	stop()
	for _, b := range builds {
		if b.State != build.Succeeded {
			t.Errorf("record %+v", b)
		}
		if m, ok := r.stored(b); !ok || m.BuildID != b.ID {
			t.Errorf("stored: %t, %+v", ok, m)
		}
		for _, line := range r.log(b.ID) {
			if line["build_id"] != string(b.ID) {
				t.Errorf("a line of another build: %v", line)
			}
		}
	}
	if most != 2 {
		t.Errorf("%d at once", most)
	}
}

// A claimer is a queue as a test wants it.
type claimer func(ctx context.Context) (*queue.Claim, error)

func (c claimer) Claim(ctx context.Context) (*queue.Claim, error) { return c(ctx) }

// What is claimed while the server is told to stop is handed back unbuilt.
func TestClaimedTooLate(t *testing.T) {
	t.Parallel()
	r := newRig(t, hello, func(context.Context, executortest.Process) error {
		t.Error("it is built")
		return nil
	})
	b := r.submit("linux/amd64", "")
	ctx, cancel := context.WithCancel(t.Context())
	r.opts.Queue = claimer(func(ctx context.Context) (*queue.Claim, error) {
		defer cancel()
		return r.queue.Claim(ctx)
	})
	worker.New(r.opts).Run(ctx, time.Hour)
	if got, err := r.queue.Get(t.Context(), b.ID); err != nil || got.State != build.Queued {
		t.Errorf("record %+v, %v", got, err)
	}
}

// A queue that fails is asked again, but not all the time.
func TestBrokenQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 9500*time.Millisecond)
		defer cancel()
		var operator safeBuffer
		asked := 0
		worker.New(worker.Options{
			Queue: claimer(func(context.Context) (*queue.Claim, error) {
				asked++
				return nil, errors.New("no disk")
			}),
			Log:         slog.New(slog.NewTextHandler(&operator, nil)),
			Concurrency: 1,
		}).Run(ctx, time.Hour)
		if said := strings.Count(operator.String(), "no disk"); asked != 4 || said != 4 {
			t.Errorf("asked %d times in ten seconds, told the operator %d times", asked, said)
		}
	})
}
