package modproxy

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/tlog"
)

// maxPath bounds one request's path, in bytes. The longest that a real module
// has is a few hundred.
const maxPath = 1024

// A kind is what a request asks for.
type kind int

const (
	kindList      kind = iota // <module>/@v/list
	kindLatest                // <module>/@latest
	kindQuery                 // <module>/@v/<branch or the like>.info
	kindInfo                  // <module>/@v/<version>.info
	kindMod                   // <module>/@v/<version>.mod
	kindZip                   // <module>/@v/<version>.zip
	kindSupported             // sumdb/<database>/supported
	kindSigned                // sumdb/<database>/latest
	kindLookup                // sumdb/<database>/lookup/<module>@<version>
	kindTile                  // sumdb/<database>/tile/<height>/<level>/<number>
)

// A request is one that may pass the filter.
type request struct {
	kind    kind
	path    string // module path; empty for the checksum database
	version string // or what names one
	name    string // canonical path without the leading slash: what is asked for upstream and kept in the cache
	toKeep  bool   // of no use to who asks if it may not be kept
	rest    string // name after the database's prefix, such as lookup/example.com/m@v1.0.0
}

// immutable reports whether the answer is the same for ever.
func (q request) immutable() bool {
	switch q.kind {
	case kindInfo, kindMod, kindZip, kindLookup, kindTile:
		return true
	}
	return false
}

// errBlocked is everything that the filter does not pass.
var errBlocked = errors.New("a build reaches a Go module proxy and nothing else")

func blocked(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errBlocked, fmt.Sprintf(format, args...))
}

// admit decides whether r may pass, sumdb being the only checksum database
// there is ("" for none). Its errors are fit for the build's output.
func admit(r *http.Request, sumdb string) (request, error) {
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		return request{}, blocked("method %.16q is not GET or HEAD", r.Method)
	case r.URL.Host != "" || r.URL.Scheme != "" || r.URL.Opaque != "":
		return request{}, blocked("it forwards to no other host")
	case r.URL.RawQuery != "" || r.URL.ForceQuery:
		return request{}, blocked("it takes no query")
	case r.ContentLength != 0:
		return request{}, blocked("it takes no request body")
	}
	return parse(r.URL.Path, sumdb)
}

// parse reads a decoded path in the grammar of the module proxy protocol
// (https://go.dev/ref/mod#goproxy-protocol) and of its checksum database part.
func parse(path, sumdb string) (request, error) {
	if len(path) > maxPath {
		return request{}, blocked("the path is longer than %d bytes", maxPath)
	}
	name, ok := strings.CutPrefix(path, "/")
	if !ok || strings.ContainsFunc(name, func(r rune) bool { return !plain(r) }) {
		return request{}, blocked("%q is no path of it", path)
	}
	var (
		q   request
		err error
	)
	if rest, found := strings.CutPrefix(name, "sumdb/"); found {
		q, err = parseSumDB(rest, sumdb)
	} else {
		q, err = parseModule(name)
	}
	if err != nil {
		return request{}, blocked("%q: %v", path, err)
	}
	q.name = name
	return q, nil
}

// plain reports whether r means the same in a path, in a URL and as a file
// name. Module paths and versions are made of such runes; names of branches
// need not be.
func plain(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("/@!-._~+", r)
}

var errGrammar = errors.New("not in the grammar of a module proxy")

func parseModule(name string) (q request, err error) {
	escaped, file, ok := strings.Cut(name, "/@")
	if !ok {
		return q, errGrammar
	}
	if q.path, err = module.UnescapePath(escaped); err != nil {
		return q, err
	}
	switch file {
	case "latest":
		q.kind, q.version = kindLatest, "latest"
		return q, nil
	case "v/list":
		q.kind = kindList
		return q, nil
	}
	file, ok = strings.CutPrefix(file, "v/")
	dot := strings.LastIndexByte(file, '.')
	if !ok || dot < 0 {
		return q, errGrammar
	}
	if q.version, err = module.UnescapeVersion(file[:dot]); err != nil {
		return q, err
	}
	canonical := canonical(q.path, q.version)
	switch ext := file[dot:]; {
	case ext == ".info" && canonical == nil:
		q.kind = kindInfo
	case ext == ".info":
		q.kind = kindQuery
	case ext == ".mod" && canonical == nil:
		q.kind = kindMod
	case ext == ".zip" && canonical == nil:
		q.kind = kindZip
	case canonical != nil && (ext == ".mod" || ext == ".zip"):
		return q, canonical
	default:
		return q, errGrammar
	}
	return q, nil
}

// canonical reports why version is not one that a module of that path can have.
func canonical(path, version string) error {
	if err := module.Check(path, version); err != nil {
		return err
	}
	if module.CanonicalVersion(version) != version {
		return fmt.Errorf("%q is not a canonical version", version)
	}
	return nil
}

func parseSumDB(name, sumdb string) (q request, err error) {
	if sumdb == "" {
		return q, errors.New("this server uses no checksum database")
	}
	rest, ok := strings.CutPrefix(name, sumdb+"/")
	if !ok {
		return q, fmt.Errorf("the only checksum database here is %s", sumdb)
	}
	q.rest = rest
	switch {
	case rest == "supported":
		q.kind = kindSupported
	case rest == "latest":
		q.kind = kindSigned
	case strings.HasPrefix(rest, "lookup/"):
		q.kind = kindLookup
		path, version, _ := strings.Cut(strings.TrimPrefix(rest, "lookup/"), "@")
		if path, err = module.UnescapePath(path); err != nil {
			return q, err
		}
		if version, err = module.UnescapeVersion(version); err != nil {
			return q, err
		}
		return q, canonical(path, version)
	case strings.HasPrefix(rest, "tile/"):
		q.kind = kindTile
		_, err = tlog.ParseTilePath(rest)
		return q, err
	default:
		return q, errors.New("not in the grammar of a checksum database")
	}
	return q, nil
}
