package httpserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/gitsrc"
	"github.com/monochromegane/cargo/queue"
)

// A record is a build as the API shows it.
type record struct {
	build.Build
	Links links `json:"links"`
}

// links are paths, with a query where one is needed.
type links struct {
	Self     string `json:"self"`
	Logs     string `json:"logs"`
	Download string `json:"download,omitempty"` // of the target, once it is built
}

func show(b build.Build) record {
	r := record{Build: b, Links: links{Self: buildURL(b.ID), Logs: buildURL(b.ID) + "/logs"}}
	if b.State == build.Succeeded {
		r.Links.Download = archiveURL(b.Target)
	}
	return r
}

func buildURL(id build.ID) string { return "/builds/" + url.PathEscape(string(id)) }

// getBuild is GET of a build.
func (s *server) getBuild(w *response, c call) error {
	if _, err := c.query(); err != nil {
		return err
	}
	b, err := s.visible(c)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, show(b))
}

// cancelBuild is DELETE of a build. There are no accounts: who may see a build
// may cancel it.
func (s *server) cancelBuild(w *response, c call) error {
	if _, err := c.query(); err != nil {
		return err
	}
	b, err := s.visible(c)
	if err != nil {
		return err
	}
	if err := s.Builds.Cancel(c.Context(), b.ID); err != nil {
		return err
	}
	return accepted(w, b.ID)
}

// visible is the call's build if the caller may see it: anybody while its
// repository is public, else whoever has a token that reads it now.
func (s *server) visible(c call) (build.Build, error) {
	tok, err := c.token()
	if err != nil {
		return build.Build{}, err
	}
	if !c.id.Valid() {
		return build.Build{}, queue.ErrNotFound
	}
	b, err := s.Builds.Get(c.Context(), c.id)
	if err != nil {
		return build.Build{}, err
	}
	return b, s.readable(c.Context(), b.Repository, tok)
}

// readable returns nil if tok can read the repository, else
// queue.ErrNotFound, or gitsrc.ErrUnavailable if that cannot be known.
func (s *server) readable(ctx context.Context, r build.Repository, tok gitsrc.Token) error {
	_, err := s.Source.Readable(ctx, r, tok)
	switch {
	case errors.Is(err, gitsrc.ErrNotFound):
		return queue.ErrNotFound
	case (errors.Is(err, gitsrc.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded)) && s.Source.ReadableStale(r):
		return nil
	}
	return err
}

const (
	defaultPage  = 20
	maxPage      = 100
	checksAtOnce = 8
	checksTime   = 5 * time.Second // after which what is remembered must do
)

// listBuilds is GET of all builds: those of public repositories.
func (s *server) listBuilds(w *response, c call) error {
	f, err := c.filter()
	if err != nil {
		return err
	}
	page, more, err := s.Builds.List(c.Context(), f)
	if errors.Is(err, queue.ErrNotFound) {
		return fmt.Errorf("%w: after=%s is not a known build", build.ErrInvalid, f.After)
	}
	if err != nil {
		return err
	}
	body := struct {
		Builds []record `json:"builds"`
		Next   build.ID `json:"next,omitempty"` // after= of the next page
	}{Builds: []record{}}
	if more && len(page) > 0 {
		body.Next = page[len(page)-1].ID
	}
	for _, b := range s.public(c.Context(), page) {
		body.Builds = append(body.Builds, show(b))
	}
	return writeJSON(w, http.StatusOK, body)
}

func (c call) filter() (queue.Filter, error) {
	f := queue.Filter{PublicOnly: true, Limit: defaultPage}
	q, err := c.query("state", "after", "limit")
	if err != nil {
		return f, err
	}
	if q.Has("state") {
		if f.State = build.State(q.Get("state")); !slices.Contains(build.States, f.State) {
			return f, fmt.Errorf("%w: state is %q; there is %q", build.ErrInvalid, string(f.State), build.States)
		}
	}
	if q.Has("after") {
		if f.After = build.ID(q.Get("after")); !f.After.Valid() {
			return f, fmt.Errorf("%w: after is not a build id", build.ErrInvalid)
		}
	}
	if q.Has("limit") {
		if f.Limit, err = strconv.Atoi(q.Get("limit")); err != nil || f.Limit < 1 || f.Limit > maxPage {
			return f, fmt.Errorf("%w: limit is a number from 1 to %d", build.ErrInvalid, maxPage)
		}
	}
	return f, nil
}

// public leaves out builds whose repository is public no longer. Each
// repository is asked for once.
func (s *server) public(ctx context.Context, page []build.Build) []build.Build {
	ctx, cancel := context.WithTimeout(ctx, checksTime)
	defer cancel()
	repos := map[build.Repository]bool{} // whether to show
	for _, b := range page {
		repos[b.Repository] = false
	}
	var (
		mu    sync.Mutex // for the values of repos
		slots = make(chan struct{}, checksAtOnce)
		wg    sync.WaitGroup
	)
	for repo := range maps.Clone(repos) {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			err := s.readable(ctx, repo, gitsrc.Token{})
			mu.Lock()
			defer mu.Unlock()
			repos[repo] = err == nil
		})
	}
	wg.Wait()
	return slices.DeleteFunc(page, func(b build.Build) bool { return !repos[b.Repository] })
}
