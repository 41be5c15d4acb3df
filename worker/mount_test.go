package worker_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/monochromegane/cargo/build"
)

// What is cached makes builds fast. That it cannot be had fails none.
func TestBuildWithoutCache(t *testing.T) {
	r := newRig(t, hello, makes("/go/out/app"))
	r.must(os.RemoveAll(filepath.Join(r.data, "packages")))
	if b, _ := r.run(); b.State != build.Succeeded {
		t.Errorf("%s %s: %s", b.State, b.Reason, b.Message)
	}
	if said := r.operator.String(); strings.Count(said, "goes without compiled packages") != 1 || strings.Contains(said, "cannot keep") {
		t.Errorf("the operator hears:\n%s", said)
	}
}
