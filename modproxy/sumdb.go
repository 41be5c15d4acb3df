package modproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/mod/sumdb/note"
)

// A sumdb is the checksum database, or none: its zero value.
type sumdb struct {
	name string // as it stands in paths: sumdb/<name>/...
	key  string // first field of GOSUMDB: a verifier key, or the name that goproxy and the go command know
	url  *url.URL
	user *url.Userinfo // of url
	// direct is true if url was not written in GOSUMDB. A module proxy that
	// offers the database is preferred then, as the go command does.
	direct bool

	base atomic.Pointer[url.URL] // where it was found to be reachable
}

var errNotSumDB = errors.New("GOSUMDB is neither off nor the verifier key of a checksum database, alone or with its URL")

// parseGOSUMDB reads GOSUMDB, known being the database that goproxy and the go
// command use when nothing is set. Errors do not repeat what was written.
func parseGOSUMDB(setting, known string) (*sumdb, error) {
	if setting == "off" {
		return new(sumdb), nil
	}
	fields := strings.Fields(setting)
	if len(fields) == 0 {
		fields = []string{known}
	}
	if len(fields) > 2 {
		return nil, errors.New("GOSUMDB has more than a key and a URL")
	}
	db := &sumdb{name: fields[0], key: fields[0], direct: len(fields) == 1}
	base := "https://" + db.name
	switch {
	case strings.Contains(db.key, "+"):
		v, err := note.NewVerifier(db.key)
		if err != nil {
			return nil, errNotSumDB
		}
		db.name = v.Name()
		base = "https://" + db.name
	case db.name != known: // another address of the same database
		if !recognized(db.key) {
			return nil, errNotSumDB
		}
		db.name, db.key, db.direct = known, known, false
	}
	if len(fields) == 2 {
		base = fields[1]
	}
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, errors.New("GOSUMDB has something that is not an http or https URL")
	}
	db.user, u.User = u.User, nil
	db.url = u
	return db, nil
}

// upstreams are the database's own address, for its credentials.
func (db *sumdb) upstreams() []upstream {
	if db.url == nil {
		return nil
	}
	return []upstream{{url: db.url, user: db.user}}
}

// findSumDB says where the database is reachable. An answer is kept, an error is not.
func (p *Proxy) findSumDB(ctx context.Context) (*url.URL, error) {
	db := p.sumdb
	if !db.direct {
		return db.url, nil
	}
	if u := db.base.Load(); u != nil {
		return u, nil
	}
	base := db.url
	err := walk(p.ups, func(up upstream) error {
		u := up.url.JoinPath("sumdb", db.name)
		r, err := get(ctx, p.client, u.JoinPath("supported").String())
		if err != nil {
			return err
		}
		base = u
		return r.Close()
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	db.base.Store(base)
	return base, nil
}

func (p *Proxy) fetchSumDB(ctx context.Context, q request) (*answer, error) {
	base, err := p.findSumDB(ctx)
	if err != nil {
		return nil, err
	}
	u := base.JoinPath(q.rest)
	r, err := get(ctx, p.client, u.String())
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	from := upstream{url: base}
	if up := p.transport.match(u); up != nil {
		from = *up
	}
	return p.keep(ctx, from, q, bytes.NewReader(b))
}

// verifierHost is where goproxy's fetcher believes the checksum database to be.
const verifierHost = "sumdb.invalid"

// A verifier sends what goproxy's fetcher asks of the checksum
// database the way that a build's own questions go: through the cache, from
// wherever the database was found, and within ctx, which the fetcher does not
// pass on.
type verifier struct {
	ctx   context.Context
	proxy *Proxy

	mu    sync.Mutex
	broke error // the first that was no answer of the database
}

func (p *Proxy) verifier(ctx context.Context) *verifier { return &verifier{ctx: ctx, proxy: p} }

func (v *verifier) trouble() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.broke
}

func (v *verifier) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Host != verifierHost {
		return v.proxy.transport.RoundTrip(r)
	}
	body, err := v.answer(r)
	if err != nil {
		v.mu.Lock()
		if v.broke == nil && (own(err) || errors.Is(err, ErrUnavailable)) {
			v.broke = err
		}
		v.mu.Unlock()
		return failure(r, err), nil
	}
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, ContentLength: -1, Request: r, Body: body,
	}, nil
}

func (v *verifier) answer(r *http.Request) (io.ReadCloser, error) {
	q, err := parse("/sumdb/"+v.proxy.sumdb.name+r.URL.Path, v.proxy.sumdb.name)
	if err != nil {
		return nil, err
	}
	file, _, release, err := v.proxy.open(v.ctx, q)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", q.name, err)
	}
	fi, err := file.Stat()
	if err != nil {
		release()
		return nil, err
	}
	return &shared{io.NewSectionReader(file, 0, fi.Size()), release}, nil
}

// shared is a file that others may be reading too.
type shared struct {
	io.Reader
	release func()
}

func (s *shared) Close() error {
	s.release()
	return nil
}
