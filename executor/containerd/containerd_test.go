package containerd_test

import (
	"os"
	"slices"
	"strings"
	"testing"

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
	e := open(t, containerd.Options{Address: address, Owner: owner})
	img, err := e.EnsureImage(t.Context(), executortest.Archive(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	return executortest.Harness{
		Executor: e,
		Image:    img,
		Leftovers: func(t *testing.T) []string {
			return leftovers(t, address, owner)
		},
	}
}

func open(t *testing.T, o containerd.Options) *containerd.Executor {
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
