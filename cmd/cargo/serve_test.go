package main

import (
	"errors"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

func TestBuildAndDownload(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		host := gitsrctest.New(t)
		repo := host.Repository("me/hello")
		commit := repo.Commit("main", gitsrctest.Files(hello("hi")))
		repo.Tag("v1.0.0", commit)
		s := newServer(t, engine, t.TempDir(), host)
		const path = "/git.test/me/hello/linux/amd64/v1.0.0"

		if r := s.do(http.MethodGet, path, ""); r.StatusCode != http.StatusNotFound {
			t.Errorf("GET before the build = %s", r.Status)
		}
		b, _ := s.want(s.post(path, ""), "", build.Succeeded, "")
		if b.Commit != commit || b.Executor != engine || b.RefName != "refs/tags/v1.0.0" || !b.Public || len(b.Phases) != len(build.Phases) {
			t.Errorf("record = %+v", b)
		}
		dir := s.download(path, "")
		out, err := exec.CommandContext(t.Context(), filepath.Join(dir, "hello")).CombinedOutput()
		if want := "hi v1.0.0 " + commit + " 2026-01-02T03:04:05Z\n"; err != nil || string(out) != want {
			t.Errorf("the program says %q (%v), want %q", out, err, want)
		}
		if r := s.do(http.MethodPost, path, ""); r.StatusCode != http.StatusConflict || !strings.Contains(string(r.body), path) {
			t.Errorf("POST again = %s %s", r.Status, r.body)
		}
		until(t, "the metrics count the build", func() bool {
			return strings.Contains(string(s.do(http.MethodGet, "/metrics", "").body), `cargo_builds_total{result="succeeded"} 1`)
		})
	})
}

func TestMakefile(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		host := gitsrctest.New(t)
		files := hello("made")
		files["Makefile"] = `build:
	go build -ldflags "-X main.version=$$(git describe --tags)" -o bin/hello-$$GOOS .
	touch kept.txt ignored.txt
	git status --porcelain
	@id -u; git log -1 --format=%s >/dev/null
`
		files[".gitignore"] = "bin\nignored.txt\n"
		repo := host.Repository("group/sub/hello")
		repo.Tag("v2.0.0", repo.Commit("main", gitsrctest.Files(files)))
		s := newServer(t, engine, t.TempDir(), host)

		const path = "/git.test/group/sub/hello/linux/amd64/v2.0.0"
		_, log := s.want(s.post(path, ""), "", build.Succeeded, "")
		dir := s.download(path, "")
		var got []string
		_ = fs.WalkDir(os.DirFS(dir), ".", func(p string, d fs.DirEntry, _ error) error {
			if !d.IsDir() {
				got = append(got, p)
			}
			return nil
		})
		if want := []string{"bin/hello-linux", "kept.txt"}; !slices.Equal(got, want) {
			t.Errorf("the archive holds %q, want %q; the log:\n%s", got, want, log)
		}
		out, err := exec.CommandContext(t.Context(), filepath.Join(dir, "bin/hello-linux")).CombinedOutput()
		if err != nil || !strings.HasPrefix(string(out), "made v2.0.0") {
			t.Errorf("the program says %q (%v)", out, err)
		}
		if !strings.Contains(log, `"?? kept.txt"`) || strings.Contains(log, ` M `) {
			t.Errorf("git status in the build does not show just what it added:\n%s", log)
		}
	})
}

func TestReasons(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		host := gitsrctest.New(t)
		s := newServer(t, engine, t.TempDir(), host, "--build-timeout", "20s", "--log-limit", "1MiB", "--memory", "256MiB", "--pids", "64", "--artifact-limit", "1MiB")
		for reason, recipe := range map[build.Reason]string{
			build.ReasonExit:             "@echo out; echo err >&2; exit 3",
			build.ReasonTimeout:          "@sleep 600",
			build.ReasonLogTooLarge:      "@yes",
			build.ReasonOutOfMemory:      "@tail /dev/zero",
			build.ReasonTooManyProcesses: "@sh -c 'f() { f | f & }; f' & i=0; while [ $$i -lt 200 ]; do sleep 5 & i=$$((i+1)); done; exit 1",
			build.ReasonNoArtifact:       "@true",
			build.ReasonWrongPlatform:    "@cp /bin/true app",
			build.ReasonArtifactTooLarge: "@head -c 2000000 /dev/urandom > big.bin",
		} {
			t.Run(string(reason), func(t *testing.T) {
				t.Parallel()
				platform := "linux/amd64"
				if reason == build.ReasonWrongPlatform {
					platform = "darwin/arm64"
				}
				name := strings.ReplaceAll(string(reason), "_", "-")
				repo := host.Repository("me/" + name)
				repo.Commit("main", gitsrctest.Files(map[string]string{"Makefile": "all:\n\t" + recipe + "\n"}))
				s := &server{t: t, url: s.url}
				b, log := s.want(s.post("/git.test/me/"+name+"/"+platform+"/main", ""), "", build.Failed, reason)
				if b.Message == "" || !strings.Contains(log, b.Message) {
					t.Errorf("message %q is not in the log:\n%s", b.Message, log)
				}
			})
		}
	})
}

func TestPrivateRepository(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		const token = "s3cret-Token-0123456789"
		host := gitsrctest.New(t)
		files := hello("private")
		files["Makefile"] = "all:\n\tenv; cat .git/config; grep -rs . /proc/*/environ /proc/*/cmdline || true\n\tsleep 2; echo x > out.txt\n"
		repo := host.Repository("me/hello")
		repo.Tag("v1", repo.Commit("main", gitsrctest.Files(files)))
		host.Protect("me/hello", token)
		data := t.TempDir()
		s := newServer(t, engine, data, host, "--log-level", "debug")
		const path = "/git.test/me/hello/linux/amd64/v1"

		none := s.do(http.MethodPost, "/git.test/me/none/linux/amd64/v1", "")
		for _, tok := range []string{"", "wrong"} {
			if r := s.do(http.MethodPost, path, tok); r.StatusCode != http.StatusNotFound || string(r.body) != string(none.body) {
				t.Errorf("POST with token %q = %s %s, want just what a missing repository gets: %s", tok, r.Status, r.body, none.body)
			}
		}
		id := s.post(path, token)
		until(t, "the build runs", func() bool { return s.record(id, token).State == build.Running })
		for b := s.record(id, token); !b.State.Ended(); b = s.record(id, token) {
			wantNoProcessSays(t, token)
		}
		_, log := s.want(id, token, build.Succeeded, "")
		for _, p := range []string{"/builds/" + string(id), "/builds/" + string(id) + "/logs", path} {
			if r := s.do(http.MethodGet, p, ""); r.StatusCode != http.StatusNotFound {
				t.Errorf("GET %s without a token = %s", p, r.Status)
			}
			if r := s.do(http.MethodGet, p, token); r.StatusCode != http.StatusOK {
				t.Errorf("GET %s with the token = %s", p, r.Status)
			}
		}
		if r := s.do(http.MethodGet, "/builds", ""); strings.Contains(string(r.body), string(id)) {
			t.Errorf("the list of public builds shows a private one: %s", r.body)
		}
		for what, text := range map[string]string{"the build's log": log, "the server's log": s.stderr.String(), "the metrics": string(s.do(http.MethodGet, "/metrics", "").body)} {
			if strings.Contains(text, token) {
				t.Errorf("the token is in %s:\n%s", what, text)
			}
		}
		wantInNoFile(t, data, token)
	})
}

// wantInNoFile fails the test if a secret is in a file below dir.
func wantInNoFile(t *testing.T, dir, secret string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var text []byte
			text, err = os.ReadFile(path)
			if strings.Contains(string(text), secret) {
				t.Errorf("%s holds the token", path)
			}
		}
		if errors.Is(err, fs.ErrNotExist) { // the server goes on working there
			return nil
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// wantNoProcessSays fails the test if a secret is in the arguments or the
// environment of any process of the machine.
func wantNoProcessSays(t *testing.T, secret string) {
	t.Helper()
	for _, pattern := range []string{"/proc/[0-9]*/cmdline", "/proc/[0-9]*/environ"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if text, err := os.ReadFile(f); err == nil && strings.Contains(string(text), secret) {
				t.Errorf("%s holds the token", f)
			}
		}
	}
}

func TestFiftyAtOnce(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		host := gitsrctest.New(t)
		host.Repository("me/slow").Commit("main", gitsrctest.Files(map[string]string{"Makefile": "all:\n\tsleep 3; echo x > out\n"}))
		s := newServer(t, engine, t.TempDir(), host)
		var mu sync.Mutex
		ids := map[build.ID]int{}
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				id := s.post("/git.test/me/slow/linux/amd64/main", "")
				mu.Lock()
				defer mu.Unlock()
				ids[id]++
			})
		}
		wg.Wait()
		if len(ids) != 1 {
			t.Fatalf("50 requests at once made %d builds", len(ids))
		}
		for id := range maps.Keys(ids) {
			s.want(id, "", build.Succeeded, "")
		}
	})
}

func TestCancel(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		host := gitsrctest.New(t)
		for _, name := range []string{"one", "two"} {
			host.Repository("me/"+name).Commit("main", gitsrctest.Files(map[string]string{"Makefile": "all:\n\techo started; sleep 600\n"}))
		}
		s := newServer(t, engine, t.TempDir(), host, "--concurrency", "1")
		running := s.post("/git.test/me/one/linux/amd64/main", "")
		queued := s.post("/git.test/me/two/linux/amd64/main", "")
		until(t, "the build runs", func() bool {
			return strings.Contains(string(s.do(http.MethodGet, "/builds/"+string(running)+"/logs", "").body), `"started"`)
		})
		for _, id := range []build.ID{queued, running} {
			if r := s.do(http.MethodDelete, "/builds/"+string(id), ""); r.StatusCode/100 != 2 {
				t.Errorf("DELETE = %s %s", r.Status, r.body)
			}
			s.want(id, "", build.Canceled, "")
			if r := s.do(http.MethodDelete, "/builds/"+string(id), ""); r.StatusCode != http.StatusConflict {
				t.Errorf("DELETE of an ended build = %s %s", r.Status, r.body)
			}
		}
		until(t, "the metrics count both", func() bool {
			return strings.Contains(string(s.do(http.MethodGet, "/metrics", "").body), `cargo_builds_total{result="canceled"} 2`)
		})
	})
}

// One data directory serves both engines, one after the other, and the same
// key gives the same bytes on both.
func TestBothEnginesOneDataDir(t *testing.T) {
	host := gitsrctest.New(t)
	files := hello("both")
	files["Makefile"] = "all:\n\tgo build -o app .\n\tdate > when; rm when; echo data > data.txt\n"
	repo := host.Repository("me/hello")
	repo.Tag("v1", repo.Commit("main", gitsrctest.Files(files)))
	data := t.TempDir()
	digests := map[string][]string{}
	engines(t, func(t *testing.T, engine string) {
		s := newServer(t, engine, data, host)
		for _, query := range []string{"?rebuild=1", "?rebuild=1&recipe=go"} {
			b, _ := s.want(s.post("/git.test/me/hello/linux/amd64/v1"+query, ""), "", build.Succeeded, "")
			digests[query] = append(digests[query], b.Artifact.SHA256)
		}
		if code := s.stop(); code != 0 {
			t.Errorf("SIGTERM: exit status %d\n%s", code, s.stderr)
		}
	})
	for query, d := range digests {
		if len(d) == 2 && d[0] != d[1] {
			t.Errorf("%s: the engines made different bytes: %q", query, d)
		}
	}
}
