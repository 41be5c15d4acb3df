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

// So it does without unpacked modules: they come through the door.
func TestBuildWithoutModules(t *testing.T) {
	r := newRig(t, map[string]string{
		"go.mod":  "module git.test/me/app\n\ngo 1.22\n\nrequire example.com/m v1.0.0\n",
		"go.sum":  "example.com/m v1.0.0 h1:" + strings.Repeat("A", 43) + "=\n",
		"main.go": "package main\n\nfunc main() {}\n",
	}, makes("/go/out/app"))
	r.must(os.RemoveAll(filepath.Join(r.data, "modules")))
	if b, _ := r.run(); b.State != build.Succeeded {
		t.Errorf("%s %s: %s", b.State, b.Reason, b.Message)
	}
	if said := r.operator.String(); strings.Count(said, "goes without unpacked modules") != 1 {
		t.Errorf("the operator hears:\n%s", said)
	}
}
