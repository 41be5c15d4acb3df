package disk_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/monochromegane/cargo/disk"
)

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func wantFile(t testing.TB, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%s: %q, %v, want %q", path, got, err, want)
	}
}

func TestOverlay(t *testing.T) {
	t.Parallel()
	for _, kind := range []disk.Kind{disk.Loop, disk.Watch} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			d := makeDisk(t, open(t, disk.Options{Limit: 64 * mib, Kind: kind}))
			odd := filepath.Join(t.TempDir(), `a:b,c\d e`+"\n"+strings.Repeat("x", 200))
			var lowers []string
			for i := range 40 {
				lower := filepath.Join(odd, fmt.Sprint(i))
				write(t, filepath.Join(lower, "top"), fmt.Sprint(i))
				write(t, filepath.Join(lower, "dir", fmt.Sprint(i)), "lower")
				lowers = append(lowers, lower)
			}
			o, err := d.Overlay("cache", lowers, 1000, 1001)
			if err != nil {
				t.Fatal(err)
			}
			wantFile(t, filepath.Join(o.Dir, "top"), "0")
			wantFile(t, filepath.Join(o.Dir, "dir/39"), "lower")
			var st unix.Stat_t
			if err := unix.Stat(o.Dir, &st); err != nil || st.Uid != 1000 || st.Gid != 1001 {
				t.Errorf("root of the overlay: %d:%d, %v", st.Uid, st.Gid, err)
			}
			write(t, filepath.Join(o.Dir, "new"), "mine")
			write(t, filepath.Join(o.Dir, "dir/39"), "mine")
			if err := os.Remove(filepath.Join(o.Dir, "top")); err != nil {
				t.Fatal(err)
			}
			wantFile(t, filepath.Join(o.Upper, "new"), "mine")
			wantFile(t, filepath.Join(o.Upper, "dir/39"), "mine")
			wantFile(t, filepath.Join(lowers[39], "dir/39"), "lower")
			wantFile(t, filepath.Join(lowers[0], "top"), "0")
			if err := unix.Lstat(filepath.Join(o.Upper, "top"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
				t.Errorf("what was removed is no whiteout: mode %o, device %d, %v", st.Mode, st.Rdev, err)
			}
			for _, dir := range []string{o.Dir, o.Upper} {
				if !strings.HasPrefix(dir, d.Dir()+"/") {
					t.Errorf("%s does not lie on the disk", dir)
				}
			}
		})
	}
}

// What is written through an overlay is bounded like everything else.
func TestOverlayIsBounded(t *testing.T) {
	t.Parallel()
	d := makeDisk(t, open(t, disk.Options{Limit: 16 * mib}))
	o, err := d.Overlay("cache", []string{t.TempDir()}, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if n := fill(t, filepath.Join(o.Dir, "file")); n > 16*mib {
		t.Errorf("%d bytes fit", n)
	}
	if !d.Full() {
		t.Error("not full")
	}
}

func TestOverlayRefuses(t *testing.T) {
	t.Parallel()
	d := makeDisk(t, open(t, disk.Options{Limit: 16 * mib}))
	dir := t.TempDir()
	if _, err := d.Overlay("taken", []string{dir}, 0, 0); err != nil {
		t.Fatal(err)
	}
	many := make([]string, 1000)
	for i := range many {
		many[i] = dir
	}
	for name, lowers := range map[string][]string{
		"none":     nil,
		"relative": {"."},
		"missing":  {filepath.Join(dir, "missing")},
		"many":     many,
		"../name":  {dir},
		"taken":    {dir},
	} {
		if _, err := d.Overlay(name, lowers, 0, 0); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	entries, err := os.ReadDir(filepath.Join(d.Dir(), ".overlay"))
	if err != nil || len(entries) != 1 {
		t.Errorf("an overlay that failed leaves something: %v, %v", entries, err)
	}
}
