package main

import (
	"encoding/json"
	"fmt"
	"io"
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
// comes into no build but those of its own repository. Binaries are, to the
// bit, those that a server builds that was never attacked.
func TestHostileCache(t *testing.T) {
	proxy, sums := moduleProxy(t)
	t.Setenv("GOPROXY", "file://"+proxy)
	t.Setenv("GOSUMDB", "off")
	engines(t, func(t *testing.T, engine string) {
		if engine == "docker" && os.Getenv("CARGO_TEST_HOSTILE") != "all" {
			t.Skip("the caches are the same on both engines; CARGO_TEST_HOSTILE=all runs it here too")
		}
		honest := newAttack(t, engine, sums).play(false)
		attacked := newAttack(t, engine, sums).play(true)
		if diff := cmp.Diff(honest, attacked); diff != "" {
			t.Errorf("the attack changed what was built (-honest +attacked):\n%s", diff)
		}
	})
}

// secretWord is in a package of a private repository, and may be in nothing
// that a build of another one can read.
const secretWord = "wh1sper-0f-a-private-package"

// An attack is a server and the repositories that take part.
type attack struct {
	t       *testing.T
	server  *server
	data    string
	host    *gitsrctest.Host
	sums    string
	digests map[string]string // of the archives, by what was built
}

func newAttack(t *testing.T, engine, sums string) *attack {
	a := &attack{t: t, data: t.TempDir(), host: gitsrctest.New(t), sums: sums, digests: map[string]string{}}
	for _, name := range []string{"seed", "made", "shared", "public-attack"} {
		a.commit(name, "one")
	}
	copyLibrary(t, engine, a.data)
	a.server = newServer(t, engine, a.data, a.host)
	return a
}

// commit makes an honest program the newest commit of a repository.
func (a *attack) commit(name, says string) {
	a.host.Repository("me/"+name).Commit("main", gitsrctest.Files(map[string]string{
		"go.mod":   "module git.test/me/" + name + "\n\ngo 1.26\n\nrequire example.test/dep v1.0.0\n",
		"go.sum":   a.sums,
		"main.go":  fmt.Sprintf("package main\n\nimport (\n\t\"fmt\"\n\n\t\"example.test/dep\"\n)\n\nfunc main() { fmt.Println(%q, %q, \"with\", dep.Name()) }\n", name, says),
		"Makefile": "all:\n\t@find / -name 'planted-by-*' 2>/dev/null | sed 's/^/found /'\n\tgo build -v -trimpath -o " + name + " .\n",
	}))
}

// play builds everything, with or without the attacks, and returns the digests.
func (a *attack) play(attacked bool) map[string]string {
	a.t.Helper()
	first := a.check("before, shared", "seed", "?recipe=go") // so that there is something to attack
	a.check("before, of a Makefile", "made", "")
	before := a.kept()
	if attacked {
		a.keepSecret()
		a.attack("public-attack", "")
		a.spy()
	}
	second := a.check("another repository, shared", "shared", "?recipe=go")
	if n, m := files(second), files(first); n == 0 || n >= m || m > 100 {
		a.t.Errorf("with the module in the shared class %d files were compiled, %d without: the class was not used", n, m)
	}
	a.compiledOnlyItself("shared", a.check("another repository, of its Makefile", "shared", ""))
	a.commit("public-attack", "later")
	a.check("the attacker's, shared", "public-attack", "?recipe=go")
	if attacked {
		a.attack("private-attack", hostileToken)
	}
	for _, name := range []string{"seed", "made"} {
		a.commit(name, "two")
	}
	a.check("the next commit, shared", "seed", "?recipe=go")
	a.compiledOnlyItself("made", a.check("the next commit, of a Makefile", "made", ""))
	if attacked {
		a.poisoned("public-attack", "")
		a.commit("private-attack", "later")
		a.poisoned("private-attack", hostileToken)
		a.classes()
		a.unchanged(before)
	}
	if code := a.server.stop(); code != 0 {
		a.t.Errorf("SIGTERM: exit status %d", code)
	}
	return a.digests
}

// build builds a repository, and returns the log and what the program says.
func (a *attack) build(name, query, token string) (b build.Build, log, says string) {
	a.t.Helper()
	path := "/git.test/me/" + name + "/linux/amd64/main" + query
	b, log = a.server.want(a.server.post(path, token), token, build.Succeeded, "")
	out, err := exec.CommandContext(a.t.Context(), filepath.Join(a.server.download(path, token), name)).Output()
	if err != nil {
		a.t.Errorf("%s: %v", name, err)
	}
	return b, log, string(out)
}

// check builds what must be as if nobody had attacked.
func (a *attack) check(label, name, query string) (log string) {
	a.t.Helper()
	b, log, says := a.build(name, query, "")
	if strings.Contains(log, "found ") || strings.Contains(log, "EVIL") {
		a.t.Errorf("%s sees what an attack planted:\n%s", label, log)
	}
	if want := " with an honest module\n"; !strings.HasSuffix(says, want) || strings.Contains(says, "EVIL") {
		a.t.Errorf("%s: the program says %q, want %q", label, says, want)
	}
	a.digests[label] = b.Artifact.SHA256
	return log
}

// attack plays the attack from a repository, private if there is a token.
func (a *attack) attack(name, token string) {
	a.t.Helper()
	text, err := os.ReadFile("testdata/hostile/cache/attack.txtar")
	if err != nil {
		a.t.Fatal(err)
	}
	files := map[string]string{"go.sum": a.sums}
	for _, f := range txtar.Parse(text).Files {
		files[f.Name] = string(f.Data)
	}
	a.host.Repository("me/"+name).Commit("main", gitsrctest.Files(files))
	if token != "" {
		a.host.Protect("me/"+name, token)
	}
	_, log := a.server.want(a.server.post("/git.test/me/"+name+"/linux/amd64/main", token), token, build.Succeeded, "")
	for _, want := range []string{"an entry of fmt was replaced", "an entry of example.test/dep was replaced", `"EVIL"`, "an evil module"} {
		if !strings.Contains(log, want) {
			a.t.Errorf("%s did not work even on its own build, %s is not in its log:\n%s", name, want, log)
		}
	}
}

// poisoned fails the test unless an honest Makefile in a repository that
// attacked makes an evil program: the attacks are real ones.
func (a *attack) poisoned(name, token string) {
	a.t.Helper()
	if _, log, says := a.build(name, "", token); !strings.HasPrefix(says, "EVIL\n") || !strings.HasSuffix(says, "an evil module\n") {
		a.t.Errorf("the attack of %s did not poison its own class, its program says %q; the log:\n%s", name, says, log)
	}
}

// keepSecret builds a private repository in both ways.
func (a *attack) keepSecret() {
	a.t.Helper()
	a.host.Repository("me/secret").Commit("main", gitsrctest.Files(map[string]string{
		"go.mod":         "module git.test/me/secret\n\ngo 1.26\n",
		"words/words.go": "// Package words has one.\npackage words\n\n// Word returns it.\nfunc Word() string { return \"" + secretWord + "\" }\n",
		"main.go":        "package main\n\nimport \"git.test/me/secret/words\"\n\nfunc main() { println(words.Word()) }\n",
		"Makefile":       "all:\n\tgo build -trimpath -o secret .\n",
	}))
	a.host.Protect("me/secret", hostileToken)
	_, log, _ := a.build("secret", "?recipe=go", hostileToken)
	a.build("secret", "", hostileToken)
	if files(log) == 0 {
		a.t.Errorf("of the private repository nothing was kept:\n%s", log)
	}
	if out, _ := exec.CommandContext(a.t.Context(), "grep", "-rlF", secretWord, filepath.Join(a.data, "cache", "packages", "layers")).Output(); len(out) == 0 {
		a.t.Error("the private package is not in the cache, where a spy could look for it")
	}
}

// spy looks from a build for what another, private repository has compiled,
// and, as a proof that it would find that, for what a public one has.
func (a *attack) spy() {
	a.t.Helper()
	half := len(secretWord) / 2
	const search = "\t@timeout 60 grep -rlaF -D skip --exclude-dir=proc --exclude-dir=sys '%s''%s' / 2>/dev/null | sed 's/^/%s: /'; true\n"
	a.host.Repository("me/spy").Commit("main", gitsrctest.Files(map[string]string{
		"Makefile": "all:\n" + fmt.Sprintf(search, secretWord[:half], secretWord[half:], "private") + fmt.Sprintf(search, "an honest", " module", "public") + "\t@echo x > out.txt\n",
	}))
	_, log := a.server.want(a.server.post("/git.test/me/spy/linux/amd64/main", ""), "", build.Succeeded, "")
	if strings.Contains(log, "private: ") || !strings.Contains(log, "public: /go/cache/") {
		a.t.Errorf("a build of another repository finds:\n%s", log)
	}
}

// classes checks that the cache says whose packages it keeps.
func (a *attack) classes() {
	a.t.Helper()
	self, err := os.Executable()
	if err != nil {
		a.t.Fatal(err)
	}
	list := exec.Cmd{Path: self, Args: []string{"cargo", "cache", "list", "--data-dir", a.data}}
	out, err := list.Output()
	if err != nil {
		a.t.Fatal(err)
	}
	for _, want := range []string{"standard ", "shared ", "git.test/me/public-attack ", "git.test/me/private-attack ", "git.test/me/secret ", "git.test/me/made "} {
		if !strings.Contains(string(out), want) {
			a.t.Errorf("the cache does not list %s:\n%s", want, out)
		}
	}
}

// kept is the digest of every file that the caches hold, by its path.
func (a *attack) kept() map[string]string {
	a.t.Helper()
	out, err := exec.CommandContext(a.t.Context(), "find", filepath.Join(a.data, "cache"), "-type", "f",
		"(", "-path", "*/packages/layers/*", "-o", "-path", "*/modules/*", ")", "-exec", "sha256sum", "{}", "+").Output()
	if err != nil {
		a.t.Fatal(err)
	}
	sums := map[string]string{}
	for line := range strings.Lines(string(out)) {
		sum, name, _ := strings.Cut(strings.TrimSpace(line), "  ")
		sums[name] = sum
	}
	if len(sums) < 1000 {
		a.t.Fatalf("the caches hold %d files", len(sums))
	}
	return sums
}

// unchanged compares what is still there of what was there.
func (a *attack) unchanged(before map[string]string) {
	a.t.Helper()
	for name, sum := range a.kept() {
		if was, ok := before[name]; ok && was != sum {
			a.t.Errorf("%s was changed", name)
		}
	}
}

// compiledOnlyItself fails the test if go build -v names more in the log of a
// Makefile's build than the repository's own package.
func (a *attack) compiledOnlyItself(name, log string) {
	a.t.Helper()
	for _, l := range logLines(log) {
		if l.Stream == "stderr" && l.Msg != "git.test/me/"+name {
			a.t.Errorf("%s compiled %q, which is in the shared class", name, l.Msg)
		}
	}
}

// files is how many files of a build's cache were kept, as its log says.
func files(log string) (n int) {
	for _, l := range logLines(log) {
		if l.Msg == "kept compiled packages" {
			n += l.Files
		}
	}
	return n
}

// A logLine is what these tests read of a line of a log.
type logLine struct {
	Msg    string
	Stream string
	Files  int
}

func logLines(log string) (all []logLine) {
	for line := range strings.Lines(log) {
		var l logLine
		_ = json.Unmarshal([]byte(line), &l) // other tests look at that
		all = append(all, l)
	}
	return all
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
