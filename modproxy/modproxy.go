// Package modproxy is a build's one way out: a Go module proxy that passes
// nothing else. One Proxy stands behind all builds, with a cache on disk; each
// build has a Door of its own to it, which counts and bounds what it asks, and
// may have a Tree: what its go.sum names, extracted once for all builds.
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
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
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

	// Offline keeps the Proxy from fetching anything: what is kept is all there is.
	Offline bool

	Dir        string // required: the cache's, made if missing; one Proxy at a time
	CacheLimit int64  // bytes on disk kept in Dir, of which a file with several names counts once; 0 means DefaultCacheLimit

	// UID and GID are the build's, as this machine counts them: the
	// directories of a Tree to which a build adds modules belong to them. Zero
	// leaves them to whoever runs the server.
	UID, GID int
	// BootID names this boot of the machine, since a loss of power may tear
	// what was kept before it. The default is the kernel's own.
	BootID string

	Metrics Metrics
	Log     *slog.Logger
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
	offline   bool
	uid, gid  int
	cache     *cache
	files     flights[*answer]
	trees     flights[*hold]
	views     flights[*view]
	unpacking chan struct{} // as many at once as it has room for
	metrics   Metrics
	transport *transport
	client    *http.Client
	log       *slog.Logger
}

// New returns a Proxy. It says what is wrong with the settings without
// repeating them, and asks nothing of any network.
func New(o Options) (*Proxy, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, cacheError(err)
	}
	c := &cache{dir: dir, boot: boot(o.BootID), limit: cmp.Or(o.CacheLimit, DefaultCacheLimit)}
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
	var metrics Metrics = noMetrics{}
	if o.Metrics != nil {
		metrics = o.Metrics
	}
	t := newTransport(append(ups[:len(ups):len(ups)], db.upstreams()...), metrics.ModuleBytesFetched)
	p := &Proxy{
		ups: ups, sumdb: db, cache: c, transport: t, client: &http.Client{Transport: t},
		offline: o.Offline, uid: o.UID, gid: o.GID, metrics: metrics,
		unpacking: make(chan struct{}, runtime.GOMAXPROCS(0)),
		noproxy:   patterns(cmp.Or(o.GONOPROXY, o.GOPRIVATE)),
		nosumdb:   patterns(cmp.Or(o.GONOSUMDB, o.GOPRIVATE)),
		log:       cmp.Or(o.Log, slog.New(slog.DiscardHandler)),
	}
	return p, nil
}

// boot is a name for this boot of the machine. Where nothing tells it, each
// process counts as one.
func boot(id string) string {
	if id == "" {
		b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if id = string(b); err != nil {
			id = rand.Text()
		}
	}
	sum := sha256.Sum256([]byte(id))
	return hex.EncodeToString(sum[:8])
}

// patterns drops the spaces and empty entries of a list.
func patterns(list string) string {
	return strings.Join(strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' }), ",")
}

// Bytes is how much is kept, or -1 if that cannot be read.
func (p *Proxy) Bytes() int64 {
	n, err := p.cache.size()
	if err != nil {
		return -1
	}
	return n
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

// An answer is a file that was asked for. It is read with ReadAt only: others
// may be reading it too.
type answer struct {
	*os.File
	// kept is false of what an upstream gave for a password, and of what the
	// cache cannot take. It is for those who wait for it now, all of whom could
	// have fetched it, and goes with the last of them.
	kept bool
}

// open returns the file that q asks for, and whence it came: one of Sources.
// The caller calls release when done.
func (p *Proxy) open(ctx context.Context, q request) (file *answer, from string, release func(), err error) {
	for {
		fetched := false
		file, release, err = p.files.do(ctx, q.name, func(ctx context.Context) (*answer, error) {
			if q.immutable() || p.offline {
				f, err := p.cache.get(q.name)
				if err == nil {
					return &answer{f, true}, nil
				}
				if scarce(err) || p.offline && own(err) { // else it is fetched anew
					return nil, cacheError(err)
				}
			}
			a, err := p.fetch(ctx, q)
			fetched = true
			if err != nil && !q.immutable() && !refused(err) && ctx.Err() == nil {
				if old, miss := p.cache.get(q.name); miss == nil {
					p.log.Warn("module proxy does not answer, serving what was kept", "file", q.name, "err", err)
					a, err, fetched = &answer{old, true}, nil, false
				}
			}
			return a, err
		})
		switch {
		case err == nil && fetched:
			return file, fromUpstream, release, nil
		case err == nil:
			return file, fromCache, release, nil
		case errors.Is(err, errPassword) && !q.toKeep && ctx.Err() == nil:
			continue // joined one who would not have it for a password
		default:
			return nil, whence(err), nil, err
		}
	}
}

// whence is the one of Sources for a file that could not be had.
func whence(err error) string {
	unfit := errors.Is(err, errPassword) || errors.Is(err, errSum) || errors.Is(err, errRoom)
	if !own(err) && (refused(err) || unfit) {
		return fromRefused
	}
	return fromFailed
}

// refused reports whether err is an upstream's answer, as opposed to none.
func refused(err error) bool {
	_, status := errors.AsType[*statusError](err)
	return status || errors.Is(err, fs.ErrNotExist)
}

// errPassword is a file that is not to be had without an upstream's password.
var errPassword = errors.New("only to be had for a password")

func (p *Proxy) fetch(ctx context.Context, q request) (*answer, error) {
	if p.offline {
		return nil, &statusError{code: http.StatusForbidden, text: q.name + " is not in this server's module cache, and --network none keeps builds from fetching more: see docs/builds.md"}
	}
	if q.path != "" && module.MatchPrefixPatterns(p.noproxy, q.path) {
		return nil, &statusError{code: http.StatusForbidden, text: "this server's GONOPROXY or GOPRIVATE keeps it from module proxies, and builds reach nothing else"}
	}
	switch q.kind {
	case kindSigned, kindLookup, kindTile:
		return p.fetchSumDB(ctx, q)
	}
	var a *answer
	err := walk(p.ups, func(up upstream) (err error) {
		switch {
		case q.toKeep && up.user != nil:
			a = nil // and no other upstream is asked for what may be private
			return nil
		case q.kind == kindMod:
			a, err = p.fetchMod(ctx, up, q)
		case q.kind == kindZip:
			a, err = p.fetchZip(ctx, up, q)
		case q.kind == kindList:
			a, err = p.fetchList(ctx, up, q)
		default:
			a, err = p.fetchInfo(ctx, up, q)
		}
		return err
	})
	if err == nil && a == nil {
		err = errPassword
	}
	return a, err
}

// keep puts what up answered into the cache, unless up wanted a password for
// it. What the cache cannot take is no less an answer, if it is small.
func (p *Proxy) keep(ctx context.Context, up upstream, q request, r io.ReadSeeker) (*answer, error) {
	keep := p.cache.put
	if up.user != nil {
		keep = func(ctx context.Context, _ string, r io.Reader) (*os.File, error) { return p.cache.pass(ctx, r) }
	}
	f, err := keep(ctx, q.name, r)
	if err == nil {
		return &answer{f, up.user == nil}, nil
	}
	if q.toKeep || !errors.Is(err, errCache) {
		return nil, err
	}
	f, none := spare(ctx, r)
	if none != nil {
		return nil, err
	}
	p.log.Error("cannot keep a module", "file", q.name, "err", err)
	return &answer{f, false}, nil
}

func (p *Proxy) fetchMod(ctx context.Context, up upstream, q request) (*answer, error) {
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
	return p.keep(ctx, up, q, bytes.NewReader(b))
}

func (p *Proxy) fetchList(ctx context.Context, up upstream, q request) (*answer, error) {
	versions, err := p.fetcher(up, p.verifier(ctx)).List(ctx, q.path)
	if err != nil {
		return nil, err
	}
	return p.keep(ctx, up, q, strings.NewReader(strings.Join(versions, "\n")))
}

func (p *Proxy) fetchInfo(ctx context.Context, up upstream, q request) (*answer, error) {
	version, t, err := p.fetcher(up, p.verifier(ctx)).Query(ctx, q.path, q.version)
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
	return p.keep(ctx, up, q, bytes.NewReader(b))
}

// fetchZip keeps the other files of the version too, since it has them, and
// returns the zip. The go.mod is checked now.
func (p *Proxy) fetchZip(ctx context.Context, up upstream, q request) (*answer, error) {
	v := p.verifier(ctx)
	info, mod, zip, err := p.fetcher(up, v).Download(ctx, q.path, q.version)
	if err != nil {
		return nil, v.verdict(q, err)
	}
	defer info.Close()
	defer mod.Close()
	defer zip.Close()
	if up.user == nil {
		for ext, r := range map[string]io.Reader{".info": info, ".mod": mod} {
			f, err := p.cache.put(ctx, strings.TrimSuffix(q.name, ".zip")+ext, r)
			switch {
			case err == nil:
				f.Close()
			case !errors.Is(err, errCache): // else the zip may still do
				return nil, err
			}
		}
	}
	return p.keep(ctx, up, q, zip)
}

// verdict tells a module that did not stand goproxy's checks from one that
// could not be fetched, which only the text of goproxy's error does. It must
// not pass for a module that does not exist.
func (v *verifier) verdict(q request, err error) error {
	if ours := trouble(err); ours != nil {
		return ours
	}
	// goproxy passes on no more than the text of what broke a lookup. What it
	// says after one does not exist for it.
	if broke := v.trouble(); broke != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w (%v)", broke, err)
	}
	if text := err.Error(); strings.HasPrefix(text, q.path+"@"+q.version) || strings.HasPrefix(text, "invalid ") {
		return fmt.Errorf("%w: %v", errUnverified, err)
	}
	return err
}

// fetcher fetches from one upstream and checks with v. It lives for one call: goproxy's keeps
// every record of the checksum database that it reads, and every error, for as
// long as it lives.
func (p *Proxy) fetcher(up upstream, v *verifier) *goproxy.GoFetcher {
	db := "off"
	if p.sumdb.name != "" {
		db = p.sumdb.key + " http://" + verifierHost
	}
	return &goproxy.GoFetcher{
		Env:       []string{"GOPROXY=" + up.url.String(), "GOSUMDB=" + db, "GONOSUMDB=" + p.nosumdb},
		TempDir:   p.cache.tempDir(),
		Transport: v,
	}
}
