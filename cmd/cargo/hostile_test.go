package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

// hostileServers are the flags of the servers that fixtures run on, by the
// names that fixtures give them.
var hostileServers = map[string][]string{
	"small":   {"--pids", "64", "--memory", "256MiB", "--log-limit", "1MiB", "--artifact-limit", "4MiB", "--build-timeout", "1m"},
	"disk":    {"--pids", "64", "--memory", "512MiB", "--disk", "64MiB", "--build-timeout", "1m"},
	"hurried": {"--build-timeout", "3s", "--prepare", "linux/amd64"},
	"go":      {}, // room for a compiler
}

// hostileToken opens the private fixtures. No log may ever say it.
const hostileToken = "h0stile-T0ken-0123456789abcdef"

// Repositories that mean harm end as they must, and the server, the engine and
// the machine are afterwards what they were. On Docker only what depends on
// the engine is run, unless CARGO_TEST_HOSTILE is "all".
func TestHostile(t *testing.T) {
	// Nothing here leaves the machine; what is not in a repository is not there.
	t.Setenv("GOPROXY", "off")
	t.Setenv("GOSUMDB", "off")
	fixtures := readFixtures(t)
	engines(t, func(t *testing.T, engine string) {
		for _, flags := range slices.Sorted(maps.Keys(hostileServers)) {
			t.Run(flags, func(t *testing.T) {
				var chosen []*fixture
				for _, f := range fixtures {
					if f.server == flags && (engine == "containerd" || f.both || os.Getenv("CARGO_TEST_HOSTILE") == "all") {
						chosen = append(chosen, f)
					}
				}
				if len(chosen) > 0 {
					runHostile(t, engine, hostileServers[flags], chosen)
				}
			})
		}
	})
}

// runHostile runs fixtures one after the other on a server of their own, with
// an honest build after each.
func runHostile(t *testing.T, engine string, flags []string, fixtures []*fixture) {
	h := &hostileRun{engine: engine, host: gitsrctest.New(t), data: t.TempDir()}
	h.host.Repository("me/honest").Commit("main", gitsrctest.Files(map[string]string{"Makefile": "all:\n\t@echo honest > honest.txt\n"}))
	copyLibrary(t, engine, h.data)
	h.server = newServer(t, engine, h.data, h.host, flags...)
	for range 3 {
		h.usual = max(h.usual, h.honest(t))
	}
	for _, f := range fixtures {
		t.Run(f.name, func(t *testing.T) { h.run(t, f) })
	}
	if code := h.server.stop(); code != 0 {
		t.Errorf("SIGTERM: exit status %d", code)
	}
	wantNothingLeft(t, h.data)
	wantNone(t, h.data, h.data)
	wantInNoFile(t, h.data, hostileToken)
	if strings.Contains(h.server.stderr.String(), hostileToken) {
		t.Error("the token is in the server's log")
	}
}

// A hostileRun is a server that fixtures run on.
type hostileRun struct {
	engine string
	host   *gitsrctest.Host
	data   string
	server *server
	usual  time.Duration // of an honest build
}

// honest builds an honest repository and returns how long that took.
func (h *hostileRun) honest(t *testing.T) time.Duration {
	t.Helper()
	s := h.server.of(t)
	const path = "/git.test/me/honest/linux/amd64/main"
	b, _ := s.want(s.post(path+"?rebuild=1", ""), "", build.Succeeded, "")
	if got, want := archived(t, s.do(http.MethodGet, path, "").body), []string{"-rw-r--r-- honest.txt"}; !slices.Equal(got, want) {
		t.Errorf("the honest build made %q, want %q", got, want)
	}
	return b.FinishedAt.Sub(b.AcceptedAt)
}

// run runs one fixture and looks at everything that it may have harmed.
func (h *hostileRun) run(t *testing.T, f *fixture) {
	s := h.server.of(t)
	said := len(s.stderr.String())
	repo := h.host.Repository("me/" + f.name)
	sc := &scene{t: t, hostileRun: h, repo: repo, tree: maps.Clone(f.tree)}
	check := func() {}
	if prepare := scenes[f.name]; prepare != nil {
		check = prepare(sc)
	}
	commit := repo.Commit("main", sc.tree)
	if f.version != "main" {
		repo.Tag(f.version, commit)
	}
	token := ""
	if f.private {
		token = hostileToken
		h.host.Protect("me/"+f.name, token)
	}
	path := "/git.test/me/" + f.name + "/" + f.platform + "/" + url.PathEscape(f.version)
	query := ""
	if f.recipe != build.RecipeAuto {
		query = "?recipe=" + string(f.recipe)
	}

	if f.status != 0 {
		if r := s.do(http.MethodPost, path+query, token); r.StatusCode != f.status {
			t.Errorf("POST %s = %s %s, want %d", path, r.Status, r.body, f.status)
		}
	} else {
		b, log := s.ended(s.post(path+query, token), token)
		t.Logf("%s %s after %v %v: %s", b.State, b.Reason, b.FinishedAt.Sub(b.AcceptedAt).Round(time.Millisecond), b.Phases, b.Message)
		f.checkLog(t, b, log)
		if f.archive != nil {
			if diff := cmp.Diff(f.archive, archived(t, s.do(http.MethodGet, path+query, token).body)); diff != "" {
				t.Errorf("the archive (-want +got):\n%s", diff)
			}
		}
		if took := b.FinishedAt.Sub(b.StartedAt); f.within > 0 && took > f.within {
			t.Errorf("it took %v, want at most %v", took, f.within)
		}
		wantNone(t, string(b.ID), h.data)
	}
	check()
	if took, most := h.honest(t), 5*h.usual+5*time.Second; took > most {
		t.Errorf("the next honest build took %v, want at most %v: such a build took %v before", took, most, h.usual)
	}
	if r := s.do(http.MethodGet, "/readyz", ""); r.StatusCode != http.StatusOK {
		t.Errorf("readyz = %s %s", r.Status, r.body)
	}
	for line := range strings.Lines(s.stderr.String()[said:]) {
		if strings.Contains(line, "ERROR") {
			t.Errorf("what a build did is no error of the server: %s", line)
		}
	}
}

// of is the server on behalf of another test.
func (s *server) of(t *testing.T) *server {
	c := *s
	c.t = t
	return &c
}

// checkLog checks that every line of a log is one of Cargo's own, whatever the
// build wrote, and that the log says what the fixture wants.
func (f *fixture) checkLog(t *testing.T, b build.Build, log string) {
	t.Helper()
	var text strings.Builder
	var last struct {
		ID    build.ID    `json:"build_id"`
		Msg   string      `json:"msg"`
		State build.State `json:"state"`
	}
	for line := range strings.Lines(log) {
		last.State = ""
		if err := json.Unmarshal([]byte(line), &last); err != nil || last.ID != b.ID {
			t.Fatalf("%.200q is no line of the log: %v", line, err)
		}
		text.WriteString(last.Msg + "\n")
	}
	if last.State != b.State || b.Message != "" && last.Msg != b.Message {
		t.Errorf("the log ends with %q, state %q", last.Msg, last.State)
	}
	if b.State != f.state || b.Reason != f.reason {
		t.Errorf("it is %s %s, want %s %s; its log:\n%s", b.State, b.Reason, f.state, f.reason, excerpt(text.String()))
	}
	for _, want := range f.log {
		if !want.MatchString(text.String()) {
			t.Errorf("the log does not say %q:\n%s", want, excerpt(text.String()))
		}
	}
	for _, never := range f.never {
		if found := never.FindString(text.String()); found != "" {
			t.Errorf("the log says %q", excerpt(found))
		}
	}
	if strings.Contains(log, hostileToken) {
		t.Error("the log says the token")
	}
}

// excerpt is what a test may print of a log.
func excerpt(log string) string {
	const half = 4 << 10
	log = strings.ReplaceAll(log, hostileToken, "TOKEN")
	if len(log) > 2*half {
		log = log[:half] + "\n[...]\n" + log[len(log)-half:]
	}
	return log
}

// archived lists what is in an archive, each with its mode.
func archived(t *testing.T, archive []byte) (list []string) {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatalf("no archive: %v: %.200q", err, archive)
	}
	for r := tar.NewReader(z); ; {
		switch h, err := r.Next(); {
		case errors.Is(err, io.EOF):
			return list
		case err != nil:
			t.Fatal(err)
		default:
			list = append(list, fmt.Sprintf("%v %s", h.FileInfo().Mode(), h.Name))
		}
	}
}
