package cache_test

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/monochromegane/cargo/cache"
)

func open(t testing.TB, o cache.Options) *cache.Cache {
	t.Helper()
	c, err := cache.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// An upper is what a build leaves.
type upper string

func newUpper(t testing.TB) upper {
	t.Helper()
	return upper(t.TempDir())
}

// path returns where an entry lies, and makes its directory.
func (u upper) path(t testing.TB, id [sha256.Size]byte, kind string) string {
	t.Helper()
	dir := filepath.Join(string(u), fmt.Sprintf("%02x", id[0]))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, fmt.Sprintf("%x-%s", id, kind))
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func action(name string) [sha256.Size]byte { return sha256.Sum256([]byte("action " + name)) }

func entryText(action, output [sha256.Size]byte, size int) string {
	return fmt.Sprintf("v1 %x %x %20d %20d\n", action, output, size, 1)
}

// put is what the go command does.
func (u upper) put(t testing.TB, name, output string) {
	t.Helper()
	sum := sha256.Sum256([]byte(output))
	write(t, u.path(t, sum, "d"), output)
	write(t, u.path(t, action(name), "a"), entryText(action(name), sum, len(output)))
}

// build leaves one entry for each name.
func build(t testing.TB, c *cache.Cache, class cache.Class, names ...string) cache.Sealed {
	t.Helper()
	u := newUpper(t)
	for _, name := range names {
		u.put(t, name, "output of "+name)
	}
	sealed, err := c.Append(t.Context(), class, string(u))
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func lease(t testing.TB, c *cache.Cache, classes ...cache.Class) *cache.Lease {
	t.Helper()
	l, err := c.Lease(classes...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Release)
	return l
}

// get looks an action up as the go command does in an overlay of layers.
func get(layers []string, name string) (output string, ok bool) {
	find := func(id [sha256.Size]byte, kind string) ([]byte, bool) {
		for _, dir := range layers {
			text, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("%02x", id[0]), fmt.Sprintf("%x-%s", id, kind)))
			if err == nil {
				return text, true
			}
		}
		return nil, false
	}
	text, ok := find(action(name), "a")
	if !ok {
		return "", false
	}
	var a, d []byte
	var size, when int
	if _, err := fmt.Sscanf(string(text), "v1 %x %x %d %d\n", &a, &d, &size, &when); err != nil {
		return "", false
	}
	data, ok := find([sha256.Size]byte(d), "d")
	return string(data), ok && len(data) == size
}

func classes(t testing.TB, c *cache.Cache) (names []string) {
	t.Helper()
	infos, err := c.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range infos {
		names = append(names, strings.TrimSpace(string(i.Kind)+" "+i.Repository))
	}
	return names
}

// checkWhole fails the test where something listed is not whole, or something
// lies in the directory that is not listed.
func checkWhole(t testing.TB, dir string) (layers int) {
	t.Helper()
	var listed []string
	lists, _ := filepath.Glob(filepath.Join(dir, "classes", "*"))
	for _, name := range lists {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var l struct{ Layers []struct{ ID string } }
		if err := json.Unmarshal(text, &l); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, a := range l.Layers {
			listed = append(listed, a.ID)
		}
	}
	there := names(t, filepath.Join(dir, "layers"))
	slices.Sort(listed)
	if !slices.Equal(listed, there) {
		t.Fatalf("listed: %v, on disk: %v", listed, there)
	}
	if left := names(t, filepath.Join(dir, "tmp")); len(left) > 0 {
		t.Fatalf("left in tmp: %v", left)
	}
	for _, id := range there {
		checkLayer(t, filepath.Join(dir, "layers", id))
	}
	return len(there)
}

func names(t testing.TB, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func checkLayer(t testing.TB, dir string) {
	t.Helper()
	outputs := map[string]bool{}
	for _, kind := range []string{"-d", "-a"} {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || !strings.HasSuffix(path, kind) {
				return err
			}
			name := strings.TrimSuffix(e.Name(), kind)
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if kind == "-d" {
				if sum := fmt.Sprintf("%x", sha256.Sum256(text)); sum != name {
					t.Errorf("%s holds %s", path, sum)
				}
				outputs[name] = true
			} else if !strings.HasPrefix(string(text), "v1 "+name+" ") || !outputs[string(text[68:132])] {
				t.Errorf("%s: %q without its output", path, text)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

var (
	linux  = cache.Platform{GOOS: "linux", GOARCH: "amd64"}
	std    = cache.Standard("go1.26.8", linux)
	shared = cache.Work{Toolchain: "go1.26.8", Platform: linux, Repository: "github.com/a/b", Public: true}.Appends()
)

func repository(name string) cache.Class {
	return cache.Work{Toolchain: "go1.26.8", Platform: linux, Repository: name, Public: true, RunsCode: true}.Appends()
}

func TestTrust(t *testing.T) {
	var all []cache.Work
	for _, toolchain := range []cache.Toolchain{"go1.26.8", "go1.25.1"} {
		for _, p := range []cache.Platform{linux, {GOOS: "linux", GOARCH: "amd64", Variant: "GOAMD64=v3"}, {GOOS: "linux", GOARCH: "amd64", Cgo: true}} {
			for _, repository := range []string{"github.com/a/b", "github.com/a/c"} {
				for i := range 8 {
					all = append(all, cache.Work{Toolchain: toolchain, Platform: p, Repository: repository, Public: i&1 > 0, RunsCode: i&2 > 0, Assembles: i&4 > 0})
				}
			}
		}
	}
	for _, w := range all {
		if !slices.Contains(w.Reads(), w.Appends()) {
			t.Errorf("%+v does not read what it appends", w)
		}
		for _, r := range all {
			if w.Appends() == cache.Standard(r.Toolchain, r.Platform) {
				t.Errorf("%+v may write the standard library of %v", w, r.Platform)
			}
			got := slices.Contains(r.Reads(), w.Appends())
			harmless := w.Public && !w.RunsCode && !w.Assembles
			same := w.Repository == r.Repository && w.Public == r.Public
			readsOwn := r.RunsCode || r.Assembles || !r.Public
			want := w.Toolchain == r.Toolchain && (harmless || same && readsOwn)
			if got != want {
				t.Errorf("%+v reads what %+v appended: %v, want %v", r, w, got, want)
			}
		}
		if got, want := w.Reads()[len(w.Reads())-1], cache.Standard(w.Toolchain, w.Platform); got != want {
			t.Errorf("%+v reads %v last, want %v", w, got, want)
		}
	}
}

func TestAppend(t *testing.T) {
	o := cache.Options{Dir: t.TempDir()}
	c := open(t, o)
	if c.Has(shared) {
		t.Error("a fresh cache has the shared class")
	}
	if l := lease(t, c, shared); len(l.Layers()) != 1 || len(names(t, l.Layers()[0])) != 257 {
		t.Errorf("layers of nothing: %v", l.Layers())
	}
	if got, want := build(t, c, shared, "fmt", "os"), (cache.Sealed{Files: 4, Bytes: 4 * 4096}); got != want {
		t.Errorf("sealed %+v, want %+v", got, want)
	}
	// Of what the class has, nothing is added.
	if got, want := build(t, c, shared, "fmt", "os"), (cache.Sealed{}); got != want {
		t.Errorf("sealed %+v, want %+v", got, want)
	}
	if got, want := build(t, c, shared, "fmt", "io"), (cache.Sealed{Files: 2, Bytes: 2 * 4096}); got != want {
		t.Errorf("sealed %+v, want %+v", got, want)
	}
	// A later process sees the same.
	c = open(t, o)
	l := lease(t, c, repository("github.com/a/b"), shared, std)
	for _, name := range []string{"fmt", "os", "io"} {
		if got, ok := get(l.Layers(), name); !ok || got != "output of "+name {
			t.Errorf("%s: %q, %v", name, got, ok)
		}
	}
	if got, want := c.Bytes(), int64(6*4096); got != want {
		t.Errorf("%d bytes, want %d", got, want)
	}
	checkWhole(t, o.Dir)
}

// A build does not write the output of an action if a layer beneath it has
// that output from another action. The layer must be complete all the same.
func TestLayersAreComplete(t *testing.T) {
	o := cache.Options{Dir: t.TempDir()}
	c := open(t, o)
	for _, class := range []cache.Class{std, shared, repository("github.com/x/y")} {
		u := newUpper(t)
		sum := sha256.Sum256([]byte("output of fmt"))
		if class == std {
			u.put(t, "fmt", "output of fmt")
		}
		name := "fmt in the " + class.String()
		write(t, u.path(t, action(name), "a"), entryText(action(name), sum, len("output of fmt")))
		if sealed, err := c.Append(t.Context(), class, string(u)); err != nil || sealed.Skipped != 0 {
			t.Fatal(sealed, err)
		}
	}
	if got := checkWhole(t, o.Dir); got != 3 {
		t.Errorf("%d layers, want 3", got)
	}
	// A private repository's output is out of everybody's reach.
	private := cache.Work{Toolchain: "go1.26.8", Repository: "github.com/x/private"}.Appends()
	build(t, c, private, "secret")
	u := newUpper(t)
	write(t, u.path(t, action("guess"), "a"), entryText(action("guess"), sha256.Sum256([]byte("output of secret")), len("output of secret")))
	sealed, err := c.Append(t.Context(), shared, string(u))
	if want := (cache.Sealed{Skipped: 1}); err != nil || sealed != want {
		t.Errorf("sealed %+v, %v; want %+v", sealed, err, want)
	}
}

// The output of an action can differ from one build to the next. The newest
// one counts.
func TestNewestEntryWins(t *testing.T) {
	o := cache.Options{Dir: t.TempDir()}
	c := open(t, o)
	for i := range 20 {
		u := newUpper(t)
		u.put(t, "test", fmt.Sprint("log ", i))
		if _, err := c.Append(t.Context(), shared, string(u)); err != nil {
			t.Fatal(err)
		}
		l := lease(t, c, shared)
		if got, _ := get(l.Layers(), "test"); got != fmt.Sprint("log ", i) {
			t.Errorf("after %d: %q", i, got)
		}
		l.Release()
	}
	c = open(t, o)
	checkWhole(t, o.Dir)
	checkBytes(t, c, o.Dir)
}

func TestPrime(t *testing.T) {
	u := newUpper(t)
	if err := open(t, cache.Options{Dir: t.TempDir()}).Prime(string(u)); err != nil {
		t.Fatal(err)
	}
	if got := names(t, string(u)); !slices.Equal(got, []string{"trim.txt"}) {
		t.Error(got)
	}
}

func BenchmarkAppend(b *testing.B) {
	u := newUpper(b)
	large := strings.Repeat("an object of a package ", 120_000/23)
	for i := range 500 {
		u.put(b, fmt.Sprint(i), fmt.Sprint(i, large))
	}
	c := open(b, cache.Options{Dir: b.TempDir()})
	b.SetBytes(500 * int64(len(large)))
	for i := 0; b.Loop(); i++ {
		sealed, err := c.Append(b.Context(), repository(fmt.Sprint(i)), string(u))
		if err != nil || sealed.Files != 1000 {
			b.Fatal(sealed, err)
		}
	}
}

func sum(text string) [sha256.Size]byte { return sha256.Sum256([]byte(text)) }
