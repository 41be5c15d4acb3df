package httpserver_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/gitsrc"
	"github.com/monochromegane/cargo/httpserver"
)

func baseContext(ctx context.Context) func(net.Listener) context.Context {
	return func(net.Listener) context.Context { return ctx }
}

func TestStatusPages(t *testing.T) {
	a := newAPI(t)
	for path, want := range map[string]string{"/healthz": "{\"alive\":true}\n", "/readyz": "{\"ready\":true}\n", "/metrics": "cargo_up 1\n"} {
		if r := a.do(t, "GET", path); r.code != http.StatusOK || r.body != want {
			t.Errorf("GET %s = %d %q, want %q", path, r.code, r.body, want)
		}
	}
	r := a.do(t, "GET", "/")
	if r.code != http.StatusOK || !strings.Contains(r.body, "curl -X POST "+a.url+"/github.com/") || r.header.Get("Content-Type") != "text/plain; charset=utf-8" {
		t.Errorf("GET / = %d %s %q", r.code, r.header.Get("Content-Type"), r.body)
	}
	if r.header.Get("X-Robots-Tag") != "noindex" || r.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("the header is %v", r.header)
	}
}

func TestMethods(t *testing.T) {
	a := newAPI(t)
	for path, allow := range map[string]string{
		target: "GET, HEAD, POST", archive: "GET, HEAD", "/builds/x": "DELETE, GET, HEAD", "/": "GET, HEAD",
	} {
		r := a.do(t, "PUT", path)
		if p := r.problem(t, http.StatusMethodNotAllowed); r.header.Get("Allow") != allow || !strings.Contains(p.Detail, allow) {
			t.Errorf("PUT %s allows %q and says %q, want %q", path, r.header.Get("Allow"), p.Detail, allow)
		}
	}
}

// A page that somebody looks at in a browser cannot start or cancel builds.
func TestCrossOrigin(t *testing.T) {
	a := newAPI(t)
	a.repository("o/r")
	a.do(t, "POST", target, "Sec-Fetch-Site", "cross-site").problem(t, http.StatusForbidden)
	a.do(t, "POST", target, "Origin", "https://evil.example").problem(t, http.StatusForbidden)
	a.do(t, "POST", target, "Sec-Fetch-Site", "same-origin").submitted(t)
}

func TestAuthorizationNotUnderstood(t *testing.T) {
	a := newAPI(t)
	for _, path := range []string{target, archive, "/builds/" + string(build.NewID())} {
		r := a.do(t, "GET", path, "Authorization", "Digest "+secret)
		r.problem(t, http.StatusUnauthorized)
		if r.header.Get("WWW-Authenticate") == "" {
			t.Error("no WWW-Authenticate")
		}
	}
	if strings.Contains(a.log.String(), secret) {
		t.Error("the log has what was sent")
	}
}

// Requests that no client library would send.
func TestRawRequests(t *testing.T) {
	a := newAPI(t)
	for line, want := range map[string]int{
		"GET " + target + " HTTP/1.1\r\nAuthorization: token a\r\nAuthorization: token b": 401,
		"GET /github.com/o/r/linux/amd64/%zz HTTP/1.1":                                    400,
		"GET /a/../../etc/passwd HTTP/1.1":                                                404,
		"GET //evil.example/%2e%2e HTTP/1.1":                                              400,
		"GET http://evil.example/healthz HTTP/1.1":                                        200,
		"GET /\x00 HTTP/1.1":                                                              400,
		"POST /github.com/o/r/linux/amd64/v1%0d%0aX-Injected:%20y HTTP/1.1":               400,
		"GET /github.com/o/r/linux/amd64/" + strings.Repeat("%2e", 2000) + " HTTP/1.1":    414,
		"CONNECT example:443 HTTP/1.1":                                                    400,
		"OPTIONS / HTTP/1.1":                                                              405,
	} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(a.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = fmt.Fprintf(conn, "%s\r\nHost: x\r\nConnection: close\r\n\r\n", line)
		r, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Errorf("%.60q: %v", line, err)
		} else if r.StatusCode != want || r.Header.Get("X-Injected") != "" || r.Header.Get("Location") != "" {
			t.Errorf("%.60q = %d %v, want %d", line, r.StatusCode, r.Header, want)
		}
		_ = conn.Close()
	}
}

// A source that breaks in the way it is told to.
type brokenSource struct {
	httpserver.Source
	resolve func() (gitsrc.Ref, error)
}

func (b brokenSource) Resolve(context.Context, build.Repository, string, gitsrc.Token, time.Duration) (gitsrc.Ref, error) {
	return b.resolve()
}

func TestUnknownErrorsStayHere(t *testing.T) {
	for name, resolve := range map[string]func() (gitsrc.Ref, error){
		"error": func() (gitsrc.Ref, error) { return gitsrc.Ref{}, fmt.Errorf("dial 10.0.0.1: %w", errDisk) },
		"panic": func() (gitsrc.Ref, error) { panic("dial 10.0.0.1: the disk is gone") },
	} {
		a := newAPI(t, func(o *httpserver.Options) { o.Source = brokenSource{o.Source, resolve} })
		r := a.do(t, "GET", target)
		if r.problem(t, http.StatusInternalServerError); strings.Contains(r.body, "10.0.0.1") {
			t.Errorf("%s: the caller reads %s", name, r.body)
		}
		log := a.log.String()
		if !strings.Contains(log, `"level":"ERROR"`) || !strings.Contains(log, "the disk is gone") {
			t.Errorf("%s: the log is %s", name, log)
		}
		if (name == "panic") != strings.Contains(log, "brokenSource.Resolve") {
			t.Errorf("%s: stack in the log: %v", name, name != "panic")
		}
	}
}

// What is sent with a request is bounded for whoever may read it.
func TestBodyIsBounded(t *testing.T) {
	a := newAPI(t, func(o *httpserver.Options) {
		o.MetricsHandler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n, err := io.Copy(io.Discard, r.Body)
			_, _ = fmt.Fprint(w, n, err)
		})
	})
	req, err := http.NewRequestWithContext(t.Context(), "GET", a.url+"/metrics", strings.NewReader(strings.Repeat("x", 1<<20)))
	if err != nil {
		t.Fatal(err)
	}
	r, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if body, err := io.ReadAll(r.Body); err != nil || !strings.HasPrefix(string(body), "65536 ") {
		t.Errorf("read was %q, %v", body, err)
	}
}

// One line for each request, with neither its query nor its header.
func TestRequestsAreLoggedAndCounted(t *testing.T) {
	a := newAPI(t)
	a.do(t, "GET", target+"?recipe=secretly", "Authorization", "token "+secret)
	a.do(t, "GET", "/nothing")
	a.do(t, "GET", "/healthz")
	log := a.log.String()
	for _, want := range []string{`"path":"` + target + `"`, `"code":400`, `"route":"other"`, `"route":"/healthz"`} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %s: %s", want, log)
		}
	}
	if strings.Contains(log, secret) || strings.Contains(log, "secretly") {
		t.Errorf("the log says too much: %s", log)
	}
	if n := strings.Count(log, `"msg":"request"`); n != 3 {
		t.Errorf("3 requests are %d lines", n)
	}
	for _, want := range []struct {
		route string
		code  int
	}{{"/{remote}/{owner}/{repo}/{GOOS}/{GOARCH}/{version}", 400}, {"other", 404}, {"/healthz", 200}} {
		if n := a.counts.requests[want.route][want.code]; n != 1 {
			t.Errorf("%s %d was counted %d times", want.route, want.code, n)
		}
	}
}

// A client that gives up leaves no answer and no error behind.
func TestClientGone(t *testing.T) {
	entered := make(chan struct{})
	a := newAPI(t, func(o *httpserver.Options) { o.Source = waitingSource{o.Source, entered} })
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "GET", a.url+target, nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() { <-entered; cancel() }()
	if r, err := client.Do(req); err == nil {
		_ = r.Body.Close()
		t.Errorf("code %d", r.StatusCode)
	}
	a.server.Close() // waits for the handler
	if n := a.counts.requests["/{remote}/{owner}/{repo}/{GOOS}/{GOARCH}/{version}"][499]; n != 1 {
		t.Errorf("counted are %v", a.counts.requests)
	}
	if log := a.log.String(); strings.Contains(log, "ERROR") {
		t.Errorf("the log is %s", log)
	}
}

type waitingSource struct {
	httpserver.Source
	entered chan struct{}
}

func (w waitingSource) Resolve(ctx context.Context, _ build.Repository, _ string, _ gitsrc.Token, _ time.Duration) (gitsrc.Ref, error) {
	close(w.entered)
	<-ctx.Done()
	return gitsrc.Ref{}, ctx.Err()
}
