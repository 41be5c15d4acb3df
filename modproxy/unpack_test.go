package modproxy

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
)

// zipOf packs name, content pairs.
func zipOf(t *testing.T, pairs ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i := 0; i < len(pairs); i += 2 {
		w, err := z.Create(pairs[i])
		if err == nil {
			_, err = w.Write([]byte(pairs[i+1]))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func open(t *testing.T, content []byte) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "m.zip")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestUnpack(t *testing.T) {
	m := module.Version{Path: "example.com/m", Version: "v1.0.0"}
	const p = "example.com/m@v1.0.0/"
	f := open(t, zipOf(t, p+"z.go", "package m\n", p+"go.mod", "module example.com/m\n", p+"a/b/c.go", strings.Repeat("c", 100_000), p+"a.go", ""))
	dir := t.TempDir()
	sum, size, err := unpack(t.Context(), m, f, dir)
	if err != nil {
		t.Fatal(err)
	}
	if want := int64(2*4096 + 102_400 + 3*4096); size != want {
		t.Errorf("size = %d, want %d", size, want)
	}
	for name, hash := range map[string]func() (string, error){
		"directory": func() (string, error) { return dirhash.HashDir(dir, m.String(), dirhash.Hash1) },
		"zip":       func() (string, error) { return dirhash.HashZip(f.Name(), dirhash.Hash1) },
	} {
		if want, err := hash(); err != nil || h1(sum) != want {
			t.Errorf("%s has %s, %v; got %s", name, want, err, h1(sum))
		}
	}
	fi, err := os.Stat(filepath.Join(dir, "a/b/c.go"))
	if err != nil || fi.Mode() != 0o444 || fi.Size() != 100_000 {
		t.Errorf("%v, %v", fi, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := unpack(ctx, m, f, t.TempDir()); !errors.Is(err, context.Canceled) {
		t.Errorf("unpack = %v after the end", err)
	}
	if _, _, err := unpack(t.Context(), m, f, dir); !errors.Is(err, errCache) {
		t.Errorf("unpack = %v over what is there, want an error of the disk", err)
	}
}

func TestUnpackRefuses(t *testing.T) {
	m := module.Version{Path: "example.com/m", Version: "v1.0.0"}
	const p = "example.com/m@v1.0.0/"
	bomb := zipOf(t, p+"a.go", strings.Repeat("a", 1000))
	central := bytes.LastIndex(bomb, []byte("PK\x01\x02"))
	binary.LittleEndian.PutUint32(bomb[central+24:], 10) // says that it has 10 bytes
	var links bytes.Buffer
	z := zip.NewWriter(&links)
	h := &zip.FileHeader{Name: p + "link"}
	h.SetMode(os.ModeSymlink | 0o777)
	if w, err := z.CreateHeader(h); err != nil {
		t.Fatal(err)
	} else if _, err := w.Write([]byte("/etc/passwd")); err != nil {
		t.Fatal(err)
	}
	z.Close()
	for name, content := range map[string][]byte{
		"no zip":         []byte("PK"),
		"slip":           zipOf(t, p+"../../../x", "x"),
		"absolute":       zipOf(t, "/etc/x", "x"),
		"another module": zipOf(t, "example.com/n@v1.0.0/x", "x"),
		"backslash":      zipOf(t, p+`..\x`, "x"),
		"case clash":     zipOf(t, p+"a.go", "x", p+"A.go", "x"),
		"twice":          zipOf(t, p+"a.go", "x", p+"a.go", "y"),
		"file and dir":   zipOf(t, p+"a", "x", p+"a/b", "y"),
		"newline":        zipOf(t, p+"a\nb", "x"),
		"device of DOS":  zipOf(t, p+"con", "x"),
		"long name":      zipOf(t, p+strings.Repeat("a", 251), "x"),
		"long path":      zipOf(t, p+strings.Repeat("a/", 600)+"x", "x"),
		"bomb":           bomb,
		"large go.mod":   zipOf(t, p+"go.mod", strings.Repeat("a", 16<<20+1)),
	} {
		parent := t.TempDir()
		dir := filepath.Join(parent, "dir")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		_, _, err := unpack(t.Context(), m, open(t, content), dir)
		if err == nil || errors.Is(err, errCache) {
			t.Errorf("%s: %v, want an error that is not the disk's", name, err)
		}
		if found, _ := filepath.Glob(filepath.Join(parent, "*")); len(found) != 1 {
			t.Errorf("%s: %q", name, found)
		}
	}
	dir := t.TempDir()
	if _, _, err := unpack(t.Context(), m, open(t, links.Bytes()), dir); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Lstat(filepath.Join(dir, "link")); err != nil || !fi.Mode().IsRegular() {
		t.Errorf("a link of the zip is %v, %v; want a file, as for the go command", fi.Mode(), err)
	}
}
