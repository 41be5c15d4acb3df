package modproxy_test

import (
	"archive/zip"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb"
	"golang.org/x/mod/sumdb/dirhash"
	"golang.org/x/mod/sumdb/note"

	"github.com/monochromegane/cargo/modproxy"
)

// A release is one version of a module.
type release struct {
	mod string
	zip []byte
}

// A registry is a module proxy and its checksum database, made of modules
// that were packed here.
type registry struct {
	*httptest.Server
	GOSUMDB string // its database's key

	db *httptest.Server // the database on its own address

	mu       sync.Mutex
	releases map[module.Version]release
	sums     map[module.Version]string // what the database says
	asked    []string                  // paths, in order
	// front, if set, may answer in place of the registry.
	front func(w http.ResponseWriter, r *http.Request) (done bool)
}

func newRegistry(t *testing.T) *registry {
	t.Helper()
	g := &registry{releases: map[module.Version]release{}, sums: map[module.Version]string{}}
	skey, vkey, err := note.GenerateKey(nil, "sums.invalid")
	if err != nil {
		t.Fatal(err)
	}
	g.GOSUMDB = vkey
	db := sumdb.NewServer(sumdb.NewTestServer(skey, g.gosum))
	g.db = httptest.NewServer(db)
	t.Cleanup(g.db.Close)
	g.Server = httptest.NewServer(g.handler(http.StripPrefix("/sumdb/sums.invalid", db)))
	t.Cleanup(g.Close)
	return g
}

func (g *registry) gosum(path, version string) ([]byte, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s, ok := g.sums[module.Version{Path: path, Version: version}]; ok {
		return []byte(s), nil
	}
	return nil, fs.ErrNotExist
}

// add packs a module whose go.mod begins with its name and goes on with rest.
func (g *registry) add(t *testing.T, path, version, rest string, files map[string]string) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	m := module.Version{Path: path, Version: version}
	mod := "module " + path + "\n\ngo 1.21\n" + rest
	r := release{mod: mod, zip: pack(t, m, mod, files)}
	g.releases[m] = r
	file := filepath.Join(t.TempDir(), "m.zip")
	if err := os.WriteFile(file, r.zip, 0o600); err != nil {
		t.Fatal(err)
	}
	zipSum, err := dirhash.HashZip(file, dirhash.Hash1)
	if err != nil {
		t.Fatal(err)
	}
	modSum, err := dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(mod)), nil })
	if err != nil {
		t.Fatal(err)
	}
	g.sums[m] = fmt.Sprintf("%s %s %s\n%s %s/go.mod %s\n", path, version, zipSum, path, version, modSum)
}

// tamper replaces what the proxy has of a module, but not what the database says.
func (g *registry) tamper(t *testing.T, path, version string, files map[string]string) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	m := module.Version{Path: path, Version: version}
	r := g.releases[m]
	r.zip = pack(t, m, r.mod, files)
	g.releases[m] = r
}

// pack makes a module zip (https://go.dev/ref/mod#zip-files), not compressed.
func pack(t *testing.T, m module.Version, mod string, files map[string]string) []byte {
	t.Helper()
	all := maps.Clone(files)
	if all == nil {
		all = map[string]string{}
	}
	all["go.mod"] = mod
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		w, err := z.CreateHeader(&zip.FileHeader{Name: m.String() + "/" + name, Method: zip.Store})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, all[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (g *registry) handler(db http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		g.asked = append(g.asked, r.URL.Path)
		front := g.front
		g.mu.Unlock()
		switch {
		case front != nil && front(w, r):
		case r.URL.Path == "/sumdb/sums.invalid/supported":
		case strings.HasPrefix(r.URL.Path, "/sumdb/sums.invalid/"):
			db.ServeHTTP(w, r)
		default:
			g.serveModule(w, r)
		}
	})
}

func (g *registry) serveModule(w http.ResponseWriter, r *http.Request) {
	escaped, what, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/@")
	path, err := module.UnescapePath(escaped)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	var versions []string
	for m := range g.releases {
		if m.Path == path {
			versions = append(versions, m.Version)
		}
	}
	slices.Sort(versions)
	if len(versions) == 0 {
		http.Error(w, "not found: no module "+path+" here", http.StatusNotFound)
		return
	}
	last := versions[len(versions)-1]
	name := strings.TrimPrefix(what, "v/")
	switch ext := filepath.Ext(name); {
	case what == "v/list":
		_, _ = io.WriteString(w, strings.Join(versions, "\n")+"\n")
	case what == "latest" || name == "main.info":
		fmt.Fprintf(w, `{"Version":%q,"Time":"2026-01-02T03:04:05Z"}`, last)
	default:
		version, err := module.UnescapeVersion(strings.TrimSuffix(name, ext))
		rel, ok := g.releases[module.Version{Path: path, Version: version}]
		switch {
		case err != nil || !ok:
			http.Error(w, "not found: no version "+version, http.StatusNotFound)
		case ext == ".info":
			fmt.Fprintf(w, `{"Version":%q,"Time":"2026-01-02T03:04:05Z"}`, version)
		case ext == ".mod":
			_, _ = io.WriteString(w, rel.mod)
		case ext == ".zip":
			_, _ = w.Write(rel.zip)
		}
	}
}

// intercept makes front answer first.
func (g *registry) intercept(front func(w http.ResponseWriter, r *http.Request) bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.front = front
}

// times counts the requests for path so far.
func (g *registry) times(path string) (n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, a := range g.asked {
		if a == path {
			n++
		}
	}
	return n
}

// options are what a Proxy over g needs.
func (g *registry) options(t *testing.T) modproxy.Options {
	return modproxy.Options{GOPROXY: g.URL, GOSUMDB: g.GOSUMDB, Dir: t.TempDir()}
}

func newProxy(t *testing.T, o modproxy.Options) *modproxy.Proxy {
	t.Helper()
	p, err := modproxy.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// open serves a new door of p on loopback until the test ends.
func open(t *testing.T, p *modproxy.Proxy, l modproxy.Limits) (*modproxy.Door, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := p.Door(l)
	served := make(chan error, 1)
	go func() { served <- d.Serve(ln) }()
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
		if err := <-served; err != http.ErrServerClosed {
			t.Errorf("Serve = %v, want %v", err, http.ErrServerClosed)
		}
	})
	return d, "http://" + ln.Addr().String()
}

// fetch is what a build would see of one file.
func fetch(t *testing.T, url string) (code int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("GET %s: %v", url, err)
	}
	return resp.StatusCode, string(b)
}

// A gopher is a directory with a module in it and the real go command, which
// reaches nothing but one door.
type gopher struct {
	dir string
	env []string
}

func newGopher(t *testing.T, p *modproxy.Proxy, door string, gomod string) *gopher {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		t.Fatal("the tests need the go command: ", err)
	}
	dir := t.TempDir()
	g := &gopher{dir: filepath.Join(dir, "app")}
	g.write(t, "go.mod", gomod)
	g.write(t, "../config/go/telemetry/mode", "off") // else a process may stay behind and write there
	g.env = append(os.Environ(),
		"HOME="+dir, "XDG_CONFIG_HOME="+filepath.Join(dir, "config"), "GOENV=off", "GOPATH="+filepath.Join(dir, "path"), "GOMODCACHE="+filepath.Join(dir, "mod"), "GOTOOLCHAIN=local", "GOWORK=off",
		"GOFLAGS=-modcacherw -mod=mod", "GOPRIVATE=", "GONOPROXY=", "GOVCS=*:off", "GO111MODULE=on", "HTTP_PROXY=", "HTTPS_PROXY=",
		"GOPROXY="+door)
	g.env = append(g.env, p.Env()...)
	return g
}

func (g *gopher) write(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join(g.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (g *gopher) read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(g.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// run returns the output of `go args...`.
func (g *gopher) run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir, cmd.Env = g.dir, g.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (g *gopher) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := g.run(t.Context(), args...)
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}
