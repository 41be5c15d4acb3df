package modproxy_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/mod/sumdb/dirhash"

	"github.com/monochromegane/cargo/modproxy"
)

// usesLib is an app that needs what library has.
const usesLib = app + "\nrequire example.com/lib v1.1.0\n\nrequire example.com/Dep v0.3.0 // indirect\n"

// lines are a go.sum for modules of g, given as path@version.
func (g *registry) lines(t *testing.T, modules ...string) string {
	t.Helper()
	var b strings.Builder
	for _, m := range modules {
		path, version, _ := strings.Cut(m, "@")
		s, ok := g.sums[mv(path, version)]
		if !ok {
			t.Fatalf("there is no %s", m)
		}
		b.WriteString(s)
	}
	return b.String()
}

func needs(t *testing.T, gomod, gosum string) []modproxy.Module {
	t.Helper()
	n, err := modproxy.Needs([]byte(gomod), []byte(gosum))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func tree(t *testing.T, p *modproxy.Proxy, needs []modproxy.Module) *modproxy.Tree {
	t.Helper()
	tree, err := p.Tree(t.Context(), needs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tree.Release)
	return tree
}

// counter is the metrics of a test.
type counter struct {
	mu     sync.Mutex
	served map[string]int
	bytes  int64
}

func (c *counter) ModulesServed(from string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.served == nil {
		c.served = map[string]int{}
	}
	c.served[from] += n
}

func (c *counter) ModuleBytesFetched(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bytes += n
}

// take returns what was counted since the last take.
func (c *counter) take() (served map[string]int, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	served, bytes = c.served, c.bytes
	c.served, c.bytes = nil, 0
	return served, bytes
}

// check says whether the tree has exactly these modules, and those whole.
func check(t *testing.T, g *registry, dir string, modules ...string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "example.com/*@*"))
	if err != nil || len(found) != len(modules) {
		t.Errorf("%q, %v; want %q", found, err, modules)
	}
	for _, m := range modules {
		escaped := strings.ReplaceAll(m, "D", "!d")
		path, version, _ := strings.Cut(escaped, "@")
		sum, err := dirhash.HashDir(filepath.Join(dir, escaped), m, dirhash.Hash1)
		if err != nil || !strings.Contains(g.lines(t, m), " "+sum+"\n") {
			t.Errorf("%s has %s, %v", m, sum, err)
		}
		hash, err := os.ReadFile(filepath.Join(dir, "cache/download", path, "@v", version+".ziphash"))
		if err != nil || string(hash) != sum {
			t.Errorf("%s: .ziphash = %q, %v", m, hash, err)
		}
	}
}

var all = []string{"example.com/Dep@v0.3.0", "example.com/lib@v1.1.0"}

func TestTreeBuildsWithoutANetwork(t *testing.T) {
	g := library(t)
	p := newProxy(t, g.options(t))
	sum := g.lines(t, all...)
	tr := tree(t, p, needs(t, usesLib, sum))
	if tr.Missing() != 0 || !filepath.IsAbs(tr.Dir()) {
		t.Errorf("%d missing in %s", tr.Missing(), tr.Dir())
	}
	check(t, g, tr.Dir(), all...)
	gopher := offline(t, p, sum)
	gopher.env = append(gopher.env, "GOMODCACHE="+tr.Dir())
	before := snapshot(t, tr.Dir())
	gopher.must(t, "build", "-o", os.DevNull, ".")
	gopher.must(t, "mod", "verify")
	gopher.must(t, "mod", "vendor", "-o", filepath.Join(t.TempDir(), "vendor"))
	if after := snapshot(t, tr.Dir()); before != after {
		t.Errorf("the go command changed the tree:\n%s\nnow\n%s", before, after)
	}
}

// offline is the go command with usesLib and no network.
func offline(t *testing.T, p *modproxy.Proxy, sum string) *gopher {
	t.Helper()
	gopher := newGopher(t, p, "off", usesLib)
	gopher.write(t, "go.sum", sum)
	gopher.write(t, "main.go", "package main\n\nimport _ \"example.com/lib/sub\"\nimport _ \"example.com/lib\"\n\nfunc main() {}\n")
	gopher.env = append(gopher.env, "GOFLAGS=-mod=readonly")
	return gopher
}

// snapshot is what ls -lR says.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		fmt.Fprintln(&b, fi.Mode(), fi.ModTime(), path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// A build is another user in an overlay: it may add modules, and change none.
func TestTreeUnderABuild(t *testing.T) {
	if os.Geteuid() != 0 {
		if slices.Contains(strings.Split(os.Getenv("CARGO_TEST_REQUIRE"), ","), "root") {
			t.Fatal("CARGO_TEST_REQUIRE names root")
		}
		t.Skip("needs root")
	}
	const uid = 101_000
	g := library(t)
	g.add(t, "example.com/more", "v1.0.0", "", map[string]string{"more.go": "package more\n"})
	o := g.options(t)
	o.UID, o.GID = uid, uid
	defer syscall.Umask(syscall.Umask(0o077)) // a server's may be narrow
	p := newProxy(t, o)
	sum := g.lines(t, all...)
	tr := tree(t, p, needs(t, usesLib, sum))
	before := snapshot(t, tr.Dir())

	dir, err := os.MkdirTemp("", "overlay") //nolint:usetesting // TempDir's parents are root's alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	mod, up := filepath.Join(dir, "mod"), filepath.Join(dir, "up")
	for _, d := range []string{dir, mod, up, filepath.Join(dir, "work"), filepath.Join(dir, "home")} {
		if err := errors.Join(os.MkdirAll(d, 0o755), os.Chmod(d, 0o755), os.Chown(d, uid, uid)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mount("overlay", mod, "overlay", 0, "lowerdir="+tr.Dir()+",upperdir="+up+",workdir="+filepath.Join(dir, "work")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(mod, 0); err != nil {
			t.Error(err)
		}
	})
	_, door := open(t, p, modproxy.Limits{})
	gopher := offline(t, p, sum)
	home := filepath.Join(dir, "home")
	run := func(script string) (string, error) {
		cmd := exec.Command("sh", "-c", script)
		cmd.Dir = home
		cmd.Env = append(gopher.env, "HOME="+home, "XDG_CONFIG_HOME="+home, "GOCACHE="+home+"/cache", "GOPATH="+home+"/path", "GOTELEMETRY=off", "GOMODCACHE="+mod)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for _, f := range []string{"go.mod", "go.sum", "main.go"} {
		path := filepath.Join(home, f)
		if err := errors.Join(os.WriteFile(path, []byte(gopher.read(t, f)), 0o600), os.Chown(path, uid, uid)); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := run("go build -o /dev/null . && go mod verify"); err != nil {
		t.Errorf("build: %v\n%s", err, out)
	}
	if written := files(t, up); len(written) != 0 {
		t.Errorf("the build wrote %q", written)
	}
	for _, attack := range []string{
		"echo x >> example.com/lib@v1.1.0/lib.go", "rm -f example.com/lib@v1.1.0/lib.go", "touch example.com/lib@v1.1.0/new.go", "touch example.com/lib@v1.1.0/sub/new.go",
		"chmod 777 example.com/lib@v1.1.0", "chmod 666 example.com/lib@v1.1.0/lib.go", "mv -T example.com/lib@v1.1.0 example.com/lib2", "touch -d @0 example.com/lib@v1.1.0/lib.go",
		"echo x >> cache/download/example.com/lib/@v/v1.1.0.ziphash", "echo x >> cache/download/example.com/lib/@v/v1.1.0.mod",
	} {
		if out, err := run("cd $GOMODCACHE && " + attack); err == nil {
			t.Errorf("%s\n%s", attack, out)
		}
	}
	if out, err := run("GOFLAGS=-mod=mod GOPROXY=" + door + " go get example.com/more@v1.0.0 example.com/lib@v1.0.0"); err != nil {
		t.Errorf("the build cannot add a module: %v\n%s", err, out)
	}
	if after := snapshot(t, tr.Dir()); before != after {
		t.Errorf("the build changed the tree:\n%s\nnow\n%s", before, after)
	}
}

func TestTreeHasWhatGoSumSays(t *testing.T) {
	g := library(t)
	g.add(t, "example.com/fake", "v1.0.0", "", map[string]string{"a": "a"})
	g.add(t, "example.com/fake", "v1.1.0", "\n// changed\n", map[string]string{"a": "a"})
	honest := g.lines(t, "example.com/fake@v1.0.0", "example.com/fake@v1.1.0", "example.com/lib@v1.1.0")
	lies := strings.NewReplacer(
		strings.Fields(g.lines(t, "example.com/fake@v1.0.0"))[2], hash, // zip
		strings.Fields(g.lines(t, "example.com/fake@v1.1.0"))[2], hash,
		strings.Fields(g.lines(t, "example.com/fake@v1.1.0"))[5], hash, // go.mod
	).Replace(honest)
	g.tamper(t, "example.com/lib", "v1.1.0", map[string]string{"lib.go": "package evil\n"})
	p := newProxy(t, g.options(t))
	for range 2 {
		tr := tree(t, p, needs(t, "module example.org/app\n", lies))
		if tr.Missing() != 4 {
			t.Errorf("%d missing, want two zips and a go.mod that are not what go.sum says and a zip that the database does not confirm", tr.Missing())
		}
		check(t, g, tr.Dir())
		mods, _ := filepath.Glob(filepath.Join(tr.Dir(), "cache/download/example.com/*/@v/*"))
		if len(mods) != 2 {
			t.Errorf("%q", mods)
		}
	}
	g.tamper(t, "example.com/lib", "v1.1.0", map[string]string{"lib.go": "package lib\n\nimport _ \"example.com/Dep\"\n", "sub/sub.go": "package sub\n"})
	tr := tree(t, p, needs(t, "module example.org/app\n", honest))
	if tr.Missing() != 0 {
		t.Errorf("%d missing for an honest go.sum", tr.Missing())
	}
	check(t, g, tr.Dir(), "example.com/fake@v1.0.0", "example.com/fake@v1.1.0", "example.com/lib@v1.1.0")
}

func TestTheWireIsUsedOnce(t *testing.T) {
	g := library(t)
	o := g.options(t)
	var c counter
	o.Metrics = &c
	p := newProxy(t, o)
	_, door := open(t, p, modproxy.Limits{})
	want := needs(t, usesLib, g.lines(t, all...))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if i%2 == 0 {
				tree(t, p, want)
			} else if code, _ := fetch(t, door+"/example.com/lib/@v/v1.1.0.zip"); code != http.StatusOK {
				t.Error(code)
			}
		})
	}
	wg.Wait()
	served, bytes := c.take()
	if served["upstream"] < 2 || served["upstream"] > len(want) || served["cache"] != 4*len(want)+4-served["upstream"] || bytes == 0 {
		t.Errorf("%v and %d bytes, want no more than one fetch of each of %d", served, bytes, len(want))
	}
	for _, m := range []string{"lib/@v/v1.1.0", "!dep/@v/v0.3.0"} {
		if n := g.times("/example.com/" + m + ".zip"); n != 1 {
			t.Errorf("%s: fetched %d times", m, n)
		}
	}
	asked := len(g.asked)
	tree(t, p, want)
	tree(t, newProxy(t, o), want[1:]) // another set of the same
	if served, bytes := c.take(); len(g.asked) != asked || bytes != 0 || served["cache"] != 2*len(want)-1 || len(served) != 1 {
		t.Errorf("%v and %d bytes, %d requests; want none", served, bytes, len(g.asked)-asked)
	}
	fetch(t, door+"/example.com/nobody/@v/list")
	fetch(t, door+"/metrics")
	if served, _ := c.take(); served["refused"] != 2 {
		t.Errorf("%v, want two refusals", served)
	}
	for from := range served {
		if !slices.Contains(modproxy.Sources(), from) {
			t.Errorf("%q is no source", from)
		}
	}
}

func TestOffline(t *testing.T) {
	g := library(t)
	o := g.options(t)
	_, door := open(t, newProxy(t, o), modproxy.Limits{})
	kept := []string{"/example.com/lib/@v/v1.1.0.zip", "/example.com/lib/@v/v1.1.0.mod", "/example.com/lib/@v/v1.1.0.info", "/example.com/lib/@v/list", "/example.com/lib/@latest"}
	bodies := map[string]string{}
	for _, path := range kept {
		_, bodies[path] = fetch(t, door+path)
	}
	o.Offline = true
	asked := len(g.asked)
	p := newProxy(t, o)
	_, door = open(t, p, modproxy.Limits{})
	for _, path := range kept {
		if code, body := fetch(t, door+path); code != http.StatusOK || body != bodies[path] {
			t.Errorf("%s: %d %q, want %q", path, code, body, bodies[path])
		}
	}
	for _, name := range []string{"example.com/!dep/@v/v0.3.0.zip", "example.com/!dep/@v/v0.3.0.mod", "example.com/lib/@v/main.info", "example.com/!dep/@v/list", "sumdb/sums.invalid/latest"} {
		want := name + " is not in this server's module cache, and --network none keeps builds from fetching more: see docs/builds.md\n"
		if code, body := fetch(t, door+"/"+name); name != "sumdb/sums.invalid/latest" && (code != http.StatusForbidden || body != want) {
			t.Errorf("%s: %d %q", name, code, body)
		}
	}
	tr := tree(t, p, needs(t, usesLib, g.lines(t, all...)))
	if tr.Missing() != 2 {
		t.Errorf("%d missing, want the zip and the go.mod of one", tr.Missing())
	}
	check(t, g, tr.Dir(), "example.com/lib@v1.1.0")
	if len(g.asked) != asked {
		t.Errorf("the upstream was asked for %q", g.asked[asked:])
	}
	gopher := newGopher(t, p, door, usesLib)
	gopher.write(t, "go.sum", g.lines(t, all...))
	gopher.write(t, "main.go", "package main\n\nimport _ \"example.com/lib\"\n\nfunc main() {}\n")
	if out, err := gopher.run(t.Context(), "build", "-o", os.DevNull, "."); err == nil || !strings.Contains(out, "--network none") {
		t.Errorf("go build = %v\n%s", err, out)
	}
}

// What needs a password is for those who wait for it, and for nobody later.
func TestPasswordsAnswersAreNotKept(t *testing.T) {
	g := library(t)
	public := newRegistry(t)
	u, _ := url.Parse(g.URL)
	u.User = url.UserPassword("robot", "s3cret-w0rd")
	o := g.options(t)
	o.GOPROXY = u.String() + "|" + public.URL
	p := newProxy(t, o)
	tr := tree(t, p, needs(t, usesLib, g.lines(t, all...)))
	if tr.Missing() != 4 || len(g.asked) != 0 || len(public.asked) != 0 {
		t.Errorf("%d missing of 4; asked for %q and %q", tr.Missing(), g.asked, public.asked)
	}
	check(t, g, tr.Dir())
	tr.Release()
	_, door := open(t, p, modproxy.Limits{})
	gopher := newGopher(t, p, door, app)
	gopher.must(t, "get", "example.com/lib@latest")
	for n := range 2 {
		if code, body := fetch(t, door+"/example.com/lib/@v/v1.1.0.zip"); code != http.StatusOK || body != string(g.releases[mv("example.com/lib", "v1.1.0")].zip) {
			t.Errorf("%d and %d bytes", code, len(body))
		}
		if times := g.times("/example.com/lib/@v/v1.1.0.zip"); times != n+2 {
			t.Errorf("%d fetches for %d requests", times, n+2)
		}
	}
	for _, f := range files(t, o.Dir) {
		if b, err := os.ReadFile(f); err != nil || len(b) > 0 {
			t.Errorf("%s was left: %q", f, b)
		}
	}
}

func TestTreeStopsWithItsContext(t *testing.T) {
	g := library(t)
	arrived, gone, release := blockZip(g, "/example.com/lib/@v/v1.1.0.zip")
	defer close(release)
	o := g.options(t)
	p := newProxy(t, o)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("no more")
	go func() {
		<-arrived
		cancel(why)
	}()
	if _, err := p.Tree(ctx, needs(t, usesLib, g.lines(t, all...))); !errors.Is(err, why) {
		t.Errorf("Tree = %v", err)
	}
	<-gone
	if left, _ := filepath.Glob(filepath.Join(o.Dir, "tmp/*")); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestTreeDoesNotWaitForADeadUpstream(t *testing.T) {
	g := newRegistry(t)
	var modules []string
	for i := range 60 {
		path := fmt.Sprintf("example.com/m%d", i)
		g.add(t, path, "v1.0.0", "", nil)
		modules = append(modules, path+"@v1.0.0")
	}
	p := newProxy(t, g.options(t))
	tree(t, p, needs(t, "module example.org/app\n", g.lines(t, modules[:10]...)))
	asked := len(g.asked)
	g.intercept(func(w http.ResponseWriter, _ *http.Request) bool {
		http.Error(w, "tired", http.StatusServiceUnavailable)
		return true
	})
	tr := tree(t, p, needs(t, "module example.org/app\n", g.lines(t, modules...)))
	check(t, g, tr.Dir(), modules[:10]...)
	if n := len(g.asked) - asked; tr.Missing() != 100 || n > 3*20 {
		t.Errorf("%d missing of 100; asked %d times", tr.Missing(), n)
	}
}

func TestTreeIsASetOfNeeds(t *testing.T) {
	g := library(t)
	p := newProxy(t, g.options(t))
	want := needs(t, usesLib, g.lines(t, all...))
	first := tree(t, p, want)
	slices.Reverse(want)
	if tr := tree(t, p, append(want, want...)); tr.Dir() != first.Dir() || tr.Missing() != 0 {
		t.Errorf("%s, %d missing; want %s", tr.Dir(), tr.Missing(), first.Dir())
	}
	odd := []modproxy.Module{{}, {Path: "../../x", Version: "v1.0.0", Sum: hash}, {Path: "example.com/lib", Version: "main", Sum: hash}, {Path: "example.com/lib", Version: "v1.1.0"}}
	if tr := tree(t, p, append(want, odd...)); tr.Dir() != first.Dir() || tr.Missing() != len(odd) {
		t.Errorf("%s, %d missing; want %s and %d", tr.Dir(), tr.Missing(), first.Dir(), len(odd))
	}
	if tr := tree(t, p, nil); tr.Missing() != 0 {
		t.Errorf("%d of none missing", tr.Missing())
	}
}

func TestTreeTakesNoPasswordsAnswerFromADoor(t *testing.T) {
	const file = "example.com/lib/@v/v1.1.0.zip"
	g := library(t)
	arrived, _, release := blockZip(g, "/"+file)
	u, _ := url.Parse(g.URL)
	u.User = url.UserPassword("robot", "s3cret-w0rd")
	o := g.options(t)
	o.GOPROXY = u.String()
	p := newProxy(t, o)
	_, door := open(t, p, modproxy.Limits{})
	done := make(chan int, 1)
	go func() {
		code, _ := fetch(t, door+"/"+file)
		done <- code
	}()
	<-arrived
	go func() {
		waitFor(t, func() bool { return p.Waiting(file) == 2 })
		close(release)
	}()
	tr := tree(t, p, needs(t, usesLib, g.lines(t, all...)))
	if tr.Missing() != 4 {
		t.Errorf("%d missing of 4", tr.Missing())
	}
	check(t, g, tr.Dir())
	if code := <-done; code != http.StatusOK {
		t.Errorf("the door: %d", code)
	}
}
