package stdlib_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/monochromegane/cargo/cache"
	"github.com/monochromegane/cargo/disk"
	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/executortest"
	"github.com/monochromegane/cargo/stdlib"
)

// A fraction of a platform's library.
type told struct {
	platform string
	fraction float64
}

// A recorder is Metrics that a test waits for.
type recorder chan told

func (r recorder) LibraryPrepared(goos, goarch string, fraction float64) {
	r <- told{goos + "/" + goarch, fraction}
}

// compile plays the go command: it compiles one package, but for plan9.
func compile(_ context.Context, p executortest.Process) error {
	if slices.Contains(p.Env, "GOOS=plan9") {
		return &executor.ExitError{Code: 1}
	}
	if slices.Contains(p.Args, "list") {
		return nil
	}
	content := []byte("a package")
	output, action := sha256.Sum256(content), sha256.Sum256([]byte(fmt.Sprint(p.Env)))
	entry := fmt.Sprintf("v1 %x %x %20d %20d\n", action, output, len(content), 1)
	write := func(id [sha256.Size]byte, kind, text string) error {
		name := p.Path(fmt.Sprintf("/go/cache/%02x/%x-%s", id[0], id, kind))
		return errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644))
	}
	return errors.Join(write(output, "d", string(content)), write(action, "a", entry))
}

// A library that was evicted is prepared again when it is wanted again; one that
// cannot be compiled is tried once.
func TestWant(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give a workspace to the build user")
	}
	dir := t.TempDir()
	packages, err := cache.Open(cache.Options{Dir: filepath.Join(dir, "packages"), UID: executor.HostUID, GID: executor.HostUID})
	if err != nil {
		t.Fatal(err)
	}
	disks, err := disk.Open(t.Context(), disk.Options{Dir: filepath.Join(dir, "disks"), Kind: disk.Watch})
	if err != nil {
		t.Fatal(err)
	}
	fake := &executortest.Fake{Script: compile, Images: []string{"builder"}}
	metrics := make(recorder, 100)
	l := stdlib.New(stdlib.Options{
		Executor: fake, Image: "builder", Toolchain: stdlib.Toolchain{Version: "go1.26.8"}, Cache: packages, Disks: disks,
		Metrics: metrics, Log: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { l.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	wait := func(want told) {
		t.Helper()
		for got := range metrics {
			if got == want {
				return
			}
		}
	}
	linux := cache.Platform{GOOS: "linux", GOARCH: "amd64"}
	for round := 1; round <= 2; round++ {
		l.Want(cache.Platform{GOOS: "plan9", GOARCH: "386"})
		l.Want(linux)
		l.Want(linux)
		wait(told{"linux/amd64", 1})
		if want := 1 + 2*round; len(fake.Steps()) != want { // plan9 once; list and build for each round
			t.Fatalf("%d steps in round %d, want %d", len(fake.Steps()), round, want)
		}
		// Prune keeps what is in use, as it is while it is being tidied.
		for packages.Has(cache.Standard("go1.26.8", linux)) {
			if _, err := packages.Prune(ctx, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
}
