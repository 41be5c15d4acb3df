package gitsrctest_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

func TestClone(t *testing.T) {
	host := gitsrctest.New(t)
	repo := host.Repository("group/sub/app")
	first := repo.Commit("main", gitsrctest.Files(map[string]string{"go.mod": "module app\n"}))
	second := repo.Commit("main", fstest.MapFS{
		"a-b":      {Data: []byte("sorted before a/"), Mode: 0o644},
		"a/run.sh": {Data: []byte("#!/bin/sh\n"), Mode: 0o755},
		"link":     {Data: []byte("a/run.sh"), Mode: 0o777 | os.ModeSymlink},
	})
	repo.Annotate("v1", "commit", first)
	repo.Tag("v2", second)

	dir := filepath.Join(t.TempDir(), "clone")
	git(t, "clone", "-q", host.URL+"/group/sub/app.git", dir)
	if got := git(t, "-C", dir, "rev-parse", "HEAD"); got != second {
		t.Errorf("HEAD = %s, want %s", got, second)
	}
	if got := git(t, "-C", dir, "describe", "--tags", first); got != "v1" {
		t.Errorf("describe %s = %s, want v1", first, got)
	}
	if got := git(t, "-C", dir, "fsck", "--strict"); got != "" {
		t.Errorf("fsck: %s", got)
	}
	if target, err := os.Readlink(filepath.Join(dir, "link")); target != "a/run.sh" {
		t.Errorf("link -> %q, %v", target, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "a", "run.sh")); err != nil || info.Mode()&0o100 == 0 {
		t.Errorf("a/run.sh is not executable: %v, %v", info, err)
	}
}

func TestToken(t *testing.T) {
	host := gitsrctest.New(t)
	host.Repository("o/private").Commit("main", gitsrctest.Files(map[string]string{"f": "1"}))
	host.Repository("o/public").Commit("main", gitsrctest.Files(map[string]string{"f": "2"}))
	host.Protect("o/private", "T")
	direct := httptest.NewServer(gitsrctest.Handler(host.Root, map[string]string{"o/private": "T"}))
	defer direct.Close()

	for _, base := range []string{host.URL, direct.URL} {
		for _, tc := range []struct {
			path, auth string
			want       int
		}{
			{"o/public", "", 200},
			{"o/private", "", 401},
			{"o/private", "Bearer wrong", 401},
			{"o/private", "Bearer T", 200},
			{"o/private", "token T", 200},
			{"o/private", "Basic eDpU", 200}, // x:T
			{"o/missing", "", 404},
			{"o/../o/public", "", 404},
		} {
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/"+tc.path+".git/info/refs?service=git-upload-pack", nil)
			if tc.auth != "" {
				req.Header.Set("Authorization", tc.auth)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != tc.want {
				t.Errorf("%s with %q = %d, want %d", tc.path, tc.auth, resp.StatusCode, tc.want)
			}
		}
	}
	if got := len(host.Requests()); got != 8 {
		t.Errorf("%d requests remembered, want 8", got)
	}
}

func TestReadOnly(t *testing.T) {
	host := gitsrctest.New(t)
	host.Repository("o/r")
	for _, q := range []string{"/o/r.git/info/refs?service=git-receive-pack", "/o/r.git/HEAD", "/o/r.git/info/refs"} {
		rec := httptest.NewRecorder()
		host.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, q, nil))
		if rec.Code != http.StatusNotFound {
			t.Errorf("GET %s = %d, want 404", q, rec.Code)
		}
	}
}

func git(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", args...)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL="+os.DevNull)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}
