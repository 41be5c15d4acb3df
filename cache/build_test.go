package cache_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/monochromegane/cargo/cache"
)

// user is whom the build runs as, where the test runs as root: the owner of
// the layers' files must not matter to it.
const user = 1000

// A host is where the go command runs in a GOCACHE made of layers, as a build
// does.
type host struct {
	*testing.T
	cache *cache.Cache
	root  bool
	dir   string // of the module
}

func newHost(t *testing.T) *host {
	t.Helper()
	if testing.Short() {
		t.Skip("compiles the runtime")
	}
	h := &host{T: t, root: os.Geteuid() == 0, dir: t.TempDir()}
	o := cache.Options{Dir: t.TempDir()}
	if h.root {
		o.UID, o.GID = user, user
		must(t, os.Chmod(filepath.Dir(h.dir), 0o755))
	}
	h.cache = open(t, o)
	h.write("go.mod", "module example.com/app\n\ngo 1.26\n")
	must(t, os.Mkdir(filepath.Join(h.dir, "lib"), 0o755))
	h.write("lib/lib.go", "package lib\n\nfunc Text() string { return `one` }\n")
	h.write("main.go", "package main\n\nimport `example.com/app/lib`\n\nfunc main() { println(lib.Text()) }\n")
	return h
}

func (h *host) write(name, text string) { write(h.T, filepath.Join(h.dir, name), text) }

func (h *host) own(dir string) {
	if h.root {
		must(h.T, os.Chown(dir, user, user))
	}
}

// build runs go build -v above the layers of classes and returns the packages
// that it compiled, and the upper directory.
func (h *host) build(pkg string, classes ...cache.Class) (compiled []string, upper string) {
	h.Helper()
	l := lease(h.T, h.cache, classes...)
	defer l.Release()
	disk := h.TempDir()
	must(h.T, os.Chmod(filepath.Dir(disk), 0o755))
	upper = filepath.Join(disk, "upper")
	gocache := upper
	for _, name := range []string{"upper", "work", "merged", "home", "tmp"} {
		must(h.T, os.Mkdir(filepath.Join(disk, name), 0o755))
		h.own(filepath.Join(disk, name))
	}
	must(h.T, h.cache.Prime(upper))
	if h.root {
		gocache = filepath.Join(disk, "merged")
		options := "lowerdir=" + strings.Join(l.Layers(), ":") + ",upperdir=" + upper + ",workdir=" + filepath.Join(disk, "work")
		must(h.T, unix.Mount("overlay", gocache, "overlay", 0, options))
		defer func() { must(h.T, unix.Unmount(gocache, 0)) }()
	} else {
		for _, layer := range slices.Backward(l.Layers()) {
			must(h.T, exec.CommandContext(h.Context(), "cp", "-rf", "--preserve=timestamps", layer+"/.", upper).Run())
		}
	}
	cmd := exec.CommandContext(h.Context(), "go", "build", "-v", "-trimpath", "-o", filepath.Join(disk, "home", "app"), pkg)
	cmd.Dir = h.dir
	cmd.Env = append(os.Environ(), "GOCACHE="+gocache, "HOME="+filepath.Join(disk, "home"), "TMPDIR="+filepath.Join(disk, "tmp"),
		"GOFLAGS=", "GOPROXY=off", "GOTOOLCHAIN=local", "GOWORK=off", "GOTELEMETRY=off", "CGO_ENABLED=0", "GOENV=off")
	if h.root {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		h.Skip(err)
	}
	if err != nil {
		h.Fatalf("go build: %v\n%s", err, out)
	}
	return strings.Fields(string(out)), upper
}

func (h *host) append(class cache.Class, upper string) cache.Sealed {
	h.Helper()
	sealed, err := h.cache.Append(h.Context(), class, upper)
	if err != nil {
		h.Fatal(err)
	}
	return sealed
}

func TestGoBuildFindsWhatOthersCompiled(t *testing.T) {
	h := newHost(t)
	compiled, upper := h.build("internal/bytealg", std, shared)
	if !slices.Contains(compiled, "internal/bytealg") {
		t.Fatalf("compiled %v", compiled)
	}
	if sealed := h.append(std, upper); sealed.Skipped > 0 {
		t.Errorf("of an honest build: %+v", sealed)
	}
	compiled, upper = h.build(".", shared, std)
	if !slices.Contains(compiled, "runtime") || slices.Contains(compiled, "internal/bytealg") {
		t.Errorf("above the standard library: compiled %v", compiled)
	}
	if sealed := h.append(shared, upper); sealed.Skipped > 0 || sealed.Files == 0 {
		t.Errorf("of an honest build: %+v", sealed)
	}

	compiled, upper = h.build(".", shared, std)
	if len(compiled) > 0 {
		t.Errorf("above what it compiled itself: compiled %v", compiled)
	}
	if h.root {
		h.nothingCopiedUp(upper, shared, std)
	}
	h.append(shared, upper)

	h.write("lib/lib.go", "package lib\n\nfunc Text() string { return `two` }\n")
	compiled, upper = h.build(".", shared, std)
	if want := []string{"example.com/app/lib", "example.com/app"}; !slices.Equal(compiled, want) {
		t.Errorf("after a change: compiled %v, want %v", compiled, want)
	}
	h.append(shared, upper)
	if compiled, _ = h.build(".", shared, std); len(compiled) > 0 {
		t.Errorf("of the same again: compiled %v", compiled)
	}
}

// nothingCopiedUp fails the test where a build wrote to outputs that lay
// beneath it, be it only a time. The action of the link is written each time.
func (h *host) nothingCopiedUp(upper string, classes ...cache.Class) {
	h.Helper()
	all := files(h.T, upper)
	if len(all) > 8 {
		h.Errorf("a build that had everything wrote %v", all)
	}
	actions := 0
	for _, layer := range lease(h.T, h.cache, classes...).Layers() {
		for _, path := range all {
			_, err := os.Lstat(filepath.Join(layer, strings.TrimPrefix(path, upper)))
			switch {
			case err != nil:
			case strings.HasSuffix(path, "-a"):
				actions++
			default:
				h.Errorf("%s was copied from %s", path, layer)
			}
		}
	}
	if actions > 1 {
		h.Errorf("%d actions of lower layers were written: %v", actions, all)
	}
}

func files(t *testing.T, dir string) (all []string) {
	t.Helper()
	for _, name := range names(t, dir) {
		path := filepath.Join(dir, name)
		if info, err := os.Lstat(path); err == nil && info.IsDir() {
			all = append(all, files(t, path)...)
		} else {
			all = append(all, path)
		}
	}
	return all
}
