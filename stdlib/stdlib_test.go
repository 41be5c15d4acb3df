package stdlib_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/monochromegane/cargo/cache"
	"github.com/monochromegane/cargo/disk"
	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/executortest"
	"github.com/monochromegane/cargo/stdlib"
)

// A rig is a Library whose go command is played, and what it left and said.
type rig struct {
	*testing.T
	stdlib.Options
	library *stdlib.Library
	fake    *executortest.Fake
	work    string // where the disks are
	log     bytes.Buffer

	mu     sync.Mutex
	told   []string           // platform and fraction
	before map[string]float64 // the last fraction of each
}

// A goCommand plays go build -v std.
type goCommand func(ctx context.Context, p executortest.Process) error

// packages are what go list std says here.
var packages = []string{"errors", "internal/abi", "runtime", "unsafe"}

func newRig(t *testing.T, build goCommand, o cache.Options) *rig {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to give files to the build user")
	}
	r := &rig{T: t, work: filepath.Join(t.TempDir(), "work"), before: map[string]float64{}}
	o.Dir = t.TempDir()
	packagesKept, err := cache.Open(o)
	r.must(err)
	disks, err := disk.Open(t.Context(), disk.Options{Dir: r.work, Kind: disk.Watch})
	r.must(err)
	r.fake = &executortest.Fake{Script: func(ctx context.Context, p executortest.Process) error {
		if p.Args[1] == "list" {
			_, err := fmt.Fprintln(p.Stdout, strings.Join(packages, "\n"))
			return err
		}
		return build(ctx, p)
	}}
	r.Options = stdlib.Options{
		Executor: r.fake, Image: "builder", Toolchain: stdlib.Toolchain{Version: "go1.26.8"}, Cache: packagesKept, Disks: disks,
		Metrics: r, Log: slog.New(slog.NewTextHandler(&r.log, nil)),
	}
	r.library = stdlib.New(r.Options)
	t.Cleanup(func() {
		left, err := os.ReadDir(r.work)
		if err != nil || len(left) > 0 {
			t.Errorf("left in the workspace: %v, %v", left, err)
		}
	})
	return r
}

func (r *rig) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

// LibraryPrepared implements [stdlib.Metrics].
func (r *rig) LibraryPrepared(goos, goarch string, fraction float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := goos + "/" + goarch
	if fraction != 0 && fraction < r.before[p] || fraction < 0 || fraction > 1 {
		r.Errorf("%s: %v after %v", p, fraction, r.before[p])
	}
	r.before[p] = fraction
	r.told = append(r.told, fmt.Sprintf("%s %.2f", p, fraction))
}

// builds counts how often each platform was compiled.
func (r *rig) builds() map[string]int {
	n := map[string]int{}
	for _, s := range r.fake.Steps() {
		if slices.Contains(s.Args, "-trimpath") {
			n[env(s, "GOOS")+"/"+env(s, "GOARCH")]++
		}
	}
	return n
}

func env(s executor.Step, name string) (value string) {
	for _, e := range s.Env {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			value = v
		}
	}
	return value
}

// compile leaves an entry of the target in the cache, and names every package.
func compile(_ context.Context, p executortest.Process) error {
	of := fmt.Sprint(p.Args, env(p.Step, "GOOS"), env(p.Step, "GOARCH"))
	action, output := sha256.Sum256([]byte(of)), sha256.Sum256([]byte("compiled"))
	for name, text := range map[string]string{
		fmt.Sprintf("%x-a", action): fmt.Sprintf("v1 %x %x %20d %20d\n", action, output, len("compiled"), 1),
		fmt.Sprintf("%x-d", output): "compiled",
	} {
		name = p.Path(filepath.Join(env(p.Step, "GOCACHE"), name[:2], name))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(p.Stderr, strings.Join(packages[:3], "\n")) // unsafe is never compiled
	return err
}

func breaks(_ context.Context, p executortest.Process) error {
	fmt.Fprint(p.Stderr, "errors\n# runtime\nasm.s:1: undefin", "ed: x")
	return &executor.ExitError{Code: 1}
}

var (
	linux   = cache.Platform{GOOS: "linux", GOARCH: "amd64", Variant: "GOAMD64=v1"}
	windows = cache.Platform{GOOS: "windows", GOARCH: "amd64", Variant: "GOAMD64=v1"}
)

func (r *rig) has(p cache.Platform) bool { return r.Cache.Has(cache.Standard(r.Toolchain.Version, p)) }

func TestPrepare(t *testing.T) {
	r := newRig(t, compile, cache.Options{})
	r.Limits = executor.Limits{CPUs: 1.5, Memory: 1 << 30}
	r.library = stdlib.New(r.Options)
	for range 2 { // the second time it is there
		r.must(r.library.Prepare(t.Context(), windows, false))
	}
	if !r.has(windows) || r.has(linux) {
		t.Errorf("has windows: %t, linux: %t", r.has(windows), r.has(linux))
	}
	want := []string{"windows/amd64 0.25", "windows/amd64 0.50", "windows/amd64 0.75", "windows/amd64 1.00", "windows/amd64 1.00"}
	if !slices.Equal(r.told, want) {
		t.Errorf("told %q, want %q", r.told, want)
	}
	var commands []string
	for _, s := range r.fake.Steps() {
		commands = append(commands, strings.Join(s.Args, " "))
		for name, want := range map[string]string{"GOOS": "windows", "GOARCH": "amd64", "CGO_ENABLED": "0", "GOMAXPROCS": "2", "GOPROXY": "off", "TMPDIR": "/go/tmp"} {
			if got := env(s, name); got != want {
				t.Errorf("%s=%q, want %q", name, got, want)
			}
		}
		if s.Image != "builder" || s.Limits != r.Limits || s.Door != nil || s.Background {
			t.Errorf("step %+v", s)
		}
	}
	if want := []string{"go list std", "go build -v -trimpath std"}; !slices.Equal(commands, want) {
		t.Errorf("commands %q, want %q", commands, want)
	}
	if log := r.log.String(); strings.Count(log, "standard library prepared") != 1 || !strings.Contains(log, "files=2") {
		t.Errorf("log: %s", log)
	}
}

func TestPrepareFails(t *testing.T) {
	gone := errors.New("the server stops")
	for name, tc := range map[string]struct {
		build goCommand
		cache cache.Options
		want  []string
		is    error
	}{
		"compile": {build: breaks, want: []string{"go build -v -trimpath std: exit status 1: # runtime\nasm.s:1: undefined: x"}},
		"much output": {build: func(_ context.Context, p executortest.Process) error {
			_, _ = p.Stderr.Write(bytes.Repeat([]byte("xxx\n"), 1<<18))
			return &executor.ExitError{Code: 1}
		}, want: []string{"exit status 1: xxx"}},
		"runtime":   {build: func(context.Context, executortest.Process) error { return executor.ErrUnavailable }, is: executor.ErrUnavailable},
		"too large": {build: compile, cache: cache.Options{Limit: 4096}, is: cache.ErrTooLarge, want: []string{"--cache-limit"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, tc.build, tc.cache)
			err := r.library.Prepare(t.Context(), linux, false)
			if err == nil || tc.is != nil && !errors.Is(err, tc.is) || len(err.Error()) > 8<<10 {
				t.Fatalf("Prepare = %.300v", err)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("Prepare = %v, want %q in it", err, want)
				}
			}
			if r.has(linux) {
				t.Error("something was kept")
			}
			if last := r.told[len(r.told)-1]; last != "linux/amd64 0.00" {
				t.Errorf("at last it is %s", last)
			}
		})
	}
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		r := newRig(t, func(ctx context.Context, _ executortest.Process) error { cancel(gone); <-ctx.Done(); return nil }, cache.Options{})
		if err := r.library.Prepare(ctx, linux, false); !errors.Is(err, gone) {
			t.Errorf("Prepare = %v, want %v", err, gone)
		}
	})
	t.Run("endless", func(t *testing.T) {
		r := newRig(t, func(ctx context.Context, _ executortest.Process) error { <-ctx.Done(); return nil }, cache.Options{})
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			err := r.library.Prepare(t.Context(), linux, true)
			if err == nil || !strings.Contains(err.Error(), "longer than") || time.Since(began) > time.Hour {
				t.Errorf("Prepare = %v after %v", err, time.Since(began))
			}
		})
	})
}

// Two servers, or one and a person, may prepare the same at the same time.
func TestPrepareBesidePrepare(t *testing.T) {
	var together sync.WaitGroup
	together.Add(2)
	r := newRig(t, func(ctx context.Context, p executortest.Process) error {
		if slices.Contains(p.Args, "-trimpath") {
			together.Done()
			together.Wait()
		}
		return compile(ctx, p)
	}, cache.Options{})
	quiet := r.Options
	quiet.Metrics = unmeasured{}
	quiet.Log = slog.New(slog.DiscardHandler)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if err := stdlib.New(quiet).Prepare(t.Context(), linux, false); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	list, err := r.Cache.List()
	if err != nil || len(list) != 1 || list[0].Files < 2 { // of one, or of both
		t.Errorf("kept %+v, %v", list, err)
	}
}

type unmeasured struct{}

func (unmeasured) LibraryPrepared(string, string, float64) {}

// bubble runs test where time is synctest's, with a Library that was made there.
func (r *rig) bubble(test func(t *testing.T)) {
	synctest.Test(r.T, func(t *testing.T) {
		r.library = stdlib.New(r.Options)
		test(t)
	})
}

// run starts Run and returns what stops it and waits for it.
// Its context is not the test's, which is made outside of the bubble.
func (r *rig) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { r.library.Run(ctx) })
	return func() { cancel(); wg.Wait() }
}

func TestRunInOrder(t *testing.T) {
	r := newRig(t, compile, cache.Options{})
	r.bubble(func(t *testing.T) {
		for _, p := range []cache.Platform{windows, linux, windows, linux} {
			r.library.Want(p)
		}
		defer r.run()()
		synctest.Wait()
		steps := r.fake.Steps()
		if len(steps) != 4 || env(steps[0], "GOOS") != "windows" || env(steps[2], "GOOS") != "linux" {
			t.Errorf("%d steps, builds %v", len(steps), r.builds())
		}
		for _, s := range steps {
			if !s.Background {
				t.Errorf("%q does not give way", s.Args)
			}
		}
		r.library.Want(linux)
		synctest.Wait()
		if n := len(r.fake.Steps()); n != 4 {
			t.Errorf("what is there was compiled again: %d steps", n)
		}
	})
}

// What cannot be compiled is tried again after an hour, if somebody asks then.
func TestFailureIsNotRetriedForEver(t *testing.T) {
	r := newRig(t, breaks, cache.Options{})
	r.bubble(func(t *testing.T) {
		defer r.run()()
		want := func(n int) {
			t.Helper()
			for range 3 {
				r.library.Want(linux)
				synctest.Wait()
			}
			if got := r.builds()["linux/amd64"]; got != n {
				t.Errorf("tried %d times, want %d", got, n)
			}
		}
		want(1)
		if log := r.log.String(); strings.Count(log, "level=WARN") != 1 || !strings.Contains(log, "undefined: x") {
			t.Errorf("log: %s", log)
		}
		time.Sleep(2 * time.Hour)
		want(2)
	})
}

// A library that was removed from the cache is prepared again.
func TestRemovedLibraryIsPreparedAgain(t *testing.T) {
	r := newRig(t, compile, cache.Options{})
	r.bubble(func(t *testing.T) {
		defer r.run()()
		r.library.Want(linux)
		synctest.Wait()
		if _, err := r.Cache.Prune(t.Context(), 0); err != nil || r.has(linux) {
			t.Fatalf("pruned: %v", err)
		}
		time.Sleep(2 * time.Hour)
		r.library.Want(linux)
		synctest.Wait()
		if n := r.builds()["linux/amd64"]; n != 2 || !r.has(linux) {
			t.Errorf("compiled %d times, there: %t", n, r.has(linux))
		}
	})
}

func TestRunStops(t *testing.T) {
	started := make(chan struct{})
	r := newRig(t, func(ctx context.Context, _ executortest.Process) error {
		close(started)
		<-ctx.Done()
		return nil
	}, cache.Options{})
	r.library.Want(windows)
	r.library.Want(linux)
	stop := r.run()
	<-started
	stop()
	if b := r.builds(); len(b) != 1 {
		t.Errorf("builds %v", b)
	}
	if strings.Contains(r.log.String(), "WARN") {
		t.Errorf("a stop is no failure: %s", r.log.String())
	}
}

const says = `{"GOVERSION": "go1.26.8", "GOAMD64": "v1", "GOARM64": "v8.0", "GO386": "", "GOARM": "7"}`

func TestInspect(t *testing.T) {
	answers := func(text string, err error) *executortest.Fake {
		return &executortest.Fake{Script: func(_ context.Context, p executortest.Process) error {
			_, _ = io.WriteString(p.Stdout, text)
			if err != nil {
				_, _ = io.WriteString(p.Stderr, "go: it is broken\n")
			}
			return err
		}}
	}
	tc, err := stdlib.Inspect(t.Context(), answers(says, nil), "builder")
	if err != nil || tc.Version != "go1.26.8" {
		t.Fatalf("%+v, %v", tc, err)
	}
	for target, want := range map[string]string{"linux/amd64": " GOAMD64=v1", "darwin/arm64": " GOARM64=v8.0", "linux/arm": " GOARM=7", "linux/386": "", "linux/s390x": ""} {
		goos, goarch, _ := strings.Cut(target, "/")
		if p := tc.Platform(goos, goarch); p.String() != target+want || p.Cgo {
			t.Errorf("%s: %v", target, p)
		}
	}
	for name, tc := range map[string]struct {
		fake *executortest.Fake
		want string
	}{
		"no go":      {&executortest.Fake{}, "executable file not found"},
		"no image":   {&executortest.Fake{Images: []string{}}, "no such image"},
		"broken":     {answers("", &executor.ExitError{Code: 2}), "exit status 2: go: it is broken"},
		"no JSON":    {answers("go version go1.2", nil), `says "go version go1.2" of itself`},
		"no version": {answers("{}", nil), "does not say its version"},
		"endless":    {answers(`{"GOVERSION": "`+strings.Repeat("1", 1<<20), nil), "of itself"},
	} {
		_, err := stdlib.Inspect(t.Context(), tc.fake, "builder")
		if err == nil || !strings.Contains(err.Error(), tc.want) || len(err.Error()) > 1000 {
			t.Errorf("%s: %.1000v, want %q", name, err, tc.want)
		}
	}
}
