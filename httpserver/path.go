package httpserver

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/monochromegane/cargo/build"
)

// minTarget is the number of segments in the shortest path of a target.
const minTarget = 6

// split takes an escaped path apart and decodes each segment. "/" has none.
func split(escaped string) ([]string, error) {
	if len(escaped) > maxPath {
		return nil, errPathTooLong
	}
	rest, ok := strings.CutPrefix(escaped, "/")
	if !ok {
		return nil, fmt.Errorf("%w: the path does not begin with a slash", build.ErrInvalid)
	}
	if rest == "" {
		return nil, nil
	}
	segments := strings.Split(rest, "/")
	for i, s := range segments {
		if s == "" {
			return nil, fmt.Errorf("%w: the path has an empty segment; take out the doubled or trailing slash", build.ErrInvalid)
		}
		decoded, err := url.PathUnescape(s)
		if err != nil {
			return nil, fmt.Errorf("%w: %q is not percent-encoded as it should be", build.ErrInvalid, s)
		}
		segments[i] = decoded
	}
	return segments, nil
}

// parseTarget reads a path of at least minTarget segments from its end, where
// it has a fixed shape. A path of a target's archive has one segment more. It
// cannot be taken for a longer owner: no GOARCH is the name of a GOOS too.
func parseTarget(segments []string) (t build.Target, archive bool, err error) {
	if last := len(segments) - 1; last >= minTarget {
		t, err = target(segments[:last])
		if err == nil {
			if name := t.ArchiveName(); segments[last] != name {
				return t, false, fmt.Errorf("%w; the file of this target is %s", errNoRoute, name)
			}
			return t, true, nil
		}
	}
	t, err = target(segments)
	return t, false, err
}

// target reads remote, owner (one segment or more), repository, GOOS, GOARCH
// and version. Only the version may have a slash in a segment.
func target(segments []string) (build.Target, error) {
	n := len(segments)
	for _, s := range segments[:n-1] {
		if strings.Contains(s, "/") {
			return build.Target{}, fmt.Errorf("%w: %q has an encoded slash, which only a version may have", build.ErrInvalid, s)
		}
	}
	t := build.Target{
		Repository: build.Repository{
			Remote: segments[0],
			Owner:  strings.Join(segments[1:n-4], "/"),
			Name:   segments[n-4],
		},
		GOOS:    segments[n-3],
		GOARCH:  segments[n-2],
		Version: segments[n-1],
	}
	return t, t.Validate()
}

// targetURL is where t is asked for, and archiveURL where its file is: both
// are paths with a query where t has a recipe.
func targetURL(t build.Target) string  { return targetPath(t) + recipeQuery(t) }
func archiveURL(t build.Target) string { return archivePath(t) + recipeQuery(t) }

func targetPath(t build.Target) string {
	return "/" + t.Repository.String() + "/" + t.Platform() + "/" + url.PathEscape(t.Version)
}

func archivePath(t build.Target) string { return targetPath(t) + "/" + t.ArchiveName() }

func recipeQuery(t build.Target) string {
	if t.Recipe == build.RecipeAuto {
		return ""
	}
	return "?recipe=" + url.QueryEscape(string(t.Recipe))
}
