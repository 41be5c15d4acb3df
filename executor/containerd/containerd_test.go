package containerd_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/containerd"
	"github.com/monochromegane/cargo/executor/executortest"
)

// testNamespace keeps the tests apart from a Cargo on the same host.
const testNamespace = "cargo-test"

func TestExecutor(t *testing.T) {
	address := daemon(t)
	executortest.Test(t, func(t *testing.T, owner string) executortest.Harness {
		return harness(t, address, owner)
	})
}

func TestProbeFiles(t *testing.T) {
	address := daemon(t)
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	executortest.TestProbeFiles(t, func(t *testing.T, owner string) executortest.Harness { return harness(t, address, owner) })
}

// In containerd's own mount namespace it takes no container.
func TestProbeFilesHere(t *testing.T) {
	daemon(t)
	e := open(t, containerd.Options{Owner: "no-container"})
	if err := e.ProbeFiles(t.Context(), executor.Image{Ref: "none"}, t.TempDir()); err != nil {
		t.Error(err)
	}
}

// daemon returns the address of the machine's containerd, and skips the test
// if there is none.
func daemon(t testing.TB) string {
	t.Helper()
	e, err := containerd.New(containerd.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if _, err := e.Ping(t.Context()); err != nil {
		need(t, err)
	}
	return containerd.DefaultAddress
}

// need skips the test, or fails it where containerd is required.
func need(t testing.TB, why error) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("CARGO_TEST_REQUIRE"), ","), "containerd") {
		t.Fatal(why)
	}
	t.Skip(why)
}

func harness(t *testing.T, address, owner string) executortest.Harness {
	t.Helper()
	e, img := ready(t, containerd.Options{Address: address, Owner: owner})
	return executortest.Harness{
		Executor:  e,
		Image:     img,
		Leftovers: func(t *testing.T) []string { return leftovers(t, address, filepath.Dir(address), owner) },
	}
}

// ready is an executor that holds the test image.
func ready(t testing.TB, o containerd.Options) (*containerd.Executor, executor.Image) {
	t.Helper()
	e := open(t, o)
	img, err := e.EnsureImage(t.Context(), executortest.Archive(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	return e, img
}

func open(t testing.TB, o containerd.Options) *containerd.Executor {
	t.Helper()
	o.Namespace = testNamespace
	e, err := containerd.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// BenchmarkRun is what a container costs: its command does nothing.
func BenchmarkRun(b *testing.B) {
	address := daemon(b)
	e, img := ready(b, containerd.Options{Address: address, Owner: "benchmark"})
	step := executor.Step{ID: "true", Image: img.Ref, Args: []string{"true"}}
	for b.Loop() {
		if err := e.Run(b.Context(), step); err != nil {
			b.Fatal(err)
		}
	}
}
