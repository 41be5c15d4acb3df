package modproxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"

	"github.com/monochromegane/cargo/modproxy"
)

func mv(path, version string) module.Version { return module.Version{Path: path, Version: version} }

func TestDoorBlocks(t *testing.T) {
	g := library(t)
	d, url := open(t, newProxy(t, g.options(t)), modproxy.Limits{})
	addr := strings.TrimPrefix(url, "http://")
	const ok = "/example.com/lib/@v/list"
	requests := []string{
		"POST " + ok + " HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n",
		"CONNECT " + addr + " HTTP/1.1\r\nHost: x\r\n",
		"GET http://" + addr + ok + " HTTP/1.1\r\nHost: x\r\n",
		"GET " + ok + "? HTTP/1.1\r\nHost: x\r\n",
		"GET " + ok + "?go-get=1 HTTP/1.1\r\nHost: x\r\n",
		"GET /example.com/lib/@v/../../../metrics HTTP/1.1\r\nHost: x\r\n",
		"GET /example.com/lib/@v/%2e%2e%2fmetrics HTTP/1.1\r\nHost: x\r\n",
		"GET " + ok + " HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
		"GET " + ok + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\n",
		"GET /sumdb/other.example.org/latest HTTP/1.1\r\nHost: x\r\n",
	}
	for _, req := range requests {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "%sConnection: close\r\n\r\n", strings.Replace(req, "Host: x\r\n", "Host: x\r\nConnection: close\r\n", 1))
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Errorf("%q: %v", req, err)
		} else if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusForbidden || !strings.HasPrefix(string(body), "a build reaches a Go module proxy and nothing else: ") {
			t.Errorf("%q: %d %q", req, resp.StatusCode, body)
		}
		c.Close()
	}
	if len(g.asked) != 0 {
		t.Errorf("the upstream was asked for %q", g.asked)
	}
	if s := d.Stats(); s.Blocked != len(requests) || s.Requests != len(requests) {
		t.Errorf("Stats = %+v, want %d blocked", s, len(requests))
	}
	resp, err := http.Head(url + ok)
	if err != nil || resp.StatusCode != http.StatusOK || resp.ContentLength != 13 {
		t.Errorf("HEAD = %+v, %v", resp, err)
	}
}

func TestLimits(t *testing.T) {
	g := library(t)
	for _, tc := range []struct {
		name   string
		limits modproxy.Limits
		want   string
	}{
		{"requests", modproxy.Limits{Requests: 3}, "this build has made more than 3 requests for modules, which is its limit"},
		{"bytes", modproxy.Limits{Bytes: 400}, "this build has fetched more than 400 bytes of modules, which is its limit"},
		{"path", modproxy.Limits{PathBytes: 100}, "the names of the modules that this build has asked for are longer than 100 bytes in all, which is its limit"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newProxy(t, g.options(t))
			d, url := open(t, p, tc.limits)
			out, err := newGopher(t, p, url, app).run(t.Context(), "get", "example.com/lib")
			if err == nil || !strings.Contains(out, tc.want) {
				t.Errorf("go get = %v\n%s\nwant %q in it", err, out, tc.want)
			}
			if s := d.Stats(); s.Blocked == 0 || tc.limits.Bytes != 0 && s.Bytes > tc.limits.Bytes {
				t.Errorf("Stats = %+v", s)
			}
			_, url = open(t, p, modproxy.Limits{})
			if code, _ := fetch(t, url+"/example.com/lib/@v/list"); code != http.StatusOK {
				t.Errorf("another build's door: %d", code)
			}
		})
	}
}

func TestNothingIsFetchedBeyondTheBytes(t *testing.T) {
	g := library(t)
	_, url := open(t, newProxy(t, g.options(t)), modproxy.Limits{Bytes: 10})
	for _, file := range []string{"v1.0.0.mod", "v1.0.0.info"} {
		code, text := fetch(t, url+"/example.com/lib/@v/"+file)
		if code != http.StatusTooManyRequests || !strings.Contains(text, "more than 10 bytes") {
			t.Errorf("%s: %d %q", file, code, text)
		}
	}
	if n := g.times("/example.com/lib/@v/v1.0.0.info"); n != 0 {
		t.Errorf("the upstream was asked %d times for what the build may not have", n)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	g := library(t)
	_, url := open(t, newProxy(t, g.options(t)), modproxy.Limits{Conns: 2})
	addr := strings.TrimPrefix(url, "http://")
	var conns []net.Conn
	ask := func(c net.Conn) { fmt.Fprint(c, "GET /example.com/lib/@v/list HTTP/1.1\r\nHost: x\r\n\r\n") }
	answered := func(c net.Conn) bool {
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		return err == nil && resp.StatusCode == http.StatusOK
	}
	for range 3 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	ask(conns[0])
	ask(conns[1])
	if !answered(conns[0]) || !answered(conns[1]) {
		t.Fatal("the first two got no answer")
	}
	ask(conns[2])
	conns[2].SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // an answer would take less; its lack cannot be waited for
	if answered(conns[2]) {
		t.Fatal("the third connection was accepted")
	}
	conns[2].SetReadDeadline(time.Time{})
	conns[0].Close()
	if !answered(conns[2]) {
		t.Error("the third connection was not accepted when the first had gone")
	}
}

// blockZip holds back the answers for a zip until release is closed, and says
// when a request for it comes and when one is given up.
func blockZip(g *registry, path string) (arrived, gone chan struct{}, release chan struct{}) {
	arrived, gone, release = make(chan struct{}, 10), make(chan struct{}, 10), make(chan struct{})
	g.intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != path {
			return false
		}
		arrived <- struct{}{}
		select {
		case <-release:
			return false
		case <-r.Context().Done():
			gone <- struct{}{}
			return true
		}
	})
	return arrived, gone, release
}

func TestSharedDownload(t *testing.T) {
	const path = "/example.com/lib/@v/v1.1.0.zip"
	g := library(t)
	arrived, _, release := blockZip(g, path)
	p := newProxy(t, g.options(t))
	first, firstURL := open(t, p, modproxy.Limits{})
	_, url := open(t, p, modproxy.Limits{})
	firstDone := make(chan struct{})
	go func() {
		defer close(firstDone)
		if resp, err := http.Get(firstURL + path); err == nil {
			resp.Body.Close()
			t.Error("the build that ended got an answer")
		}
	}()
	<-arrived
	type answer struct {
		code int
		body string
	}
	const others = 5
	answers := make(chan answer, others)
	for range others {
		go func() {
			code, body := fetch(t, url+path)
			answers <- answer{code, body}
		}()
	}
	waitFor(t, func() bool { return p.Waiting("example.com/lib/@v/v1.1.0.zip") == others+1 })
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	<-firstDone
	close(release)
	want := string(g.releases[mv("example.com/lib", "v1.1.0")].zip)
	for range others {
		if a := <-answers; a.code != http.StatusOK || a.body != want {
			t.Errorf("%d and %d bytes, want 200 and %d", a.code, len(a.body), len(want))
		}
	}
	if n := g.times(path); n != 1 {
		t.Errorf("fetched %d times", n)
	}
}

func TestDownloadEndsWithItsLastBuild(t *testing.T) {
	const path = "/example.com/lib/@v/v1.1.0.zip"
	g := library(t)
	arrived, gone, release := blockZip(g, path)
	p := newProxy(t, g.options(t))
	d, url := open(t, p, modproxy.Limits{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		if resp, err := http.Get(url + path); err == nil {
			resp.Body.Close()
			t.Error("the build that ended got an answer")
		}
	}()
	<-arrived
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	<-done
	<-gone
	close(release)
	_, url = open(t, p, modproxy.Limits{})
	if code, _ := fetch(t, url+path); code != http.StatusOK {
		t.Errorf("the next build: %d", code)
	}
}

// A server does not see its client go while more of the client's requests wait to be read.
func TestCloseEndsPipelinedRequests(t *testing.T) {
	const path = "/example.com/lib/@v/v1.1.0.zip"
	g := library(t)
	arrived, gone, release := blockZip(g, path)
	defer close(release)
	d, url := open(t, newProxy(t, g.options(t)), modproxy.Limits{})
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	request := "GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n"
	fmt.Fprint(c, request)
	<-arrived
	fmt.Fprint(c, request)
	fetch(t, url+"/example.com/lib/@v/list") // by then the server has begun to read it
	closed := make(chan error, 1)
	go func() { closed <- d.Close() }()
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
		<-gone
	case <-time.After(20 * time.Second):
		t.Error("Close does not return")
	}
}

func TestCloseBeforeServe(t *testing.T) {
	d := newProxy(t, modproxy.Options{GOPROXY: "off", Dir: t.TempDir()}).Door(modproxy.Limits{})
	for range 2 {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Serve(ln); err != http.ErrServerClosed {
		t.Errorf("Serve = %v", err)
	}
	if _, err := ln.Accept(); err == nil {
		t.Error("the listener is still open")
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not come to pass")
		}
	}
}
