package modproxy_test

import (
	"bytes"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/monochromegane/cargo/modproxy"
)

const app = "module example.org/app\n\ngo 1.21\n"

// library fills g with a module that needs another.
func library(t *testing.T) *registry {
	g := newRegistry(t)
	g.add(t, "example.com/Dep", "v0.3.0", "", map[string]string{"dep.go": "package dep\n"})
	g.add(t, "example.com/lib", "v1.0.0", "", map[string]string{"lib.go": "package lib\n"})
	g.add(t, "example.com/lib", "v1.1.0", "\nrequire example.com/Dep v0.3.0\n", map[string]string{
		"lib.go":     "package lib\n\nimport _ \"example.com/Dep\"\n",
		"sub/sub.go": "package sub\n",
	})
	return g
}

func TestGoGetVerifiesThroughTheDoor(t *testing.T) {
	g := library(t)
	p := newProxy(t, g.options(t))
	d, url := open(t, p, modproxy.Limits{})
	gopher := newGopher(t, p, url, app)
	gopher.must(t, "get", "example.com/lib@latest")
	for _, sum := range []string{g.sums[mv("example.com/lib", "v1.1.0")], g.sums[mv("example.com/Dep", "v0.3.0")]} {
		if got := gopher.read(t, "go.sum"); !strings.Contains(got, sum) {
			t.Errorf("go.sum lacks\n%s\nit has\n%s", sum, got)
		}
	}
	if g.times("/sumdb/sums.invalid/lookup/example.com/lib@v1.1.0") != 1 {
		t.Error("the record was not asked for once")
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if s := d.Stats(); s.Requests < 8 || s.Bytes == 0 || s.Blocked != 0 {
		t.Errorf("Stats = %+v", s)
	}
}

func TestOfflineAfterARestart(t *testing.T) {
	g := library(t)
	o := g.options(t)
	warm := newProxy(t, o)
	_, url := open(t, warm, modproxy.Limits{})
	gopher := newGopher(t, warm, url, app)
	gopher.must(t, "get", "example.com/lib@latest")
	g.Close()
	g.db.Close()

	p := newProxy(t, o)
	_, url = open(t, p, modproxy.Limits{})
	again := newGopher(t, p, url, gopher.read(t, "go.mod"))
	again.must(t, "mod", "download", "-x", "all") // without go.sum: the database's answers come from the cache too
	if again.read(t, "go.sum") == "" {
		t.Error("go.sum is empty")
	}
	if code, body := fetch(t, url+"/example.com/lib/@v/v1.0.0.zip"); code != http.StatusBadGateway || strings.Contains(body, "127.0.0.1") {
		t.Errorf("what was never kept: %d %q, want 502 without an address", code, body)
	}
	if code, body := fetch(t, url+"/example.com/lib/@v/list"); code != http.StatusOK || body != "v1.0.0\nv1.1.0" {
		t.Errorf("the list that was kept: %d %q", code, body)
	}
}

func TestGoModAloneFetchesNoZip(t *testing.T) {
	g := library(t)
	_, url := open(t, newProxy(t, g.options(t)), modproxy.Limits{})
	for range 2 {
		if code, body := fetch(t, url+"/example.com/lib/@v/v1.1.0.mod"); code != http.StatusOK || body != g.releases[mv("example.com/lib", "v1.1.0")].mod {
			t.Fatalf("%d %q", code, body)
		}
	}
	if n := g.times("/example.com/lib/@v/v1.1.0.zip"); n != 0 {
		t.Error("fetched the zip")
	}
	if n := g.times("/example.com/lib/@v/v1.1.0.mod"); n != 1 {
		t.Errorf("asked %d times for the go.mod, want once", n)
	}
}

func TestToolchain(t *testing.T) {
	g := newRegistry(t)
	g.add(t, "golang.org/toolchain", "v0.0.1-go1.99.0.linux-amd64", "", map[string]string{"bin/go": strings.Repeat("\x7fELF", 1<<18)})
	_, url := open(t, newProxy(t, g.options(t)), modproxy.Limits{})
	code, body := fetch(t, url+"/golang.org/toolchain/@v/v0.0.1-go1.99.0.linux-amd64.zip")
	if want := g.releases[mv("golang.org/toolchain", "v0.0.1-go1.99.0.linux-amd64")].zip; code != http.StatusOK || body != string(want) {
		t.Errorf("%d and %d bytes, want 200 and %d", code, len(body), len(want))
	}
}

func TestTamperedZipIsRefused(t *testing.T) {
	g := library(t)
	g.tamper(t, "example.com/lib", "v1.1.0", map[string]string{"lib.go": "package lib // evil\n"})
	p := newProxy(t, g.options(t))
	_, url := open(t, p, modproxy.Limits{})
	for range 2 { // it was not kept either
		code, body := fetch(t, url+"/example.com/lib/@v/v1.1.0.zip")
		if code != http.StatusBadGateway || !strings.Contains(body, "example.com/lib@v1.1.0 was not confirmed") {
			t.Errorf("%d %q", code, body)
		}
	}
	out, err := newGopher(t, p, url, app).run(t.Context(), "get", "example.com/lib@v1.1.0")
	if err == nil || !strings.Contains(out, "was not confirmed by this server's checksum database") {
		t.Errorf("go get = %v\n%s", err, out)
	}
	if code, _ := fetch(t, url+"/example.com/lib/@v/v1.0.0.zip"); code != http.StatusOK {
		t.Errorf("the other version: %d", code)
	}
}

func TestTamperedGoModIsRefusedByTheGoCommand(t *testing.T) {
	g := library(t)
	g.intercept(func(w http.ResponseWriter, r *http.Request) bool {
		evil := r.URL.Path == "/example.com/lib/@v/v1.1.0.mod"
		if evil {
			_, _ = w.Write([]byte("module example.com/lib\n\nrequire example.com/evil v1.0.0\n"))
		}
		return evil
	})
	p := newProxy(t, g.options(t))
	_, url := open(t, p, modproxy.Limits{})
	out, err := newGopher(t, p, url, app+"\nrequire example.com/lib v1.1.0\n").run(t.Context(), "mod", "download", "all")
	if err == nil || !strings.Contains(out, "SECURITY ERROR") {
		t.Errorf("go mod download = %v\n%s", err, out)
	}
}

func TestModulesThatTheDatabaseDoesNotKnow(t *testing.T) {
	g := library(t)
	g.add(t, "corp.example/secret", "v1.0.0", "", map[string]string{"s.go": "package s\n"})
	delete(g.sums, mv("corp.example/secret", "v1.0.0"))
	const path = "/corp.example/secret/@v/v1.0.0.zip"
	for _, tc := range []struct {
		name string
		set  func(*modproxy.Options)
		code int
	}{
		{"refused", func(*modproxy.Options) {}, http.StatusBadGateway},
		{"GONOSUMDB", func(o *modproxy.Options) { o.GONOSUMDB = "other.example, corp.example" }, http.StatusOK},
		{"GOSUMDB=off", func(o *modproxy.Options) { o.GOSUMDB = "off" }, http.StatusOK},
		{"GOPRIVATE", func(o *modproxy.Options) { o.GOPRIVATE = "corp.example/*" }, http.StatusForbidden},
		{"GOPRIVATE without GONOPROXY", func(o *modproxy.Options) { o.GOPRIVATE, o.GONOPROXY = "corp.example/*", "none" }, http.StatusOK},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := g.options(t)
			tc.set(&o)
			p := newProxy(t, o)
			_, url := open(t, p, modproxy.Limits{})
			before := g.times(path)
			if code, body := fetch(t, url+path); code != tc.code {
				t.Fatalf("%d %q, want %d", code, body, tc.code)
			}
			if asked := g.times(path) > before; asked != (tc.code != http.StatusForbidden) {
				t.Errorf("asked the module proxy: %v", asked)
			}
			if out, err := newGopher(t, p, url, app).run(t.Context(), "get", "corp.example/secret"); (err == nil) != (tc.code == http.StatusOK) {
				t.Errorf("go get = %v\n%s", err, out)
			}
		})
	}
}

func TestWhereTheDatabaseIs(t *testing.T) {
	g := library(t)
	noDatabase := func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, "/sumdb/") {
			http.NotFound(w, r)
			return true
		}
		return false
	}
	t.Run("behind the second proxy", func(t *testing.T) {
		first := newRegistry(t)
		first.intercept(noDatabase)
		o := g.options(t)
		o.GOPROXY = first.URL + "," + g.URL
		p := newProxy(t, o)
		_, url := open(t, p, modproxy.Limits{})
		newGopher(t, p, url, app).must(t, "get", "example.com/lib")
	})
	t.Run("at a URL of its own", func(t *testing.T) {
		g := library(t)
		g.intercept(noDatabase)
		o := g.options(t)
		o.GOSUMDB += " " + g.db.URL
		p := newProxy(t, o)
		_, url := open(t, p, modproxy.Limits{})
		newGopher(t, p, url, app).must(t, "get", "example.com/lib")
		if n := g.times("/sumdb/sums.invalid/supported"); n != 0 {
			t.Error("asked the module proxy for a database that has a URL")
		}
	})
	t.Run("found after an error", func(t *testing.T) {
		g := library(t)
		g.intercept(func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasPrefix(r.URL.Path, "/sumdb/") {
				http.Error(w, "not now", http.StatusForbidden)
				return true
			}
			return false
		})
		_, url := open(t, newProxy(t, g.options(t)), modproxy.Limits{})
		if code, body := fetch(t, url+"/example.com/lib/@v/v1.0.0.zip"); code != http.StatusBadGateway {
			t.Errorf("while it is away: %d %q", code, body)
		}
		if code, body := fetch(t, url+"/sumdb/sums.invalid/latest"); code != http.StatusForbidden || body != "not now\n" {
			t.Errorf("while it is away: %d %q", code, body)
		}
		g.intercept(nil)
		if code, body := fetch(t, url+"/example.com/lib/@v/v1.0.0.zip"); code != http.StatusOK {
			t.Errorf("when it is back: %d %q", code, body)
		}
	})
}

func TestFallback(t *testing.T) {
	answering := func(code int) *registry {
		g := newRegistry(t)
		g.intercept(func(w http.ResponseWriter, r *http.Request) bool {
			http.Error(w, "first", code)
			return true
		})
		return g
	}
	gone, missing, forbidden, bad := answering(http.StatusGone), answering(http.StatusNotFound), answering(http.StatusForbidden), answering(http.StatusBadRequest)
	dead := newRegistry(t)
	dead.Close()
	g := library(t)
	for _, tc := range []struct {
		name, goproxy string
		code          int
		body          string // "" for the file
	}{
		{"404,", missing.URL + "," + g.URL, 200, ""},
		{"410,", gone.URL + "," + g.URL, 200, ""},
		{"403,", forbidden.URL + "," + g.URL, 403, "first\n"},
		{"400,", bad.URL + "," + g.URL, 400, "first\n"},
		{"403|", forbidden.URL + "|" + g.URL, 200, ""},
		{"dead|", dead.URL + "|" + g.URL, 200, ""},
		{"dead,", dead.URL + "," + g.URL, 502, "this server's module proxy has no answer to example.com/lib/@v/v1.1.0.mod now; the server's own log says why\n"},
		{"403|404", forbidden.URL + "|" + missing.URL, 403, "first\n"},
		{"404,403", missing.URL + "," + forbidden.URL, 403, "first\n"},
		{"404,410", missing.URL + "," + gone.URL, 404, "first\n"},
		{"404,direct", missing.URL + ",direct", 404, "first\n"},
		{"after direct", missing.URL + ",direct," + g.URL, 404, "first\n"},
		{"404,off", missing.URL + ",off", 404, "first\n"},
		{"off", "off", 404, "module lookup disabled by GOPROXY=off\n"},
		{"after off", "off," + g.URL, 404, "module lookup disabled by GOPROXY=off\n"},
		{"spaces and empty entries", " , " + missing.URL + " ,, " + g.URL + " ,", 200, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			_, url := open(t, newProxy(t, modproxy.Options{GOPROXY: tc.goproxy, GOSUMDB: "off", Dir: t.TempDir()}), modproxy.Limits{})
			code, body := fetch(t, url+"/example.com/lib/@v/v1.1.0.mod")
			want := tc.body
			if tc.code == 200 {
				want = g.releases[mv("example.com/lib", "v1.1.0")].mod
			}
			if code != tc.code || body != want {
				t.Errorf("%d %q, want %d %q", code, body, tc.code, want)
			}
			if tc.code != 502 { // goproxy's ten attempts take seconds
				for _, name := range []string{"@v/v1.1.0.zip", "@v/list", "@latest", "@v/main.info"} {
					if code, body := fetch(t, url+"/example.com/lib/"+name); code != tc.code {
						t.Errorf("%s: %d %q, want %d", name, code, body, tc.code)
					}
				}
			}
		})
	}
}

func TestFileProxy(t *testing.T) {
	g := library(t)
	p := newProxy(t, g.options(t))
	_, url := open(t, p, modproxy.Limits{})
	gopher := newGopher(t, p, url, app)
	gopher.must(t, "get", "example.com/lib@v1.1.0")

	dir := filepath.Join(filepath.Dir(gopher.dir), "mod", "cache", "download")
	p = newProxy(t, modproxy.Options{GOPROXY: "file://" + dir, GOSUMDB: "off", Dir: t.TempDir()})
	_, url = open(t, p, modproxy.Limits{})
	newGopher(t, p, url, gopher.read(t, "go.mod")).must(t, "mod", "download")

	g.intercept(func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, "file://"+filepath.Join(gopher.dir, "go.mod"), http.StatusFound)
		return true
	})
	_, url = open(t, newProxy(t, g.options(t)), modproxy.Limits{})
	if code, body := fetch(t, url+"/example.com/lib/@v/v1.1.0.mod"); code == http.StatusOK {
		t.Errorf("a module proxy may send the server to its own files: %q", body)
	}
}

// The go command looks for the module of a package from the longest path to the shortest.
func TestParentPaths(t *testing.T) {
	for _, code := range []int{http.StatusNotFound, http.StatusGone, http.StatusForbidden} {
		t.Run(http.StatusText(code), func(t *testing.T) {
			g := library(t)
			g.intercept(func(w http.ResponseWriter, r *http.Request) bool {
				probe := !strings.HasPrefix(r.URL.Path, "/sumdb/") && !strings.HasPrefix(r.URL.Path, "/example.com/lib/@") && !strings.HasPrefix(r.URL.Path, "/example.com/!dep/@")
				if probe {
					http.Error(w, "no such module", code)
				}
				return probe
			})
			p := newProxy(t, g.options(t))
			d, url := open(t, p, modproxy.Limits{})
			_, direct := newGopher(t, p, g.URL, app).run(t.Context(), "get", "example.com/lib/sub")
			out, through := newGopher(t, p, url, app).run(t.Context(), "get", "example.com/lib/sub")
			if (direct == nil) != (through == nil) {
				t.Errorf("go get = %v directly and %v through the door\n%s", direct, through, out)
			}
			want := code
			if code == http.StatusGone {
				want = http.StatusNotFound
			}
			if got, body := fetch(t, url+"/example.com/lib/sub/@v/list"); got != want || body != "no such module\n" {
				t.Errorf("%d %q, want %d", got, body, want)
			}
			if s := d.Stats(); s.Blocked != 0 {
				t.Errorf("Stats = %+v", s)
			}
		})
	}
}

func TestCredentials(t *testing.T) {
	const user, password = "robot", "s3cret-w0rd"
	seen := func(r *http.Request) string { return r.Header.Get("Authorization") }
	other := newRegistry(t) // a stranger, to whom the proxy redirects
	leaked := ""
	other.intercept(func(w http.ResponseWriter, r *http.Request) bool {
		leaked += seen(r)
		return false
	})
	other.add(t, "example.com/moved", "v1.0.0", "", nil)
	g := library(t)
	g.intercept(func(w http.ResponseWriter, r *http.Request) bool {
		u, p, _ := r.BasicAuth()
		switch {
		case u != user || p != password:
			http.Error(w, "who are you?", http.StatusUnauthorized)
		case strings.HasPrefix(r.URL.Path, "/example.com/chatty/"):
			http.Error(w, "denied for "+u+":"+p+" "+seen(r), http.StatusForbidden)
		case strings.HasPrefix(r.URL.Path, "/example.com/missing/"):
			http.Error(w, "nothing for "+u+":"+p+" "+seen(r), http.StatusNotFound)
		case strings.HasPrefix(r.URL.Path, "/example.com/broken/"):
			http.Error(w, "broken for "+u+":"+p+" "+seen(r), http.StatusBadGateway)
		case strings.HasPrefix(r.URL.Path, "/example.com/moved/"):
			http.Redirect(w, r, other.URL+r.URL.Path, http.StatusFound)
		default:
			return false
		}
		return true
	})
	var log bytes.Buffer
	withUser := func(raw string) string {
		u, _ := url.Parse(raw)
		u.User = url.UserPassword(user, password)
		return u.String()
	}
	o := g.options(t)
	o.GOPROXY, o.Log = withUser(g.URL), slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	p := newProxy(t, o)
	d, door := open(t, p, modproxy.Limits{})
	var said strings.Builder
	for path, want := range map[string]int{
		"/example.com/lib/@v/v1.1.0.zip":     200,
		"/example.com/moved/@v/v1.0.0.mod":   200,
		"/example.com/chatty/@v/v1.0.0.mod":  403,
		"/example.com/chatty/@v/v1.0.0.zip":  403,
		"/example.com/missing/@v/list":       404,
		"/example.com/missing/@v/v1.0.0.mod": 404,
		"/example.com/broken/@v/v1.0.0.mod":  502,
	} {
		code, body := fetch(t, door+path)
		if code != want {
			t.Errorf("%s: %d %q, want %d", path, code, body, want)
		}
		if want != 200 {
			said.WriteString(body)
		}
	}

	o.GOPROXY, o.Dir = strings.Replace(withUser(g.URL), password, "wrong-"+password, 1), t.TempDir()
	_, door = open(t, newProxy(t, o), modproxy.Limits{})
	code, body := fetch(t, door+"/example.com/lib/@v/v1.1.0.mod")
	if code != http.StatusBadGateway {
		t.Errorf("with a wrong password: %d %q, want 502: it is not the build that should log in", code, body)
	}
	said.WriteString(body)

	for _, bad := range []string{"://" + user + ":" + password + "@x", "ftp://" + user + ":" + password + "@x", "http://" + user + ":" + password + "@%zz", user + ":" + password} {
		_, err := modproxy.New(modproxy.Options{GOPROXY: bad, GOSUMDB: "off", Dir: t.TempDir()})
		if err == nil {
			t.Errorf("New takes %q", bad)
			continue
		}
		said.WriteString(err.Error())
	}
	d.Close()
	for what, text := range map[string]string{"an answer or error": said.String(), "the log": log.String(), "another host": leaked} {
		for _, secret := range []string{password, "cm9ib3Q6czNjcmV0LXcwcmQ"} {
			if strings.Contains(text, secret) {
				t.Errorf("%s holds the credentials:\n%s", what, text)
			}
		}
	}
	if !strings.Contains(log.String(), "broken") || !strings.Contains(said.String(), "denied for ") {
		t.Errorf("the errors are not there at all:\n%s\n%s", log.String(), said.String())
	}
}

func TestCredentialsBelongToAPath(t *testing.T) {
	var mu sync.Mutex
	got := map[string]string{} // password by path
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, password, _ := r.BasicAuth()
		mu.Lock()
		got[r.URL.Path] = password
		mu.Unlock()
		if r.URL.Path == "/second/example.com/m/@v/v1.0.0.mod" {
			http.Redirect(w, r, "/public", http.StatusFound)
			return
		}
		http.NotFound(w, r)
	}))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	p := newProxy(t, modproxy.Options{GOPROXY: "http://a:one@" + host + "/first,http://b:two@" + host + "/second/", GOSUMDB: "off", Dir: t.TempDir()})
	_, door := open(t, p, modproxy.Limits{})
	fetch(t, door+"/example.com/m/@v/v1.0.0.mod")
	want := map[string]string{"/first/example.com/m/@v/v1.0.0.mod": "one", "/second/example.com/m/@v/v1.0.0.mod": "two", "/public": ""}
	if !maps.Equal(got, want) {
		t.Errorf("passwords by path: %q, want %q", got, want)
	}
}

func TestSettings(t *testing.T) {
	for _, o := range []modproxy.Options{
		{GOPROXY: "direct"},
		{GOPROXY: ",|"},
		{GOPROXY: "proxy.example.org"},
		{GOPROXY: "/srv/proxy"},
		{GOPROXY: "off", GOSUMDB: "no.such.database.example"},
		{GOPROXY: "off", GOSUMDB: "sums.invalid+12345678+notakey"},
		{GOPROXY: "off", GOSUMDB: "a b c"},
	} {
		o.Dir = t.TempDir()
		if _, err := modproxy.New(o); err == nil {
			t.Errorf("New(GOPROXY %q, GOSUMDB %q) = nil error", o.GOPROXY, o.GOSUMDB)
		} else {
			t.Log(err)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := modproxy.New(modproxy.Options{Dir: file}); err == nil {
		t.Error("New takes a file for its directory")
	}
	p := newProxy(t, modproxy.Options{Dir: t.TempDir()})
	if env := strings.Join(p.Env(), " "); strings.Contains(env, "off") || strings.Contains(env, "GOSUMDB= ") {
		t.Errorf("Env = %s: the default checks nothing", env)
	}
}
