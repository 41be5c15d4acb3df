package modproxy

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/goproxy/goproxy"
	"golang.org/x/mod/module"
)

// defaults are the module proxy and the name of the checksum database that
// goproxy's fetcher uses when nothing is set, as the go command does. It does
// not export them, so they are read off the requests that it makes for a
// module which is there only for that. Nothing is sent.
func defaults(tempDir string) (proxy *url.URL, sumdb string, err error) {
	m := module.Version{Path: "example.com/m", Version: "v1.0.0"}
	seen := &observer{module: m}
	f := &goproxy.GoFetcher{Env: []string{}, TempDir: tempDir, Transport: seen}
	_, _, _, err = f.Download(context.Background(), m.Path, m.Version)
	if seen.proxy == nil || seen.sumdb == "" {
		return nil, "", errors.Join(errors.New("goproxy's own defaults cannot be learned"), err)
	}
	return seen.proxy, seen.sumdb, nil
}

// An observer serves one module and refuses the checksum database.
type observer struct {
	module module.Version
	proxy  *url.URL
	sumdb  string
}

func (o *observer) RoundTrip(r *http.Request) (*http.Response, error) {
	resp := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Request: r, Body: http.NoBody}
	before, after, _ := strings.Cut(r.URL.Path, "/"+o.module.Path+"/@v/"+o.module.Version)
	gomod := "module " + o.module.Path + "\n"
	switch after {
	case ".info":
		base := *r.URL
		base.Path = before
		o.proxy = &base
		resp.Body = io.NopCloser(strings.NewReader(`{"Version":"` + o.module.Version + `"}`))
	case ".mod":
		resp.Body = io.NopCloser(strings.NewReader(gomod))
	case ".zip":
		var b bytes.Buffer
		z := zip.NewWriter(&b)
		if w, err := z.Create(o.module.String() + "/go.mod"); err == nil {
			_, _ = io.WriteString(w, gomod)
		}
		_ = z.Close()
		resp.Body = io.NopCloser(&b)
	default:
		_, name, _ := strings.Cut(r.URL.Path, "/sumdb/")
		o.sumdb = strings.TrimSuffix(name, "/supported")
		resp.StatusCode, resp.Body = http.StatusForbidden, failing{&statusError{code: http.StatusForbidden}}
	}
	return resp, nil
}

// recognized reports whether goproxy knows the checksum database of that name
// without being given its key.
func recognized(name string) bool {
	f := &goproxy.GoFetcher{Env: []string{"GOSUMDB=" + name}, Transport: &observer{}}
	_, err := f.List(context.Background(), "example.com/m")
	_, asked := errors.AsType[*statusError](err)
	return asked
}
