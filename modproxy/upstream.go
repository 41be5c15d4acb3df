package modproxy

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// An upstream is one module proxy of the GOPROXY list.
type upstream struct {
	url      *url.URL      // without credentials
	user     *url.Userinfo // nil for none; set on requests to url and nowhere else
	off      bool          // the entry "off": nothing is fetched
	anyError bool          // '|' follows: try the next one after any error, not only after 404 and 410
}

// parseGOPROXY reads a list as the go command does
// (https://go.dev/ref/mod#environment-variables). What could come after
// "direct" or "off" is never reached, and "direct" itself is left out. Errors
// do not repeat what was written: it may hold a password.
func parseGOPROXY(list string) ([]upstream, error) {
	var ups []upstream
	for n := 1; list != ""; n++ {
		entry, sep := list, byte(0)
		if i := strings.IndexAny(list, ",|"); i >= 0 {
			entry, sep, list = list[:i], list[i], list[i+1:]
		} else {
			list = ""
		}
		switch entry = strings.TrimSpace(entry); entry {
		case "":
			continue
		case "off":
			return append(ups, upstream{off: true}), nil
		case "direct":
			list = ""
			continue
		}
		u, err := url.Parse(entry)
		switch {
		case err != nil:
			return nil, fmt.Errorf("GOPROXY: entry %d is not a URL", n)
		case u.Scheme == "file" && u.Host == "" && u.Path != "":
		case u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
			return nil, fmt.Errorf("GOPROXY: entry %d is not an https, http or file URL, direct or off", n)
		}
		up := upstream{user: u.User, anyError: sep == '|'}
		u.User = nil
		up.url = u
		ups = append(ups, up)
	}
	if len(ups) == 0 {
		return nil, errors.New("GOPROXY names no module proxy; builds reach nothing else, so set it to the URL of one, or to off")
	}
	return ups, nil
}

// walk asks one upstream after the other until one has an answer. As for the
// go command, an error that says more than "not there" wins over one that does
// not.
func walk(ups []upstream, ask func(upstream) error) error {
	var worst error
	for _, up := range ups {
		if up.off {
			if worst == nil {
				worst = notFoundError("module lookup disabled by GOPROXY=off")
			}
			break
		}
		err := ask(up)
		if err == nil {
			return nil
		}
		if worst == nil || errors.Is(worst, fs.ErrNotExist) {
			worst = err
		}
		if !up.anyError && !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return worst
}

// A notFoundError is an upstream's 404 or 410, in its own words. It matches fs.ErrNotExist.
type notFoundError string

func (e notFoundError) Error() string        { return string(e) }
func (e notFoundError) Is(target error) bool { return target == fs.ErrNotExist }

// A statusError is any other refusal of an upstream's.
type statusError struct {
	code int
	text string // of its body, in its own words
}

func (e *statusError) Error() string {
	return fmt.Sprintf("the module proxy answered %d: %s", e.code, e.text)
}

// errTooLarge is an answer that no module, list or record can be.
var errTooLarge = errors.New("the module proxy's answer is too large")

// The largest answers that are read. The first two are the go command's own
// limits (golang.org/x/mod/zip).
const (
	maxZip   = 500 << 20
	maxMod   = 16 << 20
	maxOther = 4 << 20
	maxText  = 2 << 10 // of an error's body

	zipTimeout   = 10 * time.Minute
	otherTimeout = time.Minute
)

// A transport asks upstreams: it adds their credentials, bounds what they may
// send and how long it may take, and keeps the credentials out of what they say.
type transport struct {
	base    *http.Transport
	ups     []upstream
	secrets *strings.Replacer
	fetched func(bytes int64) // told how long an answer was
}

func newTransport(ups []upstream, fetched func(int64)) *transport {
	base := http.DefaultTransport.(*http.Transport).Clone()
	base.RegisterProtocol("file", http.NewFileTransport(http.Dir("/"))) //nolint:gosec // ask sends it nothing but paths beneath a file URL of GOPROXY
	base.MaxIdleConnsPerHost = 16
	var secrets []string
	for _, up := range ups {
		for _, s := range credentials(up.user) {
			secrets = append(secrets, s, "REDACTED")
		}
	}
	return &transport{base: base, ups: ups, secrets: strings.NewReplacer(secrets...), fetched: fetched}
}

// credentials are the forms in which user could turn up in a text.
func credentials(user *url.Userinfo) []string {
	if user == nil {
		return nil
	}
	name := user.Username()
	password, _ := user.Password()
	forms := []string{base64.StdEncoding.EncodeToString([]byte(name + ":" + password)), user.String()}
	if password != "" {
		forms = append(forms, password)
	} else if name != "" { // a token on its own
		forms = append(forms, name)
	}
	return forms
}

// RoundTrip tries more than once what may be a passing trouble. An answer that
// is neither a file nor 404, 410 or a redirection has a body whose reading
// fails with the error: goproxy's fetcher would try again what is returned as
// an error, and passes that one on as it is. So does get.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	var trouble error
	for n := range attempts {
		select {
		case <-r.Context().Done():
			return nil, context.Cause(r.Context())
		case <-time.After(pause * time.Duration(n)):
		}
		resp, err := t.ask(r)
		if err != nil {
			if err := r.Context().Err(); err != nil {
				return nil, err
			}
			if trouble = err; errors.Is(err, context.DeadlineExceeded) {
				break
			}
			continue
		}
		switch code := resp.StatusCode; {
		case code == http.StatusOK || code/100 == 3:
			return resp, nil
		case code == http.StatusNotFound || code == http.StatusGone:
			resp.Body = io.NopCloser(strings.NewReader(t.text(resp)))
			return resp, nil
		case code == http.StatusTooManyRequests || code/100 == 5:
			trouble = fmt.Errorf("the module proxy answered %s: %s", resp.Status, t.text(resp))
		default:
			resp.Body = failing{&statusError{code: code, text: t.text(resp)}}
			return resp, nil
		}
	}
	return failure(r, fmt.Errorf("%w: %w", ErrUnavailable, trouble)), nil
}

const (
	attempts = 3
	pause    = 300 * time.Millisecond // before the second attempt, twice that before the third
)

// CloseIdleConnections gives back the descriptors of connections that wait for
// another request. See [http.Client.CloseIdleConnections].
func (t *transport) CloseIdleConnections() { t.base.CloseIdleConnections() }

// ask sends r once.
func (t *transport) ask(r *http.Request) (*http.Response, error) {
	up := t.match(r.URL)
	if r.URL.Scheme == "file" && up == nil {
		return nil, errors.New("redirected to a file of this server")
	}
	limit, timeout := int64(maxOther), otherTimeout
	switch {
	case strings.HasSuffix(r.URL.Path, ".zip"):
		limit, timeout = maxZip, zipTimeout
	case strings.HasSuffix(r.URL.Path, ".mod"):
		limit = maxMod
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	r = r.Clone(ctx)
	if up != nil && up.user != nil {
		password, _ := up.user.Password()
		r.SetBasicAuth(up.user.Username(), password)
	}
	resp, err := t.base.RoundTrip(r)
	if err != nil {
		cancel()
		return nil, err
	}
	resp.Body = &body{Reader: io.LimitReader(resp.Body, limit+1), Closer: resp.Body, limit: limit, cancel: cancel, fetched: t.fetched}
	return resp, nil
}

// text is what an answer that is no file says, without credentials.
func (t *transport) text(resp *http.Response) string {
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxText))
	return strings.TrimSpace(t.secrets.Replace(strings.ToValidUTF8(string(b), "?")))
}

// failure is an answer that cannot be read.
func failure(r *http.Request, err error) *http.Response {
	return &http.Response{
		Status: "502 Bad Gateway", StatusCode: http.StatusBadGateway,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, ContentLength: -1, Request: r, Body: failing{err},
	}
}

// match is the upstream to which u belongs, the closest if several do, nil for none.
func (t *transport) match(u *url.URL) *upstream {
	var best *upstream
	path := "/" + strings.TrimPrefix(u.Path, "/") // JoinPath leaves the slash out where there was no path
	for i, up := range t.ups {
		if !up.off && up.url.Scheme == u.Scheme && up.url.Host == u.Host &&
			strings.HasPrefix(path, strings.TrimSuffix(up.url.Path, "/")+"/") &&
			(best == nil || len(best.url.Path) < len(up.url.Path)) {
			best = &t.ups[i]
		}
	}
	return best
}

// body fails, instead of ending, where an answer is longer than it may be. An
// answer that ends before its end is none.
type body struct {
	io.Reader
	io.Closer
	limit   int64
	read    int64
	cancel  context.CancelFunc
	fetched func(int64)
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if b.read += int64(n); b.read > b.limit {
		return 0, errTooLarge
	}
	if err != nil && err != io.EOF { //nolint:errorlint // as the contract of Read has it
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return n, err
}

func (b *body) Close() error {
	defer b.cancel()
	b.fetched(b.read)
	b.read, b.fetched = 0, func(int64) {} // closed again, it is not counted again
	return b.Closer.Close()
}

// failing is a body that cannot be read.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
func (f failing) Close() error             { return nil }

// get asks for one file. The caller closes the body.
func get(ctx context.Context, client *http.Client, u string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	return nil, notFoundError(text)
}
