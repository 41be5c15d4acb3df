package httpserver_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/gitsrc"
	"github.com/monochromegane/cargo/httpserver"
	"github.com/monochromegane/cargo/queue"
)

// known are the callers of the tests, by token.
type known map[string]string

func (k known) Caller(token string) (string, bool) {
	name, ok := k[token]
	return name, ok
}

const cargoToken = "t0ken-of-ci-for-cargo"

var ci = known{cargoToken: "ci", "t0ken-of-another": "another"}

func TestWhoMayBuild(t *testing.T) {
	a := newAPI(t, func(o *httpserver.Options) { o.Access.Tokens = ci })
	a.repository("o/r")
	for _, tc := range []struct {
		headers []string
		says    string
	}{
		{nil, `"Cargo-Token: TOKEN"`},
		{[]string{"Authorization", "token " + cargoToken}, `"Cargo-Token: TOKEN"`},
		{[]string{"Cargo-Token", ""}, "nobody's"},
		{[]string{"Cargo-Token", cargoToken + "x"}, "nobody's"},
		{[]string{"Cargo-Token", secret}, "nobody's"},
	} {
		for _, call := range []struct{ method, path string }{{"POST", target}, {"DELETE", "/builds/" + string(build.NewID())}} {
			r := a.do(t, call.method, call.path, tc.headers...)
			if p := r.problem(t, http.StatusUnauthorized); !strings.Contains(p.Detail, tc.says) {
				t.Errorf("%s with %q says %q, want something of %s", call.method, tc.headers, p.Detail, tc.says)
			}
			if got := r.header.Get("WWW-Authenticate"); got != `Cargo-Token realm="cargo"` {
				t.Errorf("WWW-Authenticate is %q", got)
			}
		}
	}
	id := a.do(t, "POST", target, "Cargo-Token", cargoToken).submitted(t)
	for _, headers := range [][]string{nil, {"Cargo-Token", "wrong"}} { // everybody reads
		if r := a.do(t, "GET", "/builds/"+string(id), headers...); r.code != http.StatusOK || strings.Contains(r.body, "ci") {
			t.Errorf("GET of the record with %q = %d %s", headers, r.code, r.body)
		}
		a.do(t, "GET", target, headers...).problem(t, http.StatusNotFound)
	}
	a.do(t, "DELETE", "/builds/"+string(id), "Cargo-Token", cargoToken).submitted(t)

	if log := a.log.String(); strings.Contains(log, cargoToken) || strings.Contains(log, secret) || !strings.Contains(log, `"caller":"ci"`) {
		t.Errorf("the log holds a token, or not the caller's name:\n%s", log)
	}
}

// The header of Authorization is still the git host's, and its 401 says so.
func TestTwoTokens(t *testing.T) {
	a := newAPI(t, func(o *httpserver.Options) { o.Access.Tokens = ci })
	a.repository("o/private")
	a.host.Protect("o/private", secret)
	path := strings.Replace(target, "/r/", "/private/", 1)
	a.do(t, "POST", path, "Cargo-Token", cargoToken).problem(t, http.StatusNotFound)
	a.do(t, "POST", path, "Cargo-Token", cargoToken, "Authorization", "token "+secret).submitted(t)
	r := a.do(t, "POST", path, "Cargo-Token", cargoToken, "Authorization", "Digest x")
	r.problem(t, http.StatusUnauthorized)
	if got := r.header.Get("WWW-Authenticate"); !strings.HasPrefix(got, "Basic") {
		t.Errorf("WWW-Authenticate is %q", got)
	}
}

func TestTooManyBuildsOfOneCaller(t *testing.T) {
	a := newAPI(t, func(o *httpserver.Options) {
		o.Access.Tokens = ci
		o.Builds = twoEach{o.Builds}
	})
	a.repository("o/r")
	post := func(token, arch string) reply {
		return a.do(t, "POST", "/github.com/o/r/linux/"+arch+"/v1", "Cargo-Token", token)
	}
	post(cargoToken, "386").submitted(t)
	r := post("t0ken-of-another", "arm64")
	p := r.problem(t, http.StatusTooManyRequests)
	if !strings.Contains(p.Detail, "too many builds") || r.header.Get("Retry-After") != "10" {
		t.Errorf("says %q, %v", p.Detail, r.header)
	}
}

// twoEach is a queue in which only the caller ci has room.
type twoEach struct{ httpserver.Builds }

func (b twoEach) Submit(ctx context.Context, s queue.Submission) (build.Build, error) {
	if s.Caller != "token:ci" {
		return build.Build{}, fmt.Errorf("%w: 2 of yours are queued", queue.ErrCallerFull)
	}
	return b.Builds.Submit(ctx, s)
}

// A lonely handler has no network around it: its git host knows no
// repository, so that what is let through is a 404.
func lonely(access httpserver.Access) http.Handler {
	return httpserver.New(httpserver.Options{Source: noSource{}, Builds: noBuilds{}, Access: access, Image: func() string { return image }})
}

type noSource struct{ httpserver.Source }

func (noSource) Resolve(context.Context, build.Repository, string, gitsrc.Token, time.Duration) (gitsrc.Ref, error) {
	return gitsrc.Ref{}, gitsrc.ErrNotFound
}

type noBuilds struct{ httpserver.Builds }

func (noBuilds) Get(context.Context, build.ID) (build.Build, error) {
	return build.Build{}, queue.ErrNotFound
}

// from sends a request to h as a peer and returns the seconds of Retry-After, 0 if it was let through.
func from(t *testing.T, h http.Handler, peer, method, path string, headers ...string) int {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, nil)
	r.RemoteAddr = peer
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	switch w.Code {
	case http.StatusNotFound, http.StatusUnauthorized, http.StatusOK:
		return 0
	case http.StatusTooManyRequests:
		wait, err := strconv.Atoi(w.Header().Get("Retry-After"))
		if err != nil || wait < 1 {
			t.Errorf("Retry-After is %q", w.Header().Get("Retry-After"))
		}
		return wait
	}
	body, _ := io.ReadAll(w.Body)
	t.Fatalf("%s %s = %d %s", method, path, w.Code, body)
	return 0
}

const (
	here  = "192.0.2.1:1000"
	there = "192.0.2.2:1000"
)

func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := lonely(httpserver.Access{Tokens: ci, AddressRate: httpserver.Rate{PerMinute: 7, Burst: 3}, TokenRate: httpserver.Rate{PerMinute: 60}})
		post := func(peer string, headers ...string) int { return from(t, h, peer, "POST", target, headers...) }
		for range 3 {
			if wait := post(here); wait != 0 {
				t.Fatalf("refused within the burst, for %d s", wait)
			}
		}
		for range 5 { // asking does not make it longer
			if wait := post(here); wait != 9 { // 60/7, rounded up
				t.Errorf("Retry-After = %d, want 9", wait)
			}
		}
		if wait := from(t, h, here, "DELETE", "/builds/"+string(build.NewID())); wait != 9 {
			t.Errorf("DELETE has a rate of its own: %d", wait)
		}
		if wait := post(here, "Cargo-Token", "guessed"); wait != 9 {
			t.Errorf("guessing a token is not rated: %d", wait)
		}
		if wait := post(there); wait != 0 {
			t.Errorf("another address is refused for %d s", wait)
		}
		for i := range 60 { // a token is not its holder's address
			if wait := post([]string{here, there}[i%2], "Cargo-Token", cargoToken); wait != 0 {
				t.Fatalf("request %d with a token is refused for %d s", i, wait)
			}
		}
		if wait := post(there, "Cargo-Token", cargoToken); wait != 1 {
			t.Errorf("Retry-After of a token = %d, want 1", wait)
		}
		if wait := post(there, "Cargo-Token", "t0ken-of-another"); wait != 0 {
			t.Errorf("another's token is refused for %d s", wait)
		}
		time.Sleep(9 * time.Second)
		if wait := post(here); wait != 0 {
			t.Errorf("refused for %d s after waiting as told", wait)
		}
		if wait := post(here); wait == 0 {
			t.Error("let through twice after waiting for one")
		}
	})
}

func TestRatesOfReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := lonely(httpserver.Access{AddressRate: httpserver.Rate{PerMinute: 2}})
		paths := []string{target, archive, "/builds/" + string(build.NewID()), "/builds/" + string(build.NewID()) + "/logs"}
		for i := range 20 {
			if wait := from(t, h, here, "GET", paths[i%len(paths)]); wait != 0 {
				t.Fatalf("read %d is refused for %d s", i, wait)
			}
		}
		for _, path := range append(paths, "/builds") {
			if wait := from(t, h, here, "GET", path); wait != 3 {
				t.Errorf("GET %s: Retry-After = %d, want 3", path, wait)
			}
		}
		if wait := from(t, h, here, "HEAD", target); wait != 3 {
			t.Errorf("HEAD: Retry-After = %d, want 3", wait)
		}
		if wait := from(t, h, here, "POST", target); wait != 0 {
			t.Errorf("reading uses up what is there for building: %d", wait)
		}
		for range 100 {
			if wait := from(t, h, here, "GET", "/healthz") + from(t, h, here, "GET", "/"); wait != 0 {
				t.Fatalf("a probe is refused for %d s", wait)
			}
		}
	})
}

// Whoever has many addresses, of which each spends its burst, neither gets a
// new one for any of them nor takes anything from who was there before.
func TestRatesOfManyAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := lonely(httpserver.Access{AddressRate: httpserver.Rate{PerMinute: 1, Burst: 2}})
		post := func(peer string) int { return from(t, h, peer, "POST", target) }
		peer := func(i int) string { return fmt.Sprintf("[2001:db8:%x:%x::1]:9", i>>16, i&0xffff) }
		post(peer(0))
		post(here)
		post(here)
		const others = 9_999 // as many as there is room for, beside here
		for i := range others - 1 {
			post(peer(1 + i))
		}
		post(peer(others - 1)) // who came last is not the first to be forgotten
		if wait := post(here); wait != 60 {
			t.Errorf("the spent bucket of an address is new after many others came: %d", wait)
		}
		if wait := post(peer(0)); wait != 0 { // its second
			t.Errorf("who was there before is refused for %d s", wait)
		}
		if a, b, c := post(peer(others)), post(peer(others+1)), post(peer(others+2)); a != 0 || b != 0 || c == 0 {
			t.Errorf("newcomers of a full table share no bucket of two: %d, %d, %d", a, b, c)
		}
		time.Sleep(time.Minute) // those who asked once are forgotten
		if a, b, c := post(peer(others)), post(peer(others+1)), post(peer(others+2)); a != 0 || b != 0 || c != 0 {
			t.Errorf("there is no room again: %d, %d, %d", a, b, c)
		}
	})
}

func TestClientAddresses(t *testing.T) {
	proxies := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8"), netip.MustParsePrefix("127.0.0.1/32")}
	for _, tc := range []struct {
		name string
		a, b []string // peer, then each X-Forwarded-For
		same bool
	}{
		{"two peers", []string{here}, []string{there}, false},
		{"two ports", []string{here}, []string{"192.0.2.1:2000"}, true},
		{"IPv4 in IPv6", []string{here}, []string{"[::ffff:192.0.2.1]:2000"}, true},
		{"one /64", []string{"[2001:db8::1]:1"}, []string{"[2001:db8::2:1]:1"}, true},
		{"two /64", []string{"[2001:db8::1]:1"}, []string{"[2001:db8:0:1::1]:1"}, false},
		{"zones", []string{"[fe80::1%eth0]:1"}, []string{"[fe80::1%eth1]:1"}, true},
		{"no proxy is believed who is none", []string{here, "198.51.100.1"}, []string{here, "198.51.100.2"}, true},
		{"a proxy", []string{"10.0.0.1:1", "198.51.100.1"}, []string{"10.0.0.1:1", "198.51.100.2"}, false},
		{"through a proxy and not", []string{"10.0.0.1:1", "192.0.2.1"}, []string{here}, true},
		{"a proxy that writes ports", []string{"10.0.0.1:1", "192.0.2.1:77"}, []string{"[fd00::1]:1", "192.0.2.1:78"}, true},
		{"what the client wrote", []string{"10.0.0.1:1", "203.0.113.1, 192.0.2.1"}, []string{"10.0.0.1:1", "203.0.113.2, 192.0.2.1"}, true},
		{"what the client wrote, in a header of its own", []string{"10.0.0.1:1", "203.0.113.1", "192.0.2.1"}, []string{"10.0.0.1:1", "203.0.113.2", "192.0.2.1"}, true},
		{"a proxy's address that the client wrote", []string{"10.0.0.1:1", "203.0.113.1, 10.0.0.9, 192.0.2.1"}, []string{"10.0.0.1:1", "192.0.2.1"}, true},
		{"two proxies", []string{"10.0.0.1:1", "203.0.113.9, 198.51.100.1, fd00::2"}, []string{"127.0.0.1:1", "198.51.100.1"}, true},
		{"nonsense stops the walk", []string{"10.0.0.1:1", "203.0.113.1, unknown, 10.0.0.2"}, []string{"10.0.0.1:1", "203.0.113.2, , 10.0.0.2"}, true},
		{"nobody before the proxy", []string{"10.0.0.1:1"}, []string{"10.0.0.1:1", ""}, true},
		{"all are proxies", []string{"10.0.0.1:1", "10.0.0.7, 10.0.0.2"}, []string{"10.0.0.7:1"}, true},
		{"no address at all", []string{"@"}, []string{"pipe"}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := lonely(httpserver.Access{AddressRate: httpserver.Rate{PerMinute: 1}, Proxies: proxies})
			post := func(who []string) bool {
				var headers []string
				for _, f := range who[1:] {
					headers = append(headers, "X-Forwarded-For", f)
				}
				return from(t, h, who[0], "POST", target, headers...) == 0
			}
			if !post(tc.a) {
				t.Fatal("the first request is refused")
			}
			if same := !post(tc.b); same != tc.same {
				t.Errorf("%q and %q count as the same: %v", tc.a, tc.b, same)
			}
		})
	}
}

// What the queue is told of an address is not the address, differs between
// addresses, and is the same after a restart with the same secret.
func TestAccounts(t *testing.T) {
	account := func(secret, peer string) string {
		q := &lastCaller{}
		h := httpserver.New(httpserver.Options{Source: anySource{}, Builds: q, Artifacts: noArtifacts{}, Image: func() string { return image },
			Access: httpserver.Access{Secret: []byte(secret)}})
		r := httptest.NewRequestWithContext(t.Context(), "POST", target, nil)
		r.RemoteAddr = peer
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusAccepted {
			t.Fatalf("POST = %d %s", w.Code, w.Body)
		}
		return q.caller
	}
	a := account("k", here)
	if !strings.HasPrefix(a, "address:") || strings.Contains(a, "192") {
		t.Errorf("the account of an address is %q", a)
	}
	if b := account("k", here); a != b {
		t.Errorf("one address has two accounts: %q and %q", a, b)
	}
	if account("k", there) == a || account("other", here) == a {
		t.Error("two addresses, or two secrets, make one account")
	}
}

type lastCaller struct {
	httpserver.Builds
	caller string
}

func (q *lastCaller) Submit(_ context.Context, s queue.Submission) (build.Build, error) {
	q.caller = s.Caller
	return s.Build, nil
}

type anySource struct{ httpserver.Source }

func (anySource) Resolve(context.Context, build.Repository, string, gitsrc.Token, time.Duration) (gitsrc.Ref, error) {
	return gitsrc.Ref{Commit: strings.Repeat("a", 40), Name: "refs/tags/v1", Public: true}, nil
}

type noArtifacts struct{ httpserver.Artifacts }

func (noArtifacts) Lookup(context.Context, string) (artifact.Meta, error) {
	return artifact.Meta{}, artifact.ErrNotFound
}

// Only so many ask a git host at once; the others wait a while for their turn.
func TestListingsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &slowSource{answer: make(chan struct{})}
		h := httpserver.New(httpserver.Options{Source: source, Image: func() string { return image }})
		codes := make(chan int, 20)
		for i := range cap(codes) {
			go func() {
				w := httptest.NewRecorder()
				h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), []string{"GET", "POST"}[i%2], target, nil))
				codes <- w.Code
			}()
		}
		synctest.Wait()
		if n := source.asked.Load(); n != 16 {
			t.Errorf("%d ask at once, want 16", n)
		}
		source.answer <- struct{}{} // makes room for one that waits
		synctest.Wait()
		if n, code := source.asked.Load(), <-codes; n != 17 || code != http.StatusNotFound {
			t.Errorf("%d have asked, want 17; the first is told %d", n, code)
		}
		time.Sleep(10 * time.Second)
		for range 3 {
			if code := <-codes; code != http.StatusServiceUnavailable {
				t.Errorf("who waits for long is told %d, want 503", code)
			}
		}
		close(source.answer)
		for range 16 {
			if code := <-codes; code != http.StatusNotFound {
				t.Errorf("who has asked is told %d", code)
			}
		}
	})
}

type slowSource struct {
	httpserver.Source
	asked  atomic.Int32
	answer chan struct{}
}

func (s *slowSource) Resolve(context.Context, build.Repository, string, gitsrc.Token, time.Duration) (gitsrc.Ref, error) {
	s.asked.Add(1)
	<-s.answer
	return gitsrc.Ref{}, gitsrc.ErrNotFound
}
