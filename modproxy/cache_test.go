package modproxy_test

import (
	"bytes"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/monochromegane/cargo/modproxy"
)

// sized fills a registry with modules whose go.mod files have 10 kB each.
func sized(t *testing.T, names ...string) *registry {
	g := newRegistry(t)
	for _, n := range names {
		g.add(t, "example.com/"+n, "v1.0.0", "// "+strings.Repeat(n, 10_000-len("module example.com/x\n\ngo 1.21\n// \n"))+"\n", nil)
	}
	return g
}

func goMod(name string) string { return "/example.com/" + name + "/@v/v1.0.0.mod" }

// kept asks for the go.mod of each and says which of them the upstream was not asked for.
func kept(t *testing.T, g *registry, door string, names string) (hits string) {
	t.Helper()
	for _, n := range strings.Split(names, "") {
		before := g.times(goMod(n))
		if code, body := fetch(t, door+goMod(n)); code != http.StatusOK || len(body) != 10_000 {
			t.Fatalf("%s: %d and %d bytes", n, code, len(body))
		}
		if g.times(goMod(n)) == before {
			hits += n
		}
	}
	return hits
}

func TestCacheForgetsWhatWasUsedLeast(t *testing.T) {
	g := sized(t, "a", "b", "c", "d")
	o := g.options(t)
	o.CacheLimit = 40_000 // each takes three blocks of 4096 bytes
	_, url := open(t, newProxy(t, o), modproxy.Limits{})
	if hits := kept(t, g, url, "abcbad"); hits != "ba" { // c goes for d
		t.Errorf("kept %q, want ba", hits)
	}
	if hits := kept(t, g, url, "abdc"); hits != "abd" {
		t.Errorf("kept %q, want abd", hits)
	}
	if size := used(t, o.Dir); size != 30_000 {
		t.Errorf("%d bytes on disk, want 30000", size)
	}
}

func TestCacheKnowsItsOrderAfterARestart(t *testing.T) {
	g := sized(t, "a", "b")
	o := g.options(t)
	_, url := open(t, newProxy(t, o), modproxy.Limits{})
	age := func(d time.Duration) {
		for _, f := range files(t, o.Dir) {
			if old := time.Now().Add(-d); modTime(t, f).After(old) {
				if err := os.Chtimes(f, old, old); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	kept(t, g, url, "a")
	age(3 * time.Hour)
	kept(t, g, url, "b")
	age(2 * time.Hour)
	_, url = open(t, newProxy(t, o), modproxy.Limits{})
	if hits := kept(t, g, url, "a"); hits != "a" { // now used last
		t.Error("a was not kept over the restart")
	}
	o.CacheLimit = 15_000
	_, url = open(t, newProxy(t, o), modproxy.Limits{})
	if hits := kept(t, g, url, "ab"); hits != "a" {
		t.Errorf("kept %q, want a", hits)
	}
}

func TestCacheDropsWhatIsSpoilt(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"changed": func(p string) error {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			b[len(b)/2] ^= 1
			return os.WriteFile(p, b, 0o600)
		},
		"torn":  func(p string) error { return os.Truncate(p, 4096) },
		"empty": func(p string) error { return os.Truncate(p, 0) },
		"lost":  os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			g := sized(t, "a")
			o := g.options(t)
			p := newProxy(t, o)
			_, url := open(t, p, modproxy.Limits{})
			for _, restart := range []bool{false, true} {
				kept(t, g, url, "a")
				for _, f := range files(t, o.Dir) {
					if err := spoil(f); err != nil {
						t.Fatal(err)
					}
				}
				if restart {
					_, url = open(t, newProxy(t, o), modproxy.Limits{})
				}
				if hits := kept(t, g, url, "aa"); hits != "a" {
					t.Errorf("restart %v: %q came from the cache, want the second of two", restart, hits)
				}
			}
		})
	}
}

func TestCacheStartsOverWhatItDoesNotKnow(t *testing.T) {
	g := sized(t, "a")
	o := g.options(t)
	for _, f := range []string{"entries/aa/stray", "entries/zz", "tmp/goproxy.tmp.1/x"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(o.Dir, f)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(o.Dir, f), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, url := open(t, newProxy(t, o), modproxy.Limits{})
	kept(t, g, url, "a")
	if size := used(t, o.Dir); size != 10_000 {
		t.Errorf("%d bytes on disk, want 10000", size)
	}
}

func TestCacheServesMoreThanItKeeps(t *testing.T) {
	g := newRegistry(t)
	noise := make([]byte, 8<<20)
	r := rand.NewChaCha8([32]byte{})
	_, _ = r.Read(noise)
	g.add(t, "example.com/big", "v1.0.0", "", map[string]string{"noise": string(noise)})
	g.add(t, "example.com/other", "v1.0.0", "", nil)
	o := g.options(t)
	o.CacheLimit = 1 << 20
	_, url := open(t, newProxy(t, o), modproxy.Limits{})
	resp, err := http.Get(url + "/example.com/big/@v/v1.0.0.zip")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	fetch(t, url+"/example.com/other/@v/v1.0.0.zip") // evicts the big one while it is being read
	if size := used(t, o.Dir); size > 1<<20 {
		t.Errorf("%d bytes on disk", size)
	}
	body, err := io.ReadAll(resp.Body)
	if want := g.releases[mv("example.com/big", "v1.0.0")].zip; err != nil || !bytes.Equal(body, want) {
		t.Errorf("%d bytes, %v; want %d", len(body), err, len(want))
	}
}

func files(t *testing.T, dir string) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func used(t *testing.T, dir string) (n int64) {
	t.Helper()
	for _, f := range files(t, dir) {
		fi, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		n += fi.Size()
	}
	return n
}

func modTime(t *testing.T, path string) time.Time {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.ModTime()
}
