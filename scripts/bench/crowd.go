package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/monochromegane/cargo/scripts/modrepo"
)

// The crowd is a thousand repositories that all list what the repository of the
// app crowd lists. There is nothing to fetch from them. Git's own answer to
// that is recorded once and repeated: the git host would otherwise take more of
// this machine than what is measured.
const (
	crowdOwners = 100
	crowdRepos  = 10 // of each owner
	crowdRefs   = 20
)

// crowdPlatforms are what is asked for of each repository of the crowd.
var crowdPlatforms = []string{
	"linux/amd64", "linux/arm64", "linux/386", "linux/arm", "darwin/amd64", "darwin/arm64", "windows/amd64", "windows/arm64", "freebsd/amd64", "openbsd/amd64",
}

func crowdVersion(n int) string { return fmt.Sprintf("v1.0.%d", n%crowdRefs) }

// crowdTarget is the path of the nth target of the crowd. Those that follow one
// another are of different owners.
func crowdTarget(n int) string {
	owner, rest := n%crowdOwners, n/crowdOwners
	return fmt.Sprintf("/%s/crowd%d/app%d/%s/%s", remote, owner, rest%crowdRepos, crowdPlatforms[rest/crowdRepos%len(crowdPlatforms)], crowdVersion(n))
}

// crowdTags commits all versions but the first, and leaves that for the caller.
func crowdTags(ctx context.Context, w modrepo.Work) error {
	for n := crowdRefs - 1; n >= 0; n-- {
		if err := makefile(w, fmt.Sprintf("# %d\napp:\n\t@cp Makefile app\n", n)); err != nil || n == 0 {
			return err
		}
		if err := w.Commit(ctx, crowdVersion(n)); err != nil {
			return err
		}
	}
	return nil
}

// newCrowd is host with the crowd beside what it has.
func newCrowd(ctx context.Context, host http.Handler) (http.Handler, error) {
	const list = "/info/refs"
	listing := httptest.NewRecorder()
	host.ServeHTTP(listing, httptest.NewRequestWithContext(ctx, http.MethodGet, "/"+catalog[crowd].path+".git"+list+"?service=git-upload-pack", nil))
	if listing.Code != http.StatusOK {
		return nil, fmt.Errorf("list the refs of %s: status %d", crowd, listing.Code)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/crowd") || !strings.HasSuffix(r.URL.Path, list) {
			host.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", listing.Header().Get("Content-Type"))
		_, _ = w.Write(listing.Body.Bytes()) // who asked may have gone
	}), nil
}
