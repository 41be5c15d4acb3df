package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	modzip "golang.org/x/mod/zip"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

// The trust rule: what a Makefile plants in every cache that it can reach
// comes into no build but those of its own repository's Makefile. Binaries
// are, to the bit, those that a server builds that was never attacked.
func TestHostileCache(t *testing.T) {
	proxy, sums := moduleProxy(t)
	t.Setenv("GOPROXY", "file://"+proxy)
	t.Setenv("GOSUMDB", "off")
	engines(t, func(t *testing.T, engine string) {
		if engine == "docker" && os.Getenv("CARGO_TEST_HOSTILE") != "all" {
			t.Skip("the caches are the same on both engines; CARGO_TEST_HOSTILE=all runs it here too")
		}
		a := newAttack(t, sums)
		honest := a.play(newServer(t, engine, t.TempDir(), a.host), false)
		a.reset()
		attacked := a.play(newServer(t, engine, t.TempDir(), a.host), true)
		if diff := cmp.Diff(honest, attacked); diff != "" {
			t.Errorf("the attack changed what was built (-honest +attacked):\n%s", diff)
		}
	})
}

// An attack is the repositories that take part in one.
type attack struct {
	t    *testing.T
	host *gitsrctest.Host
	base map[string]string // the first commit of each, by name
	next map[string]string // the second
	repo map[string]*gitsrctest.Repository
}

func newAttack(t *testing.T, sums string) *attack {
	a := &attack{t: t, host: gitsrctest.New(t), base: map[string]string{}, next: map[string]string{}, repo: map[string]*gitsrctest.Repository{}}
	for _, name := range []string{"seed", "made", "shared"} {
		a.repo[name] = a.host.Repository("me/" + name)
		a.base[name] = a.repo[name].Commit("main", gitsrctest.Files(honestApp(name, "one", sums)))
		a.next[name] = a.repo[name].Commit("next", gitsrctest.Files(honestApp(name, "two", sums)))
	}
	text, err := os.ReadFile("testdata/hostile/cache/attack.txtar")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"go.sum": sums}
	for _, f := range txtar.Parse(text).Files {
		files[f.Name] = string(f.Data)
	}
	a.repo["attack"] = a.host.Repository("me/attack")
	a.base["attack"] = a.repo["attack"].Commit("main", gitsrctest.Files(files))
	return a
}

// reset makes main of every repository its first commit.
func (a *attack) reset() {
	for name, commit := range a.base {
		a.repo[name].SetRef("refs/heads/main", commit)
	}
}

// play builds everything on a server, with or without the attack, and returns
// the digests of the archives.
func (a *attack) play(s *server, attacked bool) map[string]string {
	a.t.Helper()
	digests := map[string]string{}
	check := func(label, name, query string) {
		a.t.Helper()
		path := "/git.test/me/" + name + "/linux/amd64/main"
		b, log := s.want(s.post(path+query, ""), "", build.Succeeded, "")
		if strings.Contains(log, "found ") || strings.Contains(log, "EVIL") {
			a.t.Errorf("%s sees what the attack planted:\n%s", label, log)
		}
		digests[label] = b.Artifact.SHA256
		out, err := exec.CommandContext(a.t.Context(), filepath.Join(s.download(path+query, ""), name)).Output()
		if want := " with an honest module\n"; err != nil || !strings.HasSuffix(string(out), want) || strings.Contains(string(out), "EVIL") {
			a.t.Errorf("%s: the program says %q (%v), want %q", label, out, err, want)
		}
	}
	check("before, shared", "seed", "?recipe=go") // so that there is something to attack
	check("before, of a Makefile", "made", "")
	if attacked {
		_, log := s.want(s.post("/git.test/me/attack/linux/amd64/main", ""), "", build.Succeeded, "")
		for _, want := range []string{"an entry was replaced", `"EVIL"`} {
			if !strings.Contains(log, want) {
				a.t.Errorf("the attack did not work even on its own build, %s is not in its log:\n%s", want, log)
			}
		}
	}
	check("another repository, shared", "shared", "?recipe=go")
	check("another repository, of its Makefile", "shared", "")
	check("the attacker's, shared", "attack", "?recipe=go")
	for name := range maps.Keys(a.next) {
		a.repo[name].SetRef("refs/heads/main", a.next[name])
	}
	check("the next commit, shared", "seed", "?recipe=go")
	check("the next commit, of a Makefile", "made", "")
	if code := s.stop(); code != 0 {
		a.t.Errorf("SIGTERM: exit status %d", code)
	}
	return digests
}

// honestApp is a program that uses fmt and a module, and whose Makefile looks
// for what others left.
func honestApp(name, says, sums string) map[string]string {
	return map[string]string{
		"go.mod":   "module git.test/me/" + name + "\n\ngo 1.26\n\nrequire example.test/dep v1.0.0\n",
		"go.sum":   sums,
		"main.go":  fmt.Sprintf("package main\n\nimport (\n\t\"fmt\"\n\n\t\"example.test/dep\"\n)\n\nfunc main() { fmt.Println(%q, %q, \"with\", dep.Name()) }\n", name, says),
		"Makefile": "all:\n\t@find / -name 'planted-by-*' 2>/dev/null | sed 's/^/found /'\n\tgo build -trimpath -o " + name + " .\n",
	}
}

// moduleProxy is a directory with one module, as a proxy serves it, and what
// go.sum says of that.
func moduleProxy(t *testing.T) (dir, sums string) {
	t.Helper()
	const mod = "module example.test/dep\n\ngo 1.26\n"
	dir, src := t.TempDir(), t.TempDir()
	versions := filepath.Join(dir, "example.test", "dep", "@v")
	archive := filepath.Join(versions, "v1.0.0.zip")
	var err error
	step := func(do func() error) {
		if err == nil {
			err = do()
		}
	}
	write := func(path, content string) { step(func() error { return os.WriteFile(path, []byte(content), 0o600) }) }
	step(func() error { return os.MkdirAll(versions, 0o700) })
	write(filepath.Join(src, "go.mod"), mod)
	write(filepath.Join(src, "dep.go"), "// Package dep is depended on.\npackage dep\n\n// Name says what it is.\nfunc Name() string { return \"an honest module\" }\n")
	write(filepath.Join(versions, "list"), "v1.0.0\n")
	write(filepath.Join(versions, "v1.0.0.info"), `{"Version":"v1.0.0","Time":"2026-01-02T03:04:05Z"}`)
	write(filepath.Join(versions, "v1.0.0.mod"), mod)
	var zipSum, modSum string
	step(func() error {
		f, err := os.Create(archive)
		if err != nil {
			return err
		}
		defer f.Close()
		return modzip.CreateFromDir(f, module.Version{Path: "example.test/dep", Version: "v1.0.0"}, src)
	})
	step(func() (err error) { zipSum, err = dirhash.HashZip(archive, dirhash.Hash1); return err })
	step(func() (err error) {
		modSum, err = dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(mod)), nil })
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir, "example.test/dep v1.0.0 " + zipSum + "\nexample.test/dep v1.0.0/go.mod " + modSum + "\n"
}
