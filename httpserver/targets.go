package httpserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/gitsrc"
	"github.com/monochromegane/cargo/queue"
)

// submit is POST of a target.
func (s *server) submit(w *response, c call) error {
	q, err := c.query("recipe", "rebuild")
	if err != nil {
		return err
	}
	rebuild, err := flag(q, "rebuild")
	if err != nil {
		return err
	}
	t, err := c.withRecipe(q)
	if err != nil {
		return err
	}
	tok, err := c.token()
	if err != nil {
		return err
	}
	ref, err := s.resolve(c, t, tok, 0)
	if err != nil {
		return err
	}
	image := s.Image()
	if image == "" {
		return fmt.Errorf("%w: %s; GET /readyz says when there is one", errNotReady, cmp.Or(s.NoImage, "the builder image is being prepared"))
	}
	b := build.Build{
		ID:      build.NewID(),
		Key:     build.Key{Target: t, Commit: ref.Commit, Image: image},
		RefName: ref.Name,
		Public:  ref.Public,
	}
	if !rebuild {
		m, found, err := s.stored(c.Context(), b.Key)
		if err != nil {
			return err
		}
		if found && m.Key.Image == image {
			return &hintError{
				error: fmt.Errorf("%w at commit %s; GET the same path to download it, or POST with rebuild=1 to build it again", errAlreadyBuilt, ref.Commit),
				hint:  hint{Download: targetURL(t), BuildID: m.BuildID},
			}
		}
	}
	var sealed []byte
	if !ref.Public {
		if sealed, err = s.Source.Seal(tok, b.ID); err != nil {
			return err
		}
	}
	b, err = s.Builds.Submit(c.Context(), queue.Submission{Build: b, Sealed: sealed, Caller: s.gate.account(c.caller)})
	if err != nil {
		return outcome(err)
	}
	return accepted(w, b.ID)
}

// outcome is an error of Submit as the caller sees it. What nobody foresaw
// leaves open whether the build is there.
func outcome(err error) error {
	if problemOf(err).Status == http.StatusInternalServerError {
		return fmt.Errorf("%w (%w)", errUncertain, err)
	}
	return err
}

const (
	listingsAtOnce = 16               // a host's longest listings take 125 MB each while they are read
	listingWait    = 10 * time.Second // for one of the others to end
)

// resolve is Source.Resolve, of which only so many go on at once.
func (s *server) resolve(c call, t build.Target, tok gitsrc.Token, maxAge time.Duration) (gitsrc.Ref, error) {
	wait := time.NewTimer(listingWait)
	defer wait.Stop()
	select {
	case s.listings <- struct{}{}:
		defer func() { <-s.listings }()
	case <-wait.C:
		return gitsrc.Ref{}, errListing
	case <-c.Context().Done():
		return gitsrc.Ref{}, context.Cause(c.Context())
	}
	return s.Source.Resolve(c.Context(), t.Repository, t.Version, tok, maxAge)
}

// accepted answers that work on a build will begin, or end, soon.
func accepted(w *response, id build.ID) error {
	w.Header().Set("Location", buildURL(id))
	return writeJSON(w, http.StatusAccepted, struct {
		ID build.ID `json:"build_id"`
	}{id})
}

// findArchive is GET of a target: it points to the file of the commit that
// the version means now.
func (s *server) findArchive(w *response, c call) error {
	t, m, ref, err := s.locate(c, 0)
	if err != nil {
		return err
	}
	if m == nil {
		return s.notBuilt(c, t, ref.Commit)
	}
	setCaching(w, ref.Public)
	w.Header().Set("Location", archiveURL(t))
	w.WriteHeader(http.StatusSeeOther)
	return nil
}

func (c call) withRecipe(q map[string][]string) (build.Target, error) {
	t := c.target
	if v, ok := q["recipe"]; ok {
		t.Recipe = build.Recipe(v[0])
		if t.Recipe == build.RecipeAuto {
			return t, fmt.Errorf("%w: recipe is empty; leave it out or say recipe=go", build.ErrInvalid)
		}
	}
	return t, t.Validate()
}

// stored looks up the artifact of a key, whichever image built it.
func (s *server) stored(ctx context.Context, k build.Key) (m artifact.Meta, found bool, err error) {
	m, err = s.Artifacts.Lookup(ctx, k.Slot())
	if errors.Is(err, artifact.ErrNotFound) {
		if errors.Is(err, artifact.ErrCorrupt) {
			s.Log.Error("stored artifact cannot be served", "repo", k.Repository.String(), "ref", k.Version, "err", err)
		}
		return m, false, nil
	}
	return m, err == nil, err
}

// notBuilt says what the caller can do about it, who may read the repository.
func (s *server) notBuilt(c call, t build.Target, commit string) error {
	now := fmt.Sprintf("%s of %s is commit %s now, which", t.Version, t.Repository, commit)
	if id, state := s.atWork(c, t, commit); id != "" {
		return &hintError{
			error: fmt.Errorf("%w yet: %s is %s as build %s; GET %s tells how far it is", errNotBuilt, now, state, id, buildURL(id)),
			hint:  hint{BuildID: id},
		}
	}
	other, with := t, "recipe=go"
	other.Recipe = build.RecipeGo
	if t.Recipe == build.RecipeGo {
		other.Recipe, with = build.RecipeAuto, "no recipe parameter"
	}
	if _, found, err := s.stored(c.Context(), build.Key{Target: other, Commit: commit}); err == nil && found {
		return &hintError{
			error: fmt.Errorf("%w like this: %s was built with %s; GET %s, or POST this path to build it as you asked", errNotBuilt, now, with, targetURL(other)),
			hint:  hint{Download: targetURL(other)},
		}
	}
	return fmt.Errorf("%w: %s nobody has built for %s; POST this path to build it", errNotBuilt, now, t.Platform())
}

// atWork finds the build that is at the target, among the newest of those that
// are queued or running, which the queue has in memory.
func (s *server) atWork(c call, t build.Target, commit string) (build.ID, build.State) {
	for _, state := range []build.State{build.Running, build.Queued} {
		page, _, err := s.Builds.List(c.Context(), queue.Filter{State: state})
		if err != nil {
			return "", ""
		}
		for _, b := range page {
			if b.Target == t && b.Commit == commit {
				return b.ID, b.State
			}
		}
	}
	return "", ""
}

// setCaching has caches ask again each time: a version may move, a repository
// may become private.
func setCaching(w *response, public bool) {
	if public {
		w.Header().Set("Cache-Control", "no-cache")
	} else {
		w.Header().Set("Cache-Control", "private, no-cache")
	}
}
