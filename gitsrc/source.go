// Package gitsrc fetches source code from git hosts: it resolves a version to
// a commit, says who may read a repository, and writes the tree of one commit,
// fetched at depth 1, into a directory. No git program is run: the protocol is
// go-git's HTTP transport. Callers' tokens live and die in this package.
package gitsrc

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

var (
	// ErrNotFound says that the remote is not allowed, or that the repository
	// or the version is missing or may not be read. It is always returned as
	// it is, so that the four cases cannot be told apart.
	ErrNotFound = errors.New("no such repository or version, or it may not be read with these credentials")

	// ErrUnavailable is wrapped when the git host cannot be reached, answers
	// with 429 or 5xx, breaks off or takes too long. Trying again may help.
	ErrUnavailable = errors.New("the git host is not available")

	// ErrMoved says that a ref no longer points to the commit it was resolved to.
	ErrMoved = errors.New("the version was moved to another commit in the meantime; ask for it again")
)

// A RefusedError says why a source that may be read is not taken: it is
// hostile, broken or larger than a limit.
type RefusedError struct {
	Why string // the end of a sentence that begins with the source
}

// Error is one sentence for the person who asked.
func (e *RefusedError) Error() string { return "the source was refused: " + e.Why }

func refuse(format string, args ...any) error {
	return &RefusedError{Why: fmt.Sprintf(format, args...)}
}

// Limits bound what one repository may cost. A zero field means its default.
type Limits struct {
	TreeBytes int64         // unpacked bytes of all objects, and bytes of all files written; 1 GiB
	WireBytes int64         // bytes that one fetch may receive; as TreeBytes
	Files     int           // files and directories of a tree; 200,000
	PathDepth int           // directories above a file; 64
	Refs      int64         // bytes of a ref listing; 32 MiB
	Timeout   time.Duration // for one fetch; 10 minutes
}

func (l Limits) withDefaults() Limits {
	set(&l.TreeBytes, 1<<30)
	set(&l.WireBytes, l.TreeBytes)
	set(&l.Files, 200_000)
	set(&l.PathDepth, 64)
	set(&l.Refs, 32<<20)
	set(&l.Timeout, 10*time.Minute)
	return l
}

func set[T int | int64 | time.Duration](field *T, value T) {
	if *field <= 0 {
		*field = value
	}
}

// An Owner is the user and group, by their ids on this host, to whom every
// written file and directory is given. The zero value leaves them as created.
type Owner struct{ UID, GID int }

// Options configure a Source.
type Options struct {
	// Remotes is the allow-list: the name of a remote, as in a URL of Cargo, to
	// the base URL of its repositories, such as "github.com" to "https://github.com".
	Remotes map[string]string
	Limits  Limits
	Owner   Owner
	// Secret, of 32 bytes or more, keys the access cache and seals tokens.
	// What was sealed under one secret can be unsealed under the same only.
	Secret []byte
	// Transport makes the requests to git hosts. It must not follow redirects.
	// nil means one of the Source's own, which honours the proxy variables.
	Transport http.RoundTripper
	Log       *slog.Logger // nil discards
}

// A Source reads repositories of the allowed remotes. Its methods are safe
// for concurrent use.
type Source struct {
	remotes   map[string]*url.URL
	limits    Limits
	owner     Owner
	keys      keys
	transport http.RoundTripper
	log       *slog.Logger
	cache     *cache
	flights   flights
}

// New returns a Source; its error names every option that is wrong.
func New(o Options) (*Source, error) {
	s := &Source{
		remotes:   make(map[string]*url.URL, len(o.Remotes)),
		limits:    o.Limits.withDefaults(),
		owner:     o.Owner,
		transport: o.Transport,
		log:       o.Log,
		cache:     newCache(),
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(o.Remotes)) {
		u, err := parseBase(o.Remotes[name])
		if err != nil {
			errs = append(errs, fmt.Errorf("remote %s: %w", name, err))
		}
		s.remotes[name] = u
	}
	var err error
	if s.keys, err = deriveKeys(o.Secret); err != nil {
		errs = append(errs, err)
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.transport == nil {
		s.transport = newTransport()
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return s, nil
}

func parseBase(base string) (*url.URL, error) {
	u, err := url.Parse(base)
	switch {
	case err != nil:
		return nil, errors.New("the base URL cannot be parsed")
	case u.User != nil:
		return nil, errors.New("the base URL must not hold credentials")
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "":
		return nil, fmt.Errorf("base URL %q is not http://HOST or https://HOST", base)
	case u.RawQuery != "" || u.Fragment != "" || strings.Contains(base, "#"):
		return nil, fmt.Errorf("base URL %q must end with its path", base)
	}
	return u, nil
}
