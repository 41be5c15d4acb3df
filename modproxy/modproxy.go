// Package modproxy is a build's one way out: a Go module proxy that passes
// nothing else. One Proxy stands behind all builds, with a cache on disk; each
// build has a Door of its own to it, which counts and bounds what it asks.
//
// Modules come from the server's own GOPROXY. github.com/goproxy/goproxy
// fetches them and checks them against the checksum database before they are
// kept; a go.mod that is asked for on its own, for which goproxy would fetch
// the whole module, is passed on as it comes and is checked by the go command
// in the build, as it checks everything again.
package modproxy

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/goproxy/goproxy"
	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
)

// Options say where modules come from, in the words of the go command's
// environment (https://go.dev/ref/mod#environment-variables). The zero value
// of each is the go command's own default. A .netrc file is not read:
// credentials stand in the URLs of GOPROXY.
type Options struct {
	GOPROXY   string // "direct" is left out: a build reaches module proxies only
	GOSUMDB   string
	GONOSUMDB string // default: GOPRIVATE
	GONOPROXY string // default: GOPRIVATE; modules that no proxy may be asked for, so that builds do without
	GOPRIVATE string

	Dir        string // required: the cache's, made if missing; one Proxy at a time
	CacheLimit int64  // bytes kept in Dir; 0 means DefaultCacheLimit
	Log        *slog.Logger
}

// DefaultCacheLimit is the CacheLimit where none is given, in bytes.
const DefaultCacheLimit = 10 << 30

// A Proxy fetches modules, checks them and keeps them.
// Its methods are safe for concurrent use.
type Proxy struct {
	ups       []upstream
	sumdb     *sumdb
	noproxy   string // patterns
	nosumdb   string // patterns
	cache     *cache
	flights   flights
	transport *transport
	client    *http.Client
	log       *slog.Logger
}

// New returns a Proxy. It says what is wrong with the settings without
// repeating them, and asks nothing of any network.
func New(o Options) (*Proxy, error) {
	c := &cache{dir: o.Dir, limit: cmp.Or(o.CacheLimit, DefaultCacheLimit)}
	if err := os.RemoveAll(c.tempDir()); err != nil {
		return nil, cacheError(err)
	}
	if err := os.MkdirAll(c.tempDir(), 0o755); err != nil {
		return nil, cacheError(err)
	}
	proxy, known, err := defaults(c.tempDir())
	if err != nil {
		return nil, err
	}
	ups, err := parseGOPROXY(cmp.Or(o.GOPROXY, proxy.String()))
	if err != nil {
		return nil, err
	}
	db, err := parseGOSUMDB(o.GOSUMDB, known)
	if err != nil {
		return nil, err
	}
	t := newTransport(append(ups[:len(ups):len(ups)], db.upstreams()...))
	p := &Proxy{
		ups: ups, sumdb: db, cache: c, transport: t, client: &http.Client{Transport: t},
		noproxy: patterns(cmp.Or(o.GONOPROXY, o.GOPRIVATE)),
		nosumdb: patterns(cmp.Or(o.GONOSUMDB, o.GOPRIVATE)),
		log:     cmp.Or(o.Log, slog.New(slog.DiscardHandler)),
	}
	return p, nil
}

// patterns drops the spaces and empty entries of a list.
func patterns(list string) string {
	return strings.Join(strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' }), ",")
}

// Env is what the go command in a build must be told besides the address of
// its Door, so that it trusts what the Proxy trusts: GOSUMDB, GONOSUMDB.
func (p *Proxy) Env() []string {
	db := "off"
	if p.sumdb.name != "" {
		db = p.sumdb.key
	}
	return []string{"GOSUMDB=" + db, "GONOSUMDB=" + p.nosumdb}
}

// errUnverified is a module that must not be used.
var errUnverified = errors.New("not confirmed by the checksum database")

// open returns the file that q asks for. Read it with ReadAt only, and call
// release when done.
func (p *Proxy) open(ctx context.Context, q request) (file *os.File, release func(), err error) {
	return p.flights.do(ctx, q.name, func(ctx context.Context) (*os.File, error) {
		if q.immutable() {
			if f, err := p.cache.get(q.name); err == nil {
				return f, nil
			}
		}
		f, err := p.fetch(ctx, q)
		if err != nil && !q.immutable() && !refused(err) && ctx.Err() == nil {
			if old, miss := p.cache.get(q.name); miss == nil {
				p.log.Warn("module proxy does not answer, serving what was kept", "file", q.name, "err", err)
				return old, nil
			}
		}
		return f, err
	})
}

// refused reports whether err is an upstream's answer, as opposed to none.
func refused(err error) bool {
	_, status := errors.AsType[*statusError](err)
	return status || errors.Is(err, fs.ErrNotExist)
}

func (p *Proxy) fetch(ctx context.Context, q request) (*os.File, error) {
	if q.path != "" && module.MatchPrefixPatterns(p.noproxy, q.path) {
		return nil, &statusError{code: http.StatusForbidden, text: "this server's GONOPROXY or GOPRIVATE keeps it from module proxies, and builds reach nothing else"}
	}
	switch q.kind {
	case kindSigned, kindLookup, kindTile:
		r, err := p.fetchSumDB(ctx, q)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return p.cache.put(ctx, q.name, r)
	}
	var file *os.File
	err := walk(p.ups, func(up upstream) (err error) {
		switch q.kind {
		case kindMod:
			file, err = p.fetchMod(ctx, up, q)
		case kindZip:
			file, err = p.fetchZip(ctx, up, q)
		case kindList:
			file, err = p.fetchList(ctx, up, q)
		default:
			file, err = p.fetchInfo(ctx, up, q)
		}
		return err
	})
	return file, err
}

func (p *Proxy) fetchMod(ctx context.Context, up upstream, q request) (*os.File, error) {
	r, err := get(ctx, p.client, up.url.JoinPath(q.name).String())
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	if modfile.ModulePath(b) == "" {
		return nil, fmt.Errorf("%s@%s: not a go.mod file", q.path, q.version)
	}
	return p.cache.put(ctx, q.name, bytes.NewReader(b))
}

func (p *Proxy) fetchList(ctx context.Context, up upstream, q request) (*os.File, error) {
	versions, err := p.fetcher(ctx, up).List(ctx, q.path)
	if err != nil {
		return nil, err
	}
	return p.cache.put(ctx, q.name, strings.NewReader(strings.Join(versions, "\n")))
}

func (p *Proxy) fetchInfo(ctx context.Context, up upstream, q request) (*os.File, error) {
	version, t, err := p.fetcher(ctx, up).Query(ctx, q.path, q.version)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(struct {
		Version string
		Time    time.Time
	}{version, t})
	if err != nil {
		return nil, err
	}
	return p.cache.put(ctx, q.name, bytes.NewReader(b))
}

// fetchZip keeps the go.mod too, which is checked now, and returns the zip.
func (p *Proxy) fetchZip(ctx context.Context, up upstream, q request) (*os.File, error) {
	info, mod, zip, err := p.fetcher(ctx, up).Download(ctx, q.path, q.version)
	if err != nil {
		return nil, p.verdict(q, err)
	}
	defer info.Close()
	defer mod.Close()
	defer zip.Close()
	f, err := p.cache.put(ctx, strings.TrimSuffix(q.name, ".zip")+".mod", mod)
	if err != nil {
		return nil, err
	}
	f.Close()
	return p.cache.put(ctx, q.name, zip)
}

// verdict tells a module that did not stand goproxy's checks from one that
// could not be fetched, which only the text of goproxy's error does. It must
// not pass for a module that does not exist.
func (p *Proxy) verdict(q request, err error) error {
	if text := err.Error(); strings.HasPrefix(text, q.path+"@"+q.version) || strings.HasPrefix(text, "invalid ") {
		return fmt.Errorf("%w: %v", errUnverified, err)
	}
	return err
}

// fetcher fetches from one upstream. It lives for one call: goproxy's keeps
// every record of the checksum database that it reads, and every error, for as
// long as it lives.
func (p *Proxy) fetcher(ctx context.Context, up upstream) *goproxy.GoFetcher {
	db := "off"
	if p.sumdb.name != "" {
		db = p.sumdb.key + " http://" + verifierHost
	}
	return &goproxy.GoFetcher{
		Env:       []string{"GOPROXY=" + up.url.String(), "GOSUMDB=" + db, "GONOSUMDB=" + p.nosumdb},
		TempDir:   p.cache.tempDir(),
		Transport: verifierTransport{ctx: ctx, proxy: p, next: p.transport},
	}
}
