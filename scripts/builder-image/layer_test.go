package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func sample() files {
	l := files{}
	l.bytes("usr/bin/git", 0o755, []byte("git"))
	l["usr/bin/aaa"] = file{kind: tar.TypeLink, mode: 0o755, link: "usr/bin/git"}
	l["usr/lib64/ld.so"] = file{kind: tar.TypeSymlink, mode: 0o777, link: "/lib/ld.so"}
	l.finish()
	return l
}

func TestLayerIsTheSameEveryTime(t *testing.T) {
	var blobs [2][]byte
	for i := range blobs {
		name := filepath.Join(t.TempDir(), "layer")
		if err := sample().write(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		blob, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		blobs[i] = blob
	}
	if !bytes.Equal(blobs[0], blobs[1]) {
		t.Error("two writes of one layer differ")
	}

	zr, err := gzip.NewReader(bytes.NewReader(blobs[0]))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]*tar.Header{}
	for tr := tar.NewReader(zr); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || !h.ModTime.Equal(stamp) {
			t.Errorf("%s belongs to %d:%d and is of %v", h.Name, h.Uid, h.Gid, h.ModTime)
		}
		if h.Typeflag == tar.TypeLink && seen[h.Linkname] == nil {
			t.Errorf("%s comes before %s, which it links to", h.Name, h.Linkname)
		}
		if dir := filepath.Dir(strings.TrimSuffix(h.Name, "/")); dir != "." && seen[dir+"/"] == nil && h.Typeflag != tar.TypeLink {
			t.Errorf("%s comes before its directory", h.Name)
		}
		seen[h.Name] = h
	}
	for name, want := range map[string]int64{"go/": 0o755, "tmp/": 0o1777, "usr/bin/git": 0o755, "etc/passwd": 0o644} {
		if h := seen[name]; h == nil || h.Mode != want {
			t.Errorf("%s = %+v, want mode %o", name, h, want)
		}
	}
	if h := seen["lib64"]; h == nil || h.Linkname != "usr/lib64" {
		t.Errorf("lib64 = %+v, want a link to usr/lib64", h)
	}
}

func TestBuildUserHasBothIDs(t *testing.T) {
	r, err := sample()["etc/passwd"].open()
	if err != nil {
		t.Fatal(err)
	}
	passwd, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"build:x:1000:1000:build:/go:/bin/sh", "build:x:1879049192:1879049192:build:/go:/bin/sh"} {
		if !strings.Contains(string(passwd), line+"\n") {
			t.Errorf("/etc/passwd has no line %s:\n%s", line, passwd)
		}
	}
}

func TestMerged(t *testing.T) {
	got := map[string]string{}
	for _, name := range []string{"bin/sh", "lib64/ld.so", "etc/passwd", "usr/bin/git", "library/x"} {
		got[name] = merged(name)
	}
	if diff := cmp.Diff(map[string]string{
		"bin/sh": "usr/bin/sh", "lib64/ld.so": "usr/lib64/ld.so", "etc/passwd": "etc/passwd", "usr/bin/git": "usr/bin/git", "library/x": "library/x",
	}, got); diff != "" {
		t.Error(diff)
	}
}

func TestWhatIsLeftOut(t *testing.T) {
	for name, want := range map[string]bool{
		"usr/share/doc": true, "usr/share/man/man1/git.1.gz": true, "usr/lib/git-core/git-daemon": true, "var/lib/x": true,
		"usr/share/git-core/templates/info": false, "usr/lib/git-core/git-remote-http": false, "usr/bin/git": false, "etc/passwd": false,
	} {
		if got := dropped.MatchString(name); got != want {
			t.Errorf("%s is left out: %t, want %t", name, got, want)
		}
	}
	for name, want := range map[string]bool{
		"src/cmd/go/testdata/x": true, "src/fmt/fmt_test.go": true, "test/fixedbugs/x.go": true,
		"src/testing/fstest/mapfs.go": false, "bin/go": false, "src/fmt/print.go": false,
	} {
		if got := unneeded.MatchString(name); got != want {
			t.Errorf("%s of the toolchain is left out: %t, want %t", name, got, want)
		}
	}
}
