package stdlib_test

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/monochromegane/cargo/executor/containerd"
	"github.com/monochromegane/cargo/executor/executortest"
	"github.com/monochromegane/cargo/stdlib"
)

// require skips the test where something is missing, or fails it where
// CARGO_TEST_REQUIRE names it.
func require(t *testing.T, what string, missing error) {
	t.Helper()
	switch {
	case missing == nil:
	case slices.Contains(strings.Split(os.Getenv("CARGO_TEST_REQUIRE"), ","), what):
		t.Fatalf("%s is required: %v", what, missing)
	default:
		t.Skipf("no %s here: %v", what, missing)
	}
}

// The images that there are say what they are, or that they cannot.
func TestInspectRealImages(t *testing.T) {
	builder, err := filepath.Abs("../bin/builder.tar")
	if err == nil {
		_, err = os.Stat(builder)
	}
	require(t, "builder-image", err)
	e, err := containerd.New(containerd.Options{Namespace: "cargo-test", Owner: "stdlib-" + rand.Text()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}()
	_, err = e.Ping(t.Context())
	require(t, "containerd", err)

	inspect := func(archive string) (stdlib.Toolchain, error) {
		image, err := e.EnsureImage(t.Context(), archive, nil)
		if err != nil {
			t.Fatal(err)
		}
		return stdlib.Inspect(t.Context(), e, image.Ref)
	}
	toolchain, err := inspect(builder)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(toolchain.Version), "go1.") {
		t.Errorf("version %q", toolchain.Version)
	}
	if p := toolchain.Platform("linux", "amd64"); p.Variant != "GOAMD64=v1" {
		t.Errorf("linux/amd64 is %v", p)
	}
	_, err = inspect(executortest.Archive(t)) // busybox
	if err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("an image without go: %v", errors.Unwrap(err))
	}
}
