// Package gitsrctest is a git host for tests and for demonstrations: bare
// repositories served with git's own http-backend, so that what Cargo talks
// to is the real thing. It needs the git program.
package gitsrctest

import (
	"fmt"
	"io"
	"io/fs"
	"log"
	"maps"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// Handler serves the bare repositories in the directory root for reading:
// root/owner/name.git is /owner/name.git. The keys of tokens are repository
// paths such as "owner/name"; each is open only to who brings its token, as
// the password of Basic or after Bearer or token. Other repositories are public.
func Handler(root string, tokens map[string]string) http.Handler {
	tokens = maps.Clone(tokens)
	return newBackend(root, func(repo string) string { return tokens[repo] })
}

// A backend is git http-backend behind a door that opens for git-upload-pack only.
type backend struct {
	root    string
	token   func(repo string) string
	program func() (string, error)
}

func newBackend(root string, token func(repo string) string) *backend {
	return &backend{root: root, token: token, program: sync.OnceValues(program)}
}

func program() (string, error) {
	dir, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		return "", fmt.Errorf("git is needed to serve repositories: %w", err)
	}
	return filepath.Join(strings.TrimSpace(string(dir)), "git-http-backend"), nil
}

func (b *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	repo, ok := requested(r)
	if !ok {
		http.NotFound(w, r)
		return
	}
	if token := b.token(repo); token != "" && !opens(r, token) {
		w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
		http.Error(w, "authentication required", http.StatusUnauthorized)
		return
	}
	if _, err := os.Stat(filepath.Join(b.root, filepath.FromSlash(repo)+".git", "HEAD")); err != nil {
		http.NotFound(w, r)
		return
	}
	path, err := b.program()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	gateway := cgi.Handler{
		Path:       path,
		InheritEnv: []string{"PATH"},
		Env: []string{
			"GIT_PROJECT_ROOT=" + b.root,
			"GIT_HTTP_EXPORT_ALL=1",
			"GIT_CONFIG_NOSYSTEM=1",
			"GIT_CONFIG_GLOBAL=" + os.DevNull,
			"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
		},
		Logger: log.New(io.Discard, "", 0), // a client that goes away is no news here
		Stderr: io.Discard,
	}
	gateway.ServeHTTP(w, r)
}

// requested is the repository path that r reads from, if r is one of the two
// requests of a clone.
func requested(r *http.Request) (repo string, ok bool) {
	name := strings.TrimPrefix(r.URL.Path, "/")
	switch {
	case r.Method == http.MethodGet && r.URL.RawQuery == "service=git-upload-pack":
		repo, ok = strings.CutSuffix(name, ".git/info/refs")
	case r.Method == http.MethodPost:
		repo, ok = strings.CutSuffix(name, ".git/git-upload-pack")
	}
	return repo, ok && fs.ValidPath(repo)
}

func opens(r *http.Request, token string) bool {
	user, password, ok := r.BasicAuth()
	if ok {
		return password == token || user == token
	}
	scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	return given == token && (strings.EqualFold(scheme, "bearer") || strings.EqualFold(scheme, "token"))
}
