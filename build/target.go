// Package build is the domain: what can be asked for, what is recorded of it
// and how it can end. It does no I/O and imports nothing of ours.
package build

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// ErrInvalid is wrapped by every error that says a request cannot mean
// anything; its text is fit for the person who asked.
var ErrInvalid = errors.New("invalid request")

// A Recipe says how a tree is turned into binaries.
type Recipe string

const (
	// RecipeAuto runs the repository's Makefile, or RecipeGo where there is none.
	RecipeAuto Recipe = ""
	// RecipeGo is Cargo's own: go build, argv only, whatever Makefile there is.
	RecipeGo Recipe = "go"
)

// A Repository names a repository on one of the allowed remotes.
type Repository struct {
	Remote string `json:"remote"` // name from the allow-list, such as github.com
	Owner  string `json:"owner"`  // may be nested: group/subgroup
	Name   string `json:"repo"`
}

// String is the path of the repository as it stands in every URL of Cargo.
func (r Repository) String() string { return r.Remote + "/" + r.Owner + "/" + r.Name }

// A Target is what a client asks for: a version of a repository for a platform.
type Target struct {
	Repository
	GOOS    string `json:"goos"`
	GOARCH  string `json:"goarch"`
	Version string `json:"version"` // tag, branch or full commit id, as asked
	Recipe  Recipe `json:"recipe,omitempty"`
}

// Platform is GOOS/GOARCH.
func (t Target) Platform() string { return t.GOOS + "/" + t.GOARCH }

// ArchiveName is the file name under which the artifact is served.
func (t Target) ArchiveName() string {
	return t.Name + "_" + t.GOOS + "_" + t.GOARCH + ".tar.gz"
}

// KnownPlatform reports whether the Go toolchain knows goos/goarch.
func KnownPlatform(goos, goarch string) bool { return slices.Contains(platforms, goos+"/"+goarch) }

var (
	remotePattern  = regexp.MustCompile(`^[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?$`)
	segmentPattern = regexp.MustCompile(`^[A-Za-z0-9_~][A-Za-z0-9._-]{0,99}$`)
	refPattern     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+/-]{0,127}$`)
)

// maxOwnerDepth bounds nested groups; GitLab allows twenty levels.
const maxOwnerDepth = 20

// Validate reports, wrapping ErrInvalid, the first part that is not plain.
// A plain name is safe as a path element, as an argument and in a log line.
func (t Target) Validate() error {
	if err := t.Repository.Validate(); err != nil {
		return err
	}
	if !KnownPlatform(t.GOOS, t.GOARCH) {
		return fmt.Errorf("%w: unknown platform %q; `go tool dist list` prints the known ones", ErrInvalid, t.Platform())
	}
	if !refPattern.MatchString(t.Version) {
		return fmt.Errorf("%w: version %q is not plain: it must match %s (write a slash in it as %%2F)", ErrInvalid, t.Version, refPattern)
	}
	if t.Recipe != RecipeAuto && t.Recipe != RecipeGo {
		return fmt.Errorf("%w: unknown recipe %q; leave it out or ask for recipe=go", ErrInvalid, string(t.Recipe))
	}
	return nil
}

// Validate reports, wrapping ErrInvalid, the first part of the name that is not plain.
func (r Repository) Validate() error {
	if !remotePattern.MatchString(r.Remote) || strings.Contains(r.Remote, "..") {
		return fmt.Errorf("%w: remote %q is not a plain host name", ErrInvalid, r.Remote)
	}
	owners := strings.Split(r.Owner, "/")
	if len(owners) > maxOwnerDepth {
		return fmt.Errorf("%w: owner is nested deeper than %d levels", ErrInvalid, maxOwnerDepth)
	}
	for _, s := range append(owners, r.Name) {
		if !segmentPattern.MatchString(s) {
			return fmt.Errorf("%w: %q is not a plain repository name", ErrInvalid, s)
		}
	}
	if strings.HasSuffix(strings.ToLower(r.Name), ".git") {
		return fmt.Errorf("%w: write the repository's name without .git", ErrInvalid)
	}
	return nil
}

// A Key identifies the output of a build: equal keys, equal bytes.
type Key struct {
	Target
	Commit string `json:"commit"` // full commit id
	Image  string `json:"image"`  // digest of the builder image's configuration
}

// Digest is the key as 64 hex digits, safe as a file name and as a subject token.
func (k Key) Digest() string { return digest(k.Slot(), k.Image) }

// Slot is the digest of the key without the image: where the newest artifact
// of these sources for this platform is found, whichever image built it.
func (k Key) Slot() string {
	return digest(k.Repository.String(), k.Version, k.Commit, k.Platform(), string(k.Recipe))
}

func digest(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))
}
