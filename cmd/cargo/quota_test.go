package main

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

// makes is a repository whose Makefile is one command.
func makes(command string) map[string]string {
	return map[string]string{"Makefile": "all:\n\t@" + command + "\n"}
}

// An artifact that --storage-limit evicted is built again when it is asked for.
func TestStorageLimit(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		host := gitsrctest.New(t)
		data := t.TempDir()
		s := newServer(t, engine, data, host, "--storage-limit", "5MiB")
		path := func(i int) string { return fmt.Sprintf("/git.test/me/app%d/linux/amd64/main", i) }
		for i := range 3 {
			host.Repository(fmt.Sprintf("me/app%d", i)).Commit("main", gitsrctest.Files(makes("head -c 2000000 /dev/urandom > out.bin")))
			s.want(s.post(path(i), ""), "", build.Succeeded, "")
		}
		if r := s.do(http.MethodGet, path(0), ""); r.StatusCode != http.StatusNotFound {
			t.Errorf("GET of what was evicted = %s %s", r.Status, r.body)
		}
		s.wantKept(data)
		if kept := s.kept("artifacts"); kept > 5<<20 {
			t.Errorf("%d bytes of artifacts are kept", kept)
		}
		s.want(s.post(path(0), ""), "", build.Succeeded, "")
		for i, want := range []int{http.StatusOK, http.StatusNotFound, http.StatusOK} {
			if r := s.do(http.MethodGet, path(i), ""); r.StatusCode != want {
				t.Errorf("GET %s = %s, want %d", path(i), r.Status, want)
			}
		}
	})
}

// A server on a disk with less than --min-free says so, takes builds, starts
// none, and serves what it has.
func TestMinFree(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		host := gitsrctest.New(t)
		for _, name := range []string{"before", "waits"} {
			host.Repository("me/"+name).Commit("main", gitsrctest.Files(makes("echo x > out.txt")))
		}
		const before, waits = "/git.test/me/before/linux/amd64/main", "/git.test/me/waits/linux/amd64/main"
		s := newServer(t, engine, t.TempDir(), host)
		s.want(s.post(before, ""), "", build.Succeeded, "")
		s.stop()
		usual := s.args
		s.args = append(slices.Clone(usual), "--min-free", "900PiB")
		s.launch()
		until(t, "the server says that the disk is full, and nothing else", func() bool {
			resp, err := http.Get(s.url + "/readyz")
			if err != nil {
				return false
			}
			_ = resp.Body.Close()
			r := s.do(http.MethodGet, "/readyz", "")
			return r.StatusCode == http.StatusServiceUnavailable && strings.Contains(string(r.body), "less than --min-free 900PiB") && !strings.Contains(string(r.body), "image")
		})
		id := s.post(waits, "")
		s.download(before, "")
		time.Sleep(2 * spacePause)
		if b := s.record(id, ""); b.State != build.Queued {
			t.Errorf("the build is %s", b.State)
		}
		s.stop()
		s.args = usual
		s.start()
		s.want(id, "", build.Succeeded, "")
	})
}

// What is older than its retention is gone after the next start at the latest.
func TestRetention(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		host := gitsrctest.New(t)
		host.Repository("me/app").Commit("main", gitsrctest.Files(makes("echo x > out.txt")))
		const path = "/git.test/me/app/linux/amd64/main"
		data := t.TempDir()
		s := newServer(t, engine, data, host)
		id := s.post(path, "")
		s.want(id, "", build.Succeeded, "")
		s.stop()
		usual := s.args

		s.args = append(slices.Clone(usual), "--log-retention", "1ms")
		s.start()
		until(t, "the log is gone", func() bool { return len(glob(data, "logs/*/*")) == 0 })
		if b := s.record(id, ""); b.State != build.Succeeded {
			t.Errorf("the record says %s", b.State)
		}
		if r := s.do(http.MethodGet, "/builds/"+string(id)+"/logs", ""); r.StatusCode != http.StatusOK || len(r.body) > 0 {
			t.Errorf("GET of a log that is gone = %s %s", r.Status, r.body)
		}
		s.stop()
		s.args = append(slices.Clone(usual), "--record-retention", "1s")
		s.start()
		until(t, "the record is gone", func() bool {
			return s.do(http.MethodGet, "/builds/"+string(id), "").StatusCode == http.StatusNotFound
		})
		s.download(path, "") // it has a limit of its own
	})
}

// moduleRequests is how many files of modules came from somewhere.
func (s *server) moduleRequests(from string) int {
	s.t.Helper()
	m := regexp.MustCompile(`cargo_module_requests_total\{from="` + from + `"\} (\d+)`).FindSubmatch(s.do(http.MethodGet, "/metrics", "").body)
	if m == nil {
		s.t.Fatalf("no metric counts modules from %s", from)
	}
	n, _ := strconv.Atoi(string(m[1])) // digits
	return n
}

// A module is fetched once for all builds, and with --network none what is
// kept is all there is.
func TestModulesAreKept(t *testing.T) {
	proxy, sums := moduleProxy(t)
	t.Setenv("GOPROXY", "file://"+proxy)
	t.Setenv("GOSUMDB", "off")
	engines(t, func(t *testing.T, engine string) {
		host := gitsrctest.New(t)
		app := func(name, gomod, sums string) string {
			files := makes("go build -o app .")
			files["go.mod"], files["go.sum"] = gomod, sums
			files["main.go"] = "package main\n\nimport \"example.test/dep\"\n\nfunc main() { println(dep.Name()) }\n"
			host.Repository("me/"+name).Commit("main", gitsrctest.Files(files))
			return "/git.test/me/" + name + "/linux/amd64/main"
		}
		gomod := "module git.test/me/app\n\ngo 1.26\n\nrequire example.test/dep v1.0.0\n"
		one, two, three := app("one", gomod, sums), app("two", gomod, sums), app("three", gomod, sums)
		newer := app("newer", strings.ReplaceAll(gomod, "v1.0.0", "v1.0.1"), strings.ReplaceAll(sums, "v1.0.0", "v1.0.1"))
		s := newServer(t, engine, t.TempDir(), host)
		s.want(s.post(one, ""), "", build.Succeeded, "")
		fetched := s.moduleRequests("upstream")
		if fetched == 0 || fetched > 3 { // info, mod and zip
			t.Errorf("%d files of one module were fetched", fetched)
		}
		for _, again := range []string{two, one + "?recipe=go", two + "?rebuild=1"} {
			s.want(s.post(again, ""), "", build.Succeeded, "")
		}
		if n := s.moduleRequests("upstream"); n != fetched {
			t.Errorf("%d files of one module were fetched for four builds, %d for the first", n, fetched)
		}
		s.stop()
		s.args = append(s.args, "--network", "none")
		s.start()
		s.want(s.post(three, ""), "", build.Succeeded, "")
		for _, query := range []string{"", "?recipe=go"} {
			if _, log := s.want(s.post(newer+query, ""), "", build.Failed, build.ReasonExit); !strings.Contains(log, "--network none") || !strings.Contains(log, "docs/builds.md") {
				t.Errorf("%s: the log does not say why there is no module:\n%s", query, log)
			}
		}
		if n := s.moduleRequests("upstream"); n != 0 {
			t.Errorf("%d files were fetched with --network none", n)
		}
		host.Repository("me/curl").Commit("main", gitsrctest.Files(makes("git clone http://example.test/x")))
		if _, log := s.want(s.post("/git.test/me/curl/linux/amd64/main", ""), "", build.Failed, build.ReasonExit); !strings.Contains(log, "docs/builds.md#network") {
			t.Errorf("the log does not say why there is no network:\n%s", log)
		}
	})
}

// The caches are looked after by hand while a server uses them.
func TestCacheByHand(t *testing.T) {
	host := gitsrctest.New(t)
	host.Repository("me/app").Commit("main", gitsrctest.Files(plants("", 8)))
	engines(t, func(t *testing.T, engine string) {
		data := t.TempDir()
		s := newServer(t, engine, data, host)
		const path = "/git.test/me/app/linux/amd64/main"
		s.want(s.post(path, ""), "", build.Succeeded, "")
		if list := cacheCommandSays(t, data, "list"); !strings.Contains(list, "git.test/me/app") || !strings.Contains(list, "64KiB") {
			t.Errorf("cargo cache list:\n%s", list)
		}
		for _, says := range []string{"64KiB freed, 0B kept\n", "0B freed, 0B kept\n"} {
			if got := cacheCommandSays(t, data, "prune"); got != says {
				t.Errorf("cargo cache prune says %q, want %q", got, says)
			}
		}
		s.wantKept(data)
		s.want(s.post(path+"?rebuild=1", ""), "", build.Succeeded, "")
		if kept := s.kept("packages"); kept != 64<<10 {
			t.Errorf("%d bytes are kept after another build", kept)
		}
		s.stop()
		if list := cacheCommandSays(t, data, "list"); !strings.Contains(list, "git.test/me/app") {
			t.Errorf("cargo cache list without a server:\n%s", list)
		}
	})
}
