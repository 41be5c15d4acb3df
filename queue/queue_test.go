package queue_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/queue"
)

func newBuild(version string) build.Build {
	return build.Build{
		ID: build.NewID(),
		Key: build.Key{
			Target: build.Target{
				Repository: build.Repository{Remote: "github.com", Owner: "o", Name: "r"},
				GOOS:       "linux", GOARCH: "amd64", Version: version,
			},
			Commit: strings.Repeat("a", 40), Image: "sha256:00",
		},
		Public: true,
	}
}

func open(t testing.TB, o queue.Options) *queue.Queue {
	t.Helper()
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	if o.Worker == "" {
		o.Worker = "w"
	}
	if strings.HasPrefix(t.Name(), "TestOnCluster/") {
		o.Cluster = sharedCluster(t).options(prefixOf(o.Dir))
	}
	openQueue := queue.Open
	if o.Cluster != nil {
		openQueue = openSoon
	}
	q, err := openQueue(within(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.Close() })
	return q
}

func reopen(t testing.TB, q *queue.Queue, o queue.Options) *queue.Queue {
	t.Helper()
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, o)
}

func submit(t testing.TB, q *queue.Queue, b build.Build, sealed []byte) build.Build {
	t.Helper()
	got, err := q.Submit(t.Context(), queue.Submission{Build: b, Sealed: sealed})
	if err != nil {
		t.Fatalf("Submit: %v", err)
	}
	return got
}

func claim(t testing.TB, q *queue.Queue) *queue.Claim {
	t.Helper()
	c, err := q.Claim(t.Context())
	if err != nil {
		t.Fatalf("Claim: %v", err)
	}
	return c
}

func finish(t testing.TB, c *queue.Claim, s build.State) {
	t.Helper()
	b := c.Build()
	b.State = s
	if err := c.Finish(t.Context(), b); err != nil {
		t.Fatalf("Finish: %v", err)
	}
}

func get(t testing.TB, q *queue.Queue, id build.ID) build.Build {
	t.Helper()
	b, err := q.Get(t.Context(), id)
	if err != nil {
		t.Fatalf("Get: %v", err)
	}
	return b
}

// within is what a test waits at most for something that must happen.
func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func idle(t testing.TB, q *queue.Queue) {
	t.Helper()
	if d, r := q.Depth(), q.Running(); d != 0 || r != 0 {
		t.Errorf("Depth, Running = %d, %d, want 0, 0", d, r)
	}
}

func TestLifeOfABuild(t *testing.T) {
	q := open(t, queue.Options{Dir: t.TempDir()})
	b := submit(t, q, newBuild("v1"), []byte("sealed"))
	if b.State != build.Queued || b.AcceptedAt.IsZero() || q.Depth() != 1 {
		t.Fatalf("submitted: %+v, depth %d", b, q.Depth())
	}
	waited := make(chan build.Build, 1)
	go func() {
		w, _ := q.Wait(context.Background(), b.ID)
		waited <- w
	}()

	c := claim(t, q)
	got := c.Build()
	if got.ID != b.ID || got.State != build.Running || got.StartedAt.IsZero() || got.Attempt != 1 || string(c.Sealed()) != "sealed" {
		t.Fatalf("claimed: %+v, sealed %q", got, c.Sealed())
	}
	if q.Depth() != 0 || q.Running() != 1 {
		t.Errorf("Depth, Running = %d, %d, want 0, 1", q.Depth(), q.Running())
	}
	code := 2
	got.State, got.Reason, got.ExitCode = build.Failed, build.ReasonExit, &code
	got.FinishedAt = got.StartedAt.Add(time.Second)
	got.Phases = []build.Phase{{Name: build.PhaseFetch, Seconds: 0.5}}
	if err := c.Finish(t.Context(), got); err != nil {
		t.Fatal(err)
	}
	select {
	case w := <-waited:
		if diff := cmp.Diff(got, w); diff != "" {
			t.Errorf("Wait (-want +got):\n%s", diff)
		}
	case <-within(t).Done():
		t.Fatal("Wait does not return")
	}
	if diff := cmp.Diff(got, get(t, q, b.ID)); diff != "" {
		t.Errorf("Get (-want +got):\n%s", diff)
	}
	if c.Context().Err() == nil {
		t.Error("the context of a finished claim has not ended")
	}
	idle(t, q)
}

func TestUnknownBuild(t *testing.T) {
	q := open(t, queue.Options{Dir: t.TempDir()})
	for _, id := range []build.ID{build.NewID(), "", "*", ">", "a b"} {
		if _, err := q.Get(t.Context(), id); !errors.Is(err, queue.ErrNotFound) {
			t.Errorf("Get(%q) = %v", id, err)
		}
		if _, err := q.Wait(t.Context(), id); !errors.Is(err, queue.ErrNotFound) {
			t.Errorf("Wait(%q) = %v", id, err)
		}
		if err := q.Cancel(t.Context(), id); !errors.Is(err, queue.ErrNotFound) {
			t.Errorf("Cancel(%q) = %v", id, err)
		}
		if id == "" {
			continue
		}
		if _, _, err := q.List(t.Context(), queue.Filter{After: id}); !errors.Is(err, queue.ErrNotFound) {
			t.Errorf("List(after %q) = %v", id, err)
		}
	}
}

func TestFiftyEqualSubmitsMakeOneBuild(t *testing.T) {
	q := open(t, queue.Options{Dir: t.TempDir(), Limit: 1}) // room for just one
	ids := make([]build.ID, 50)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			b, err := q.Submit(context.Background(), queue.Submission{Build: newBuild("v1"), Sealed: []byte("sealed")})
			if err != nil {
				t.Error(err)
			}
			ids[i] = b.ID
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("two builds of one key: %s and %s", ids[0], id)
		}
	}
	if q.Depth() != 1 {
		t.Errorf("Depth = %d, want 1", q.Depth())
	}
	c := claim(t, q)
	if b := submit(t, q, newBuild("v1"), nil); b.ID != ids[0] || b.State != build.Running {
		t.Errorf("Submit while it runs = %s, %s", b.ID, b.State)
	}
	finish(t, c, build.Succeeded)
	if b := submit(t, q, newBuild("v1"), nil); b.ID == ids[0] {
		t.Error("Submit after the end returned the ended build")
	}
}

func TestSubmitAgainWithTheSameID(t *testing.T) {
	q := open(t, queue.Options{Dir: t.TempDir()})
	b := newBuild("v1")
	submit(t, q, b, []byte("sealed"))
	if got := submit(t, q, b, []byte("sealed")); got.ID != b.ID || q.Depth() != 1 {
		t.Errorf("second Submit = %s, depth %d", got.ID, q.Depth())
	}
	c := claim(t, q)
	if string(c.Sealed()) != "sealed" {
		t.Errorf("Sealed = %q", c.Sealed())
	}
	finish(t, c, build.Succeeded)
	if got := submit(t, q, b, []byte("sealed")); got.State != build.Succeeded || q.Depth() != 0 {
		t.Errorf("Submit after the end = %s, depth %d", got.State, q.Depth())
	}
}

func TestFull(t *testing.T) {
	q := open(t, queue.Options{Dir: t.TempDir(), Limit: 5})
	var wg sync.WaitGroup
	var mu sync.Mutex
	accepted, full := 0, 0
	for i := range 20 {
		wg.Go(func() {
			_, err := q.Submit(context.Background(), queue.Submission{Build: newBuild(fmt.Sprint("v", i))})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				accepted++
			case errors.Is(err, queue.ErrFull):
				full++
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if accepted != 5 || full != 15 || q.Depth() != 5 {
		t.Errorf("accepted, full, depth = %d, %d, %d; want 5, 15, 5", accepted, full, q.Depth())
	}
	claim(t, q)
	submit(t, q, newBuild("room again"), nil)
}

func TestClaimsAreFirstInFirstOut(t *testing.T) {
	q := open(t, queue.Options{Dir: t.TempDir()})
	var want []build.ID
	for i := range 10 {
		want = append(want, submit(t, q, newBuild(fmt.Sprint("v", i)), nil).ID)
	}
	first := claim(t, q)
	if err := first.Requeue(t.Context()); err != nil { // goes back to its place
		t.Fatal(err)
	}
	var got []build.ID
	for range want {
		c := claim(t, q)
		got = append(got, c.Build().ID)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("order of claims (-want +got):\n%s", diff)
	}
}

func TestConcurrentClaimsNeverShareABuild(t *testing.T) {
	q := open(t, queue.Options{Dir: t.TempDir()})
	const n = 60
	var mu sync.Mutex
	seen := map[build.ID]bool{}
	ctx, stop := context.WithCancel(within(t))
	defer stop()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				c, err := q.Claim(ctx)
				if err != nil {
					return
				}
				b := c.Build()
				mu.Lock()
				if seen[b.ID] {
					t.Errorf("build %s claimed twice", b.ID)
				}
				seen[b.ID] = true
				last := len(seen) == n
				mu.Unlock()
				b.State = build.Succeeded
				if err := c.Finish(context.Background(), b); err != nil {
					t.Error(err)
				}
				if last {
					stop()
				}
			}
		})
	}
	for i := range n {
		submit(t, q, newBuild(fmt.Sprint("v", i)), nil)
	}
	wg.Wait()
	if len(seen) != n {
		t.Errorf("%d of %d builds claimed", len(seen), n)
	}
	idle(t, q)
}

func TestClaimWaitsForASubmit(t *testing.T) {
	q := open(t, queue.Options{Dir: t.TempDir()})
	got := make(chan build.ID)
	go func() {
		c, err := q.Claim(context.Background())
		if err != nil {
			t.Error(err)
			close(got)
			return
		}
		got <- c.Build().ID
	}()
	b := submit(t, q, newBuild("v1"), nil)
	if id := <-got; id != b.ID {
		t.Errorf("claimed %s, want %s", id, b.ID)
	}
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := q.Claim(ctx); !errors.Is(err, cause) {
		t.Errorf("Claim with an ended context = %v", err)
	}
}

func TestCancel(t *testing.T) {
	dir := t.TempDir()
	q := open(t, queue.Options{Dir: dir})

	queued := submit(t, q, newBuild("queued"), []byte("sealed"))
	if err := q.Cancel(t.Context(), queued.ID); err != nil {
		t.Fatal(err)
	}
	if b := get(t, q, queued.ID); b.State != build.Canceled || b.FinishedAt.IsZero() {
		t.Errorf("canceled while queued: %+v", b)
	}
	if err := q.Cancel(t.Context(), queued.ID); !errors.Is(err, queue.ErrEnded) {
		t.Errorf("second Cancel = %v, want ErrEnded", err)
	}

	running := submit(t, q, newBuild("running"), nil)
	c := claim(t, q)
	for range 2 { // asking twice is no error
		if err := q.Cancel(t.Context(), running.ID); err != nil {
			t.Fatal(err)
		}
	}
	<-c.Context().Done()
	if cause := context.Cause(c.Context()); !errors.Is(cause, queue.ErrCanceled) {
		t.Errorf("cause = %v, want ErrCanceled", cause)
	}
	if b := get(t, q, running.ID); b.State != build.Running {
		t.Errorf("canceled, not finished yet: %s", b.State)
	}
	finish(t, c, build.Canceled)
	if b := get(t, q, running.ID); b.State != build.Canceled {
		t.Errorf("finished as canceled: %s", b.State)
	}

	given := submit(t, q, newBuild("given back"), nil)
	c = claim(t, q)
	if err := q.Cancel(t.Context(), given.ID); err != nil {
		t.Fatal(err)
	}
	if err := c.Requeue(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b := get(t, q, given.ID); b.State != build.Canceled {
		t.Errorf("requeued after Cancel: %s", b.State)
	}

	orphan := submit(t, q, newBuild("worker dies"), nil)
	claim(t, q)
	if err := q.Cancel(t.Context(), orphan.ID); err != nil {
		t.Fatal(err)
	}
	q = reopen(t, q, queue.Options{Dir: dir})
	if n, err := q.Recover(t.Context()); n != 1 || err != nil {
		t.Fatalf("Recover = %d, %v", n, err)
	}
	if b := get(t, q, orphan.ID); b.State != build.Canceled {
		t.Errorf("canceled, then its worker died: %s", b.State)
	}
	idle(t, q)
}

func TestRecoverLeavesClaimsOfThisProcess(t *testing.T) {
	q := open(t, queue.Options{Dir: t.TempDir()})
	submit(t, q, newBuild("v1"), nil)
	c := claim(t, q)
	if n, err := q.Recover(t.Context()); n != 0 || err != nil {
		t.Errorf("Recover = %d, %v; want 0", n, err)
	}
	finish(t, c, build.Succeeded)
}

func TestWorkerDiesThreeTimes(t *testing.T) {
	dir := t.TempDir()
	q := open(t, queue.Options{Dir: dir})
	b := submit(t, q, newBuild("v1"), []byte("sealed"))
	if err := claim(t, q).Requeue(t.Context()); err != nil { // not counted
		t.Fatal(err)
	}
	for i := range 3 {
		c := claim(t, q)
		if got := c.Build(); got.ID != b.ID || got.Attempt != i+2 || string(c.Sealed()) != "sealed" {
			t.Fatalf("claim %d: %+v, sealed %q", i, got, c.Sealed())
		}
		q = reopen(t, q, queue.Options{Dir: dir})
		if !errors.Is(context.Cause(c.Context()), queue.ErrClosed) {
			t.Errorf("cause after Close = %v", context.Cause(c.Context()))
		}
		if n, err := q.Recover(t.Context()); n != 1 || err != nil {
			t.Fatalf("Recover = %d, %v", n, err)
		}
	}
	if got := get(t, q, b.ID); got.State != build.Failed || got.Reason != build.ReasonLost || !strings.Contains(got.Message, "by POST") || got.FinishedAt.IsZero() {
		t.Errorf("after three lost workers: %+v", got)
	}
	idle(t, q)
}

func TestLeaseOfAnotherWorkerRunsOut(t *testing.T) {
	dir := t.TempDir()
	q := open(t, queue.Options{Dir: dir, Worker: "a"})
	b := submit(t, q, newBuild("v1"), nil)
	claim(t, q)

	const lease = 800 * time.Millisecond
	began := time.Now()
	q = reopen(t, q, queue.Options{Dir: dir, Worker: "b", Lease: lease})
	c, err := q.Claim(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < lease {
		t.Errorf("claimed after %s, before the lease of %s was over", took, lease)
	}
	if got := c.Build(); got.ID != b.ID || got.Attempt != 2 {
		t.Errorf("claimed %+v", got)
	}
	finish(t, c, build.Succeeded)
}

// The names of workers change, and who ran on this directory is dead.
func TestRecoverTakesAllOfTheDirectory(t *testing.T) {
	dir := t.TempDir()
	q := open(t, queue.Options{Dir: dir, Worker: "former"})
	b := submit(t, q, newBuild("v1"), nil)
	claim(t, q)
	q = reopen(t, q, queue.Options{Dir: dir, Worker: "now"})
	if n, err := q.Recover(t.Context()); n != 1 || err != nil {
		t.Fatalf("Recover = %d, %v", n, err)
	}
	if c := claim(t, q); c.Build().ID != b.ID || c.Build().Attempt != 2 {
		t.Errorf("claimed %+v", c.Build())
	}
}

func TestCloseEndsWaitsAndClaims(t *testing.T) {
	q := open(t, queue.Options{Dir: t.TempDir()})
	b := submit(t, q, newBuild("v1"), nil)
	c := claim(t, q)
	errs := make(chan error, 2)
	go func() { _, err := q.Wait(context.Background(), b.ID); errs <- err }()
	go func() { _, err := q.Claim(context.Background()); errs <- err }()
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-errs; !errors.Is(err, queue.ErrClosed) {
			t.Errorf("after Close: %v, want ErrClosed", err)
		}
	}
	done := c.Build()
	done.State = build.Succeeded
	if err := c.Finish(t.Context(), done); !errors.Is(err, queue.ErrClosed) {
		t.Errorf("Finish after Close = %v, want ErrClosed", err)
	}
	if _, err := q.Submit(t.Context(), queue.Submission{Build: newBuild("v2")}); !errors.Is(err, queue.ErrClosed) {
		t.Errorf("Submit after Close = %v, want ErrClosed", err)
	}
}

func TestList(t *testing.T) {
	q := open(t, queue.Options{Dir: t.TempDir()})
	var newest []build.Build // as List must give them
	add := func(version string, public bool, s build.State) {
		b := newBuild(version)
		b.Public = public
		b = submit(t, q, b, nil)
		if s.Ended() {
			finish(t, claim(t, q), s)
		}
		newest = append([]build.Build{get(t, q, b.ID)}, newest...)
	}
	for i := range 30 {
		add(fmt.Sprint("v", i), i%3 != 0, []build.State{build.Succeeded, build.Failed}[i%2])
	}
	add("w1", true, build.Queued)
	add("w2", false, build.Queued)

	for _, f := range []queue.Filter{
		{}, {Limit: 1}, {Limit: 7}, {PublicOnly: true, Limit: 4}, {State: build.Failed, Limit: 3},
		{State: build.Queued}, {State: build.Queued, PublicOnly: true}, {State: build.Canceled},
	} {
		var want, got []build.Build
		for _, b := range newest {
			if (f.State == "" || b.State == f.State) && (b.Public || !f.PublicOnly) {
				want = append(want, b)
			}
		}
		for more := true; more; {
			page, m, err := q.List(t.Context(), f)
			if err != nil {
				t.Fatal(err)
			}
			if m && len(page) != f.Limit {
				t.Errorf("%+v: page of %d, and more", f, len(page))
			}
			if more = m; m {
				f.After = page[len(page)-1].ID
			}
			got = append(got, page...)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", f, diff)
		}
	}
}

func TestRestartKeepsEverything(t *testing.T) {
	dir := t.TempDir()
	q := open(t, queue.Options{Dir: dir})
	ended := submit(t, q, newBuild("ended"), nil)
	finish(t, claim(t, q), build.Succeeded)
	var queued []build.Build
	for i := range 5 {
		queued = append(queued, submit(t, q, newBuild(fmt.Sprint("v", i)), []byte("sealed")))
	}
	q = reopen(t, q, queue.Options{Dir: dir})
	if b := get(t, q, ended.ID); b.State != build.Succeeded {
		t.Errorf("ended build: %s", b.State)
	}
	if again := submit(t, q, newBuild("v3"), nil); again.ID != queued[3].ID {
		t.Errorf("the key of a queued build is forgotten")
	}
	for _, b := range queued {
		c := claim(t, q)
		if c.Build().ID != b.ID || string(c.Sealed()) != "sealed" {
			t.Errorf("claimed %s, want %s; sealed %q", c.Build().ID, b.ID, c.Sealed())
		}
		finish(t, c, build.Succeeded)
	}
	idle(t, q)
}

// A sealed token is on disk while its build lives, and not after.
func TestFinishWipesTheSealedToken(t *testing.T) {
	for _, end := range []string{"finish", "cancel", "lost"} {
		t.Run(end, func(t *testing.T) {
			dir := t.TempDir()
			q := open(t, queue.Options{Dir: dir})
			token := "sealed-" + string(build.NewID())
			b := submit(t, q, newBuild("v1"), []byte(token))
			submit(t, q, newBuild("v2"), []byte("another"))
			if !onDisk(t, dir, token) {
				t.Fatal("the token of a queued build is not on disk")
			}
			switch end {
			case "finish":
				finish(t, claim(t, q), build.Succeeded)
			case "cancel":
				if err := q.Cancel(t.Context(), b.ID); err != nil {
					t.Fatal(err)
				}
			case "lost":
				for range 3 {
					claim(t, q)
					q = reopen(t, q, queue.Options{Dir: dir})
					if _, err := q.Recover(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
			}
			if onDisk(t, dir, token) {
				t.Error("the token of an ended build is still on disk")
			}
			if !onDisk(t, dir, "another") {
				t.Error("the token of a live build is gone")
			}
		})
	}
}

func onDisk(t *testing.T, dir, s string) bool {
	t.Helper()
	found := false
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		found = found || strings.Contains(string(data), s)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	q := open(t, queue.Options{Dir: t.TempDir()})
	_ = q.Close()

	dir := t.TempDir()
	open(t, queue.Options{Dir: dir})
	if _, err := queue.Open(t.Context(), queue.Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("Open of a directory in use = %v", err)
	}

	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := queue.Open(t.Context(), queue.Options{Dir: file}); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("Open of a file = %v", err)
	}

	blocked := t.TempDir() // the store itself cannot be made
	if err := os.WriteFile(filepath.Join(blocked, "jetstream"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := queue.Open(t.Context(), queue.Options{Dir: blocked}); err == nil || !strings.Contains(err.Error(), blocked) {
		t.Errorf("Open where the store cannot be made = %v", err)
	} else {
		t.Log(err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := queue.Open(ctx, queue.Options{Dir: t.TempDir()}); !errors.Is(err, context.Canceled) {
		t.Errorf("Open with an ended context = %v", err)
	}
}

// needs skips the test if a program is missing, unless it is required.
func needs(t testing.TB, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		if strings.Contains(","+os.Getenv("CARGO_TEST_REQUIRE")+",", ","+program+",") {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}
