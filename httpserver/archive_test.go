package httpserver_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestArchiveHeaders(t *testing.T) {
	a := newAPI(t)
	a.repository("o/r")
	a.do(t, "POST", target).submitted(t)
	const content = "0123456789"
	a.work(t, []byte(content))
	sum := sha256.Sum256([]byte(content))
	want := map[string]string{
		"Content-Type":           "application/gzip",
		"Content-Length":         "10",
		"Content-Disposition":    `attachment; filename="r_linux_amd64.tar.gz"`,
		"ETag":                   `"` + hex.EncodeToString(sum[:]) + `"`,
		"Repr-Digest":            "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":",
		"Last-Modified":          "Thu, 29 Feb 2024 12:00:00 GMT",
		"Accept-Ranges":          "bytes",
		"Cache-Control":          "no-cache",
		"Vary":                   "Authorization",
		"X-Content-Type-Options": "nosniff",
	}
	for _, method := range []string{"GET", "HEAD"} {
		r := a.do(t, method, archive)
		if r.code != http.StatusOK || (method == "GET") != (r.body == content) {
			t.Errorf("%s = %d %q", method, r.code, r.body)
		}
		for name, value := range want {
			if got := r.header.Get(name); got != value {
				t.Errorf("%s: %s is %q, want %q", method, name, got, value)
			}
		}
	}
	if a.counts.served != int64(len(content)) {
		t.Errorf("%d bytes were counted, want %d", a.counts.served, len(content))
	}

	etag := want["ETag"]
	for _, tc := range []struct {
		name    string
		headers []string
		code    int
		body    string
	}{
		{"range", []string{"Range", "bytes=2-4"}, http.StatusPartialContent, "234"},
		{"the rest", []string{"Range", "bytes=7-", "If-Range", etag}, http.StatusPartialContent, "789"},
		{"range of another file", []string{"Range", "bytes=7-", "If-Range", `"x"`}, http.StatusOK, content},
		{"known", []string{"If-None-Match", etag}, http.StatusNotModified, ""},
		{"unknown", []string{"If-None-Match", `"x"`}, http.StatusOK, content},
		{"not newer", []string{"If-Modified-Since", want["Last-Modified"]}, http.StatusNotModified, ""},
		{"precondition", []string{"If-Match", `"x"`}, http.StatusPreconditionFailed, ""},
	} {
		r := a.do(t, "GET", archive, tc.headers...)
		if r.code != tc.code || r.body != tc.body {
			t.Errorf("%s: %d %q, want %d %q", tc.name, r.code, r.body, tc.code, tc.body)
		}
		if r.code == http.StatusPartialContent && r.header.Get("Repr-Digest") != want["Repr-Digest"] {
			t.Errorf("%s: Repr-Digest is %q", tc.name, r.header.Get("Repr-Digest"))
		}
	}
	r := a.do(t, "GET", archive, "Range", "bytes=20-30")
	r.problem(t, http.StatusRequestedRangeNotSatisfiable)
	if got := r.header.Get("Content-Range"); got != "bytes */10" {
		t.Errorf("Content-Range is %q", got)
	}
	for _, name := range []string{"Content-Disposition", "ETag", "Last-Modified", "Repr-Digest"} {
		if got := r.header.Get(name); got != "" {
			t.Errorf("a problem has %s %q", name, got)
		}
	}
}

// An author's clock may be ahead; a Last-Modified may not.
func TestCommitOfTomorrow(t *testing.T) {
	a := newAPI(t)
	a.commitTime = time.Now().Add(24 * time.Hour)
	a.repository("o/r")
	a.do(t, "POST", target).submitted(t)
	a.work(t, []byte("x"))
	if r := a.do(t, "GET", archive); r.code != http.StatusOK || r.header.Get("Last-Modified") != "" {
		t.Errorf("code %d, Last-Modified %q", r.code, r.header.Get("Last-Modified"))
	}
}

// A store that lost a file offers to build it again, and its owner hears of it.
func TestArchiveLost(t *testing.T) {
	a := newAPI(t)
	a.repository("o/r")
	a.do(t, "POST", target).submitted(t)
	b := a.work(t, []byte("x"))
	if err := os.Remove(filepath.Join(a.dir, "storage", "blobs", b.Artifact.SHA256)); err != nil {
		t.Fatal(err)
	}
	if p := a.do(t, "GET", archive).problem(t, http.StatusNotFound); !strings.Contains(p.Detail, "POST") {
		t.Errorf("GET says %q", p.Detail)
	}
	if !strings.Contains(a.log.String(), "stored artifact cannot be served") {
		t.Error("the log does not know of it")
	}
	a.do(t, "POST", target).submitted(t)
}
