package s3store_test

import (
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/monochromegane/cargo/artifact/s3store/s3test"
)

// A proxy stands between a store and its server, and does what a bad network
// and a bad server do.
type proxy struct {
	endpoint string

	mu       sync.Mutex
	fault    func(r *http.Request, n int) fault
	requests []string
}

// A fault is what becomes of a request. The zero value is none.
type fault struct {
	answer  http.HandlerFunc // instead of the server's
	reset   bool             // the connection breaks before the server has the request
	half    bool             // it breaks in the middle of the request's body
	lost    bool             // it breaks when the server has answered
	cut     bool             // it breaks in the middle of the answer's body
	damaged bool             // a byte of the request's body arrives as another
	hang    bool             // no answer ever comes, and the server knows nothing of it
	stuck   bool             // half of the answer's body comes, and then nothing more
	before  func()           // is called first
}

func newProxy(t *testing.T, server *s3test.Server) *proxy {
	t.Helper()
	p := &proxy{}
	target := &url.URL{Scheme: "http", Host: server.Endpoint}
	forward := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // which is signed
		},
		Transport: &http.Transport{DisableCompression: true, DisableKeepAlives: true},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) {
			panic(http.ErrAbortHandler) // what a server that is away looks like
		},
		ErrorLog: log.New(io.Discard, "", 0),
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		n := len(p.requests)
		p.requests = append(p.requests, kind(r))
		var f fault
		if p.fault != nil {
			f = p.fault(r, n)
		}
		p.mu.Unlock()
		p.serve(w, r, f, forward)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	p.endpoint = s.Listener.Addr().String()
	return p
}

func (p *proxy) serve(w http.ResponseWriter, r *http.Request, f fault, forward http.Handler) {
	if f.before != nil {
		f.before()
	}
	switch {
	case f.answer != nil:
		_, _ = io.Copy(io.Discard, r.Body)
		f.answer(w, r)
	case f.reset:
		reset(w)
	case f.half:
		_, _ = io.CopyN(io.Discard, r.Body, r.ContentLength/2)
		reset(w)
	case f.lost:
		forward.ServeHTTP(httptest.NewRecorder(), r)
		reset(w)
	case f.cut, f.stuck:
		answer := httptest.NewRecorder()
		forward.ServeHTTP(answer, r)
		for k, v := range answer.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes()[:answer.Body.Len()/2])
		if f.stuck {
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}
		reset(w)
	case f.hang:
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	default:
		if f.damaged {
			r.Body = &damagedBody{ReadCloser: r.Body}
		}
		forward.ServeHTTP(w, r)
	}
}

type damagedBody struct {
	io.ReadCloser
	done bool
}

func (b *damagedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 && !b.done {
		p[0] ^= 1
		b.done = true
	}
	return n, err
}

// reset ends the connection as a machine does that has forgotten it.
func reset(w http.ResponseWriter) {
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	c.Close()
}

// set decides over the requests to come, and forgets those that were; n counts
// from 0.
func (p *proxy) set(f func(r *http.Request, n int) fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.requests = f, nil
}

// seen are the kinds of the requests since set.
func (p *proxy) seen() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.requests...)
}

// kind is the method of a request and what it is for, such as "PUT meta".
func kind(r *http.Request) string {
	what := "list"
	for _, dir := range []string{"blobs", "meta", "logs", "probe"} {
		if strings.Contains(r.URL.Path, "/"+dir) {
			what = dir
		}
	}
	switch q := r.URL.Query(); {
	case q.Has("uploads"):
		what += " uploads"
	case q.Has("partNumber"):
		what += " part"
	case q.Has("uploadId"):
		what += " upload"
	}
	return r.Method + " " + what
}

// says answers with an error of S3.
func says(status int, code string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>`+code+`</Code><Message>a fault of the test</Message></Error>`)
	}
}

var errOfTest = errors.New("an error of the test")
