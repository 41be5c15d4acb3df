package gitsrc

import (
	"context"
	"errors"
	"time"

	"github.com/monochromegane/cargo/build"
)

// listTimeout bounds one ref listing: people wait for it.
const listTimeout = 30 * time.Second

// A Ref is what a version meant when it was resolved.
type Ref struct {
	Name   string // full name of the tag or branch, such as refs/tags/v1
	Commit string // full id of the commit, in lower case
	Public bool   // the repository can be read without credentials
}

// Resolve finds what version means: a tag, else a branch, else the full id of
// a commit that is the tip of a tag or branch. tok is used only where the
// repository cannot be read without it. maxAge is how old a listing may be that
// answers, at most a minute; with 0 the git host is asked now. Calls with the
// same arguments at the same time share one listing.
//
// The error is ErrNotFound, wraps ErrUnavailable, is a *RefusedError (too many
// refs), wraps the cause of ctx, or wraps build.ErrInvalid for a repository
// whose name is not plain.
func (s *Source) Resolve(ctx context.Context, repo build.Repository, version string, tok Token, maxAge time.Duration) (Ref, error) {
	a, public, err := s.access(ctx, repo, tok, maxAge, true)
	if err != nil {
		return Ref{}, err
	}
	return a.ref(version, public)
}

// Readable reports whether tok may read a repository, and whether everybody
// may. An answer holds for a minute, or for 5 seconds if it is ErrNotFound.
// Errors are as those of Resolve.
func (s *Source) Readable(ctx context.Context, repo build.Repository, tok Token) (public bool, err error) {
	_, public, err = s.access(ctx, repo, tok, positiveAge, false)
	return public, err
}

// ResolveStale resolves a version by what the repository listed to everybody
// within the last hour, without asking: for when Resolve wraps ErrUnavailable.
// The error is ErrNotFound.
func (s *Source) ResolveStale(repo build.Repository, version string) (Ref, error) {
	a, ok := s.stale(repo)
	if !ok {
		return Ref{}, ErrNotFound
	}
	return a.ref(version, true)
}

// ReadableStale reports whether everybody could read the repository within the
// last hour, as far as is remembered: for when Readable wraps ErrUnavailable.
func (s *Source) ReadableStale(repo build.Repository) bool {
	_, ok := s.stale(repo)
	return ok
}

func (s *Source) stale(repo build.Repository) (answer, bool) {
	a, ok := s.cache.get(s.accessKey(repo, Token{}))
	return a, ok && !a.denied && time.Since(a.at) < staleAge
}

func (a answer) ref(version string, public bool) (Ref, error) {
	t, ok := a.tips.resolve(version)
	if !ok {
		return Ref{}, ErrNotFound
	}
	return Ref{Name: t.name, Commit: t.commit.String(), Public: public}, nil
}

// access asks without credentials first, and with tok only where that was
// refused. An answer to tok that still holds saves the first question.
func (s *Source) access(ctx context.Context, repo build.Repository, tok Token, maxAge time.Duration, whole bool) (a answer, public bool, err error) {
	anonymous := s.accessKey(repo, Token{})
	if a, ok := s.remembered(anonymous, maxAge, whole); ok && !a.denied {
		return a, true, nil
	}
	if !tok.IsZero() {
		if a, ok := s.remembered(s.accessKey(repo, tok), maxAge, whole); ok && !a.denied {
			return a, false, nil
		}
	}
	a, err = s.ask(ctx, repo, Token{}, maxAge, whole)
	if err == nil || !errors.Is(err, ErrNotFound) || tok.IsZero() {
		return a, err == nil, err
	}
	a, err = s.ask(ctx, repo, tok, maxAge, whole)
	return a, false, err
}

func (s *Source) remembered(key cacheKey, maxAge time.Duration, whole bool) (answer, bool) {
	a, ok := s.cache.get(key)
	return a, ok && a.fresh(maxAge) && !(whole && a.partial)
}

// ask lists the refs as tok sees them, unless a remembered answer will do.
func (s *Source) ask(ctx context.Context, repo build.Repository, tok Token, maxAge time.Duration, whole bool) (answer, error) {
	key := s.accessKey(repo, tok)
	a, ok := s.remembered(key, maxAge, whole)
	if !ok {
		var err error
		a, err = s.flights.do(ctx, key, func(ctx context.Context) (answer, error) {
			a, err := s.list(ctx, repo, tok)
			if err == nil {
				s.cache.put(key, a)
			}
			return a, err
		})
		if err != nil {
			return answer{}, err
		}
	}
	if a.denied {
		return answer{}, ErrNotFound
	}
	return a, nil
}

// list asks the git host. Being refused is an answer, not an error.
func (s *Source) list(ctx context.Context, repo build.Repository, tok Token) (answer, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, listTimeout, slowError(listTimeout))
	defer cancel()
	a := answer{at: time.Now()}
	_, refs, err := s.connect(ctx, repo, tok)
	switch {
	case errors.Is(err, ErrNotFound):
		a.denied = true
	case err != nil:
		return answer{}, err
	default:
		a.tips = newTips(refs)
	}
	return a, nil
}
