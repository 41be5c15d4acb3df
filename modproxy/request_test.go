package modproxy

import (
	"net/url"
	"path"
	"strings"
	"testing"

	"golang.org/x/mod/module"
)

const testDB = "sum.example.org"

func TestParse(t *testing.T) {
	for name, want := range map[string]kind{
		"/example.com/m/@v/list":                                            kindList,
		"/example.com/m/@latest":                                            kindLatest,
		"/example.com/m/@v/main.info":                                       kindQuery,
		"/example.com/m/@v/v1.info":                                         kindQuery,
		"/example.com/m/@v/v1.2.3.info":                                     kindInfo,
		"/github.com/!burnt!sushi/toml/@v/v1.2.3.mod":                       kindMod,
		"/gopkg.in/yaml.v3/@v/v3.0.1.zip":                                   kindZip,
		"/example.com/m/@v/v2.0.0+incompatible.zip":                         kindZip,
		"/example.com/m/v2/@v/v2.0.0-20260101000000-0123456789ab.zip":       kindZip,
		"/golang.org/toolchain/@v/v0.0.1-go1.26.8.linux-amd64.zip":          kindZip,
		"/sumdb/sum.example.org/supported":                                  kindSupported,
		"/sumdb/sum.example.org/latest":                                     kindSigned,
		"/sumdb/sum.example.org/lookup/github.com/!burnt!sushi/toml@v1.2.3": kindLookup,
		"/sumdb/sum.example.org/tile/8/0/x001/234.p/17":                     kindTile,
	} {
		if q, err := parse(name, testDB); err != nil || q.kind != want || "/"+q.name != name {
			t.Errorf("parse(%q) = %+v, %v; want kind %d", name, q, err, want)
		}
	}
}

func TestParseBlocks(t *testing.T) {
	for _, name := range []string{
		"", "/", "//", "/x", "x", "/favicon.ico", "/metrics", "/../etc/passwd",
		"/example.com/m", "/example.com/m/@v/", "/example.com/m/@v", "/example.com/m/@v/list/", "/example.com/m/@v/x/list",
		"/example.com/m/@v/v1.0.0.ziphash", "/example.com/m/@v/v1.0.0.lock", "/example.com/m/@v/v1.0.0", "/example.com/m/@v/.info",
		"/example.com/m/@v/v1.zip", "/example.com/m/@v/main.mod", "/example.com/m/@v/v2.0.0.zip", // not canonical, no such major version
		"/example.com/../m/@v/list", "/example.com//m/@v/list", "/example.com/./m/@v/list", "/localhost/m/@v/list", "/.com/m/@v/list",
		"/example.com/M/@v/list", "/example.com/!M/@v/list", "/example.com/m!/@v/list", // escapes that the protocol does not make
		"/example.com:80/m/@v/list", "/user@example.com/m/@v/list", "/example.com/m/@v/a b.info", "/example.com/m/@v/a%2fb.info", "/example.com/m/@v/%2e%2e%2fx.info",
		"/example.com/m/@v/..info", "/example.com/m/@v/../../x.info", "/example.com/mé/@v/list", "/example.com/m\x00/@v/list", "/example.com/m\n/@v/list",
		"/sumdb/", "/sumdb/other.example.org/supported", "/sumdb/sum.example.org", "/sumdb/sum.example.org/", "/sumdb/sum.example.org/x",
		"/sumdb/sum.example.org/lookup/example.com/m", "/sumdb/sum.example.org/lookup/example.com/m@v1", "/sumdb/sum.example.org/lookup/example.com/m@v1.0.0/go.mod",
		"/sumdb/sum.example.org/tile/8/0/1", "/sumdb/sum.example.org/tile/8/0/x001/../234", "/sumdb/sum.example.org/../../x",
		"/example.com/" + strings.Repeat("m", maxPath) + "/@v/list",
	} {
		if q, err := parse(name, testDB); err == nil {
			t.Errorf("parse(%q) = %+v, want it blocked", name, q)
		}
	}
	if q, err := parse("/sumdb/sum.example.org/supported", ""); err == nil {
		t.Errorf("without a checksum database: %+v, want it blocked", q)
	}
}

// FuzzParse holds the filter to what it promises of everything it passes.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"/example.com/m/@v/list", "/github.com/!burnt!sushi/toml/@v/v1.2.3.zip", "/example.com/m/@v/main.info", "/example.com/m/@latest",
		"/sumdb/sum.example.org/lookup/example.com/m@v1.0.0", "/sumdb/sum.example.org/tile/8/data/x001/234.p/17", "/sumdb/sum.example.org/latest",
		"/example.com/../@v/list", "/example.com/m/@v/%2e%2e.info", "http://example.com/", "/example.com/m/@v/v1.0.0.zip?x#y",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		q, err := parse(name, testDB)
		if err != nil {
			return
		}
		if "/"+q.name != name || len(name) > maxPath {
			t.Fatalf("%q passed as %q", name, q.name)
		}
		if path.Clean(name) != name {
			t.Errorf("%q is not a clean path", name)
		}
		u, err := url.Parse(name)
		if err != nil || u.Path != name || u.RawQuery != "" || u.Fragment != "" || u.Host != "" || u.EscapedPath() != name {
			t.Errorf("%q is not the same as a URL: %+v, %v", name, u, err)
		}
		if base, _ := url.Parse("https://up.example/dir"); base.JoinPath(q.name).Path != "/dir"+name {
			t.Errorf("%q leaves its upstream: %v", name, base.JoinPath(q.name))
		}
		switch q.kind {
		case kindSupported, kindSigned, kindLookup, kindTile:
			if name != "/sumdb/"+testDB+"/"+q.rest || q.path != "" {
				t.Errorf("%q passed as the database's %q", name, q.rest)
			}
			return
		case kindMod, kindZip, kindInfo:
			if err := module.Check(q.path, q.version); err != nil {
				t.Errorf("%q passed: %v", name, err)
			}
		}
		if escaped, err := module.EscapePath(q.path); err != nil || !strings.HasPrefix(name, "/"+escaped+"/@") {
			t.Errorf("%q passed as module %q: %v", name, q.path, err)
		}
	})
}

func TestDefaultsOfTheLibrary(t *testing.T) {
	proxy, sumdb, err := defaults(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if proxy.Scheme != "https" || proxy.Host == "" || strings.Trim(proxy.Path, "/") != "" {
		t.Errorf("default module proxy = %v", proxy)
	}
	if !recognized(sumdb) {
		t.Errorf("goproxy does not know its own default database %q", sumdb)
	}
	if recognized("nobody.example.org") {
		t.Error("goproxy is said to know a database that does not exist")
	}
}
