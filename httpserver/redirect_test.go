package httpserver_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/httpserver"
)

const signature = "Signature=that-opens-the-artifact"

// A signer is an artifact store on another address, whose URLs are signed.
type signer struct {
	server *httptest.Server
	ttl    time.Duration // of the last URL
	err    error
}

// newRedirectingAPI starts an api whose downloads come from elsewhere.
func newRedirectingAPI(t *testing.T) (*api, *signer) {
	s := &signer{}
	a := newAPI(t, func(o *httpserver.Options) { o.SignedURL = s.sign })
	s.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, a.dir+"/storage/blobs/"+r.URL.Path[1:])
	}))
	t.Cleanup(s.server.Close)
	return a, s
}

func (s *signer) sign(_ context.Context, m artifact.Meta, ttl time.Duration) (string, error) {
	s.ttl = ttl
	return s.server.URL + "/" + m.Artifact.SHA256 + "?" + signature, s.err
}

func TestDownloadFromTheStore(t *testing.T) {
	a, store := newRedirectingAPI(t)
	a.repository("o/r")
	a.do(t, "POST", target).submitted(t)
	const content = "0123456789"
	b := a.work(t, []byte(content))
	url := store.server.URL + "/" + b.Artifact.SHA256 + "?" + signature

	for _, headers := range [][]string{nil, {"Range", "bytes=2-4"}, {"Range", "bytes=20-30"}, {"If-None-Match", `"x"`}} {
		r := a.do(t, "GET", archive, headers...)
		if r.code != http.StatusSeeOther || r.header.Get("Location") != url || r.body != "" || store.ttl != 10*time.Minute {
			t.Errorf("GET %v = %d %q for %v, Location %q", headers, r.code, r.body, store.ttl, r.header.Get("Location"))
		}
		for name, want := range map[string]string{
			"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "Vary": "Authorization", "Content-Length": "0",
			"ETag": "", "Content-Disposition": "", "Repr-Digest": "", "Last-Modified": "", "Content-Type": "", "Accept-Ranges": "",
		} {
			if got := r.header.Get(name); got != want {
				t.Errorf("GET %v: %s is %q, want %q", headers, name, got, want)
			}
		}
	}
	for rng, want := range map[string]string{"": content, "bytes=2-4": "234"} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", a.url+archive, nil)
		if err != nil {
			t.Fatal(err)
		}
		if rng != "" {
			req.Header.Set("Range", rng)
		}
		r, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r.Body)
		_ = r.Body.Close()
		if err != nil || string(body) != want {
			t.Errorf("range %q followed is %d %q, %v", rng, r.StatusCode, body, err)
		}
	}
	if a.counts.served != 0 {
		t.Errorf("%d bytes were counted that others served", a.counts.served)
	}
	if strings.Contains(a.log.String(), signature) {
		t.Error("the log has the signed URL")
	}
}

// What is known of an archive is answered from here.
func TestArchiveHeadersWithoutContent(t *testing.T) {
	a, store := newRedirectingAPI(t)
	a.repository("o/r")
	a.do(t, "POST", target).submitted(t)
	b := a.work(t, []byte("0123456789"))
	sum := sha256.Sum256([]byte("0123456789"))
	etag := `"` + hex.EncodeToString(sum[:]) + `"`

	r := a.do(t, "HEAD", archive)
	for name, want := range map[string]string{
		"Content-Length": "10", "ETag": etag, "Content-Type": "application/gzip", "Accept-Ranges": "bytes", "Location": "",
		"Content-Disposition": `attachment; filename="r_linux_amd64.tar.gz"`, "Last-Modified": "Thu, 29 Feb 2024 12:00:00 GMT", "Cache-Control": "no-cache",
	} {
		if got := r.header.Get(name); got != want {
			t.Errorf("HEAD: %s is %q, want %q", name, got, want)
		}
	}
	if r.code != http.StatusOK || !strings.HasPrefix(r.header.Get("Repr-Digest"), "sha-256=:") {
		t.Errorf("HEAD = %d, Repr-Digest %q", r.code, r.header.Get("Repr-Digest"))
	}
	for _, tc := range []struct {
		method string
		header []string
		code   int
	}{
		{"GET", []string{"If-None-Match", etag}, http.StatusNotModified},
		{"HEAD", []string{"If-None-Match", etag}, http.StatusNotModified},
		{"GET", []string{"If-Modified-Since", "Thu, 29 Feb 2024 12:00:00 GMT"}, http.StatusNotModified},
		{"GET", []string{"If-Match", `"x"`}, http.StatusPreconditionFailed},
		{"HEAD", []string{"Range", "bytes=2-4"}, http.StatusPartialContent},
		{"HEAD", []string{"Range", "bytes=20-30"}, http.StatusRequestedRangeNotSatisfiable},
	} {
		r := a.do(t, tc.method, archive, tc.header...)
		if r.code != tc.code || r.body != "" || r.header.Get("Location") != "" {
			t.Errorf("%s %v = %d %q, Location %q", tc.method, tc.header, r.code, r.body, r.header.Get("Location"))
		}
	}
	if store.ttl != 0 {
		t.Errorf("a URL of build %s was signed for nobody", b.ID)
	}
}

// The URL of what is private opens it to whoever has it: for a moment only.
func TestPrivateDownloadFromTheStore(t *testing.T) {
	a, store := newRedirectingAPI(t)
	a.repository("o/r")
	a.host.Protect("o/r", secret)
	me := []string{"Authorization", "token " + secret}
	a.do(t, "POST", target, me...).submitted(t)
	a.work(t, []byte("private"))
	if r := a.do(t, "GET", archive, me...); r.code != http.StatusSeeOther || store.ttl > time.Minute || store.ttl <= 0 || r.header.Get("Cache-Control") != "no-store" {
		t.Errorf("GET = %d for %v, %v", r.code, store.ttl, r.header)
	}
	store.ttl = 0
	a.do(t, "GET", archive).problem(t, http.StatusNotFound)
	if store.ttl != 0 {
		t.Error("a URL was signed for who may not read the repository")
	}
}

func TestSignerThatDoesNotAnswer(t *testing.T) {
	a, store := newRedirectingAPI(t)
	a.repository("o/r")
	a.do(t, "POST", target).submitted(t)
	a.work(t, []byte("x"))
	store.err = fmt.Errorf("ask for credentials: %w", artifact.ErrUnavailable)
	r := a.do(t, "GET", archive)
	if r.problem(t, http.StatusServiceUnavailable); r.header.Get("Location") != "" || strings.Contains(r.body, "credentials") {
		t.Errorf("the answer is %q, Location %q", r.body, r.header.Get("Location"))
	}
}

// A reader that is no file is sent as well.
type streamed struct{ httpserver.Artifacts }

func (s streamed) Open(ctx context.Context, m artifact.Meta) (io.ReadSeekCloser, error) {
	f, err := s.Artifacts.Open(ctx, m)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(f)
	return nopCloser{bytes.NewReader(content)}, err
}

type nopCloser struct{ io.ReadSeeker }

func (nopCloser) Close() error { return nil }

func TestStreamedDownload(t *testing.T) {
	a := newAPI(t, func(o *httpserver.Options) { o.Artifacts = streamed{o.Artifacts} })
	a.repository("o/r")
	a.do(t, "POST", target).submitted(t)
	a.work(t, []byte("0123456789"))
	if r := a.do(t, "GET", archive); r.code != http.StatusOK || r.body != "0123456789" || a.counts.served != 10 {
		t.Errorf("GET = %d %q, %d bytes counted", r.code, r.body, a.counts.served)
	}
	if r := a.do(t, "GET", archive, "Range", "bytes=2-4"); r.code != http.StatusPartialContent || r.body != "234" {
		t.Errorf("GET of a range = %d %q", r.code, r.body)
	}
}
