package gitsrc_test

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/gitsrc"
	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

const remote = "git.test"

// app is the repository that most tests use.
var app = build.Repository{Remote: remote, Owner: "o", Name: "app"}

var secret = bytes.Repeat([]byte("0123456789abcdef"), 2)

// newSource returns a Source whose one remote is host. change may be nil.
func newSource(t testing.TB, host *gitsrctest.Host, change func(*gitsrc.Options)) *gitsrc.Source {
	t.Helper()
	o := gitsrc.Options{
		Remotes: map[string]string{remote: host.URL},
		Secret:  secret,
		Log:     slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&o)
	}
	s, err := gitsrc.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fetch resolves and fetches a version into a new directory.
func fetch(t testing.TB, s *gitsrc.Source, version string) (*gitsrc.Tree, gitsrc.Ref, string) {
	t.Helper()
	ref, err := s.Resolve(t.Context(), app, version, gitsrc.Token{}, 0)
	if err != nil {
		t.Fatalf("Resolve(%s) = %v", version, err)
	}
	dir := t.TempDir()
	tree, err := s.Fetch(t.Context(), app, ref, gitsrc.Token{}, dir)
	if err != nil {
		t.Fatalf("Fetch(%s) = %v", version, err)
	}
	return tree, ref, dir
}

func token(t testing.TB, header string) gitsrc.Token {
	t.Helper()
	tok, err := gitsrc.ParseAuthorization(header)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func files(m map[string]string) fs.FS { return gitsrctest.Files(m) }

// wantEmpty fails unless dir has nothing in it.
func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		t.Errorf("left in the workspace: %v, %v", entries, err)
	}
}

// wantRefused fails unless err is a RefusedError that says why.
func wantRefused(t *testing.T, err error, why string) {
	t.Helper()
	refused, ok := errors.AsType[*gitsrc.RefusedError](err)
	if !ok || !strings.Contains(refused.Why, why) {
		t.Errorf("error = %v; want it refused with %q", err, why)
	}
}

// git runs the real git in dir and returns what it prints.
func git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	return gitAs(t, dir, nil, args...)
}

func gitAs(t testing.TB, dir string, as *syscall.Credential, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", args...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "GIT_CONFIG_NOSYSTEM=1"}
	if as != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// A recorder is a log that a test can read while others write it.
type recorder struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.Write(p)
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.String()
}

func TestNewNamesWhatIsWrong(t *testing.T) {
	_, err := gitsrc.New(gitsrc.Options{
		Remotes: map[string]string{"a": "ssh://host", "b": "https://user:hidden@host", "c": "https://host?q=1", "d": "https://fine/path"},
		Secret:  []byte("short"),
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"remote a", "remote b", "remote c", "secret has 5 bytes"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not mention %q", err, want)
		}
	}
	for _, not := range []string{"remote d", "hidden"} {
		if strings.Contains(err.Error(), not) {
			t.Errorf("error %q mentions %q", err, not)
		}
	}
}
