package cache_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/monochromegane/cargo/cache"
)

// plant returns an upper with an action whose output's file is what make
// makes.
func plant(make func(t *testing.T, path, text string)) func(*testing.T, upper) {
	return func(t *testing.T, u upper) {
		u.put(t, "evil", "evil")
		path := u.path(t, sha256.Sum256([]byte("evil")), "d")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		make(t, path, "evil")
	}
}

// rewrite returns an upper whose action's file is what edit makes of it.
func rewrite(edit func(text string) string) func(*testing.T, upper) {
	return func(t *testing.T, u upper) {
		u.put(t, "evil", "evil")
		path := u.path(t, action("evil"), "a")
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		write(t, path, edit(string(text)))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, unix.EPERM) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestSealTakesOnlyEntries(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	write(t, secret, "evil")
	replace := func(old, new string) func(string) string {
		return func(s string) string { return strings.Replace(s, old, new, 1) }
	}
	tests := []struct {
		name string
		make func(*testing.T, upper)
	}{
		{"wrong object", plant(func(t *testing.T, path, _ string) { write(t, path, "EVIL") })},
		{"longer object", plant(func(t *testing.T, path, _ string) { write(t, path, "evil!") })},
		{"empty object", plant(func(t *testing.T, path, _ string) { write(t, path, "") })},
		{"link", plant(func(t *testing.T, path, _ string) { must(t, os.Symlink(secret, path)) })},
		{"link inside", plant(func(t *testing.T, path, text string) {
			write(t, path+"x", text)
			must(t, os.Symlink(filepath.Base(path)+"x", path))
		})},
		{"hard link", plant(func(t *testing.T, path, text string) {
			write(t, filepath.Dir(path)+"/../other", text)
			must(t, os.Link(filepath.Dir(path)+"/../other", path))
		})},
		{"FIFO", plant(func(t *testing.T, path, _ string) { must(t, unix.Mkfifo(path, 0o666)) })},
		{"socket", plant(func(t *testing.T, path, _ string) { must(t, unix.Mknod(path, unix.S_IFSOCK|0o666, 0)) })},
		{"whiteout", plant(func(t *testing.T, path, _ string) { must(t, unix.Mknod(path, unix.S_IFCHR, 0)) })},
		{"zero device", plant(func(t *testing.T, path, _ string) {
			must(t, unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
		})},
		{"directory", plant(func(t *testing.T, path, text string) {
			must(t, os.Mkdir(path, 0o755))
			write(t, path+"/app", text)
		})},
		{"deep directories", plant(func(t *testing.T, path, _ string) {
			must(t, os.MkdirAll(path+strings.Repeat("/d", 1000), 0o755))
		})},
		{"no object", plant(func(*testing.T, string, string) {})},
		{"shard is a link", func(t *testing.T, u upper) {
			u.put(t, "evil", "evil")
			shard := filepath.Dir(u.path(t, action("evil"), "a"))
			must(t, os.Rename(shard, shard+".moved"))
			must(t, os.Symlink(filepath.Base(shard)+".moved", shard))
		}},
		{"shard is a file", func(t *testing.T, u upper) { write(t, string(u)+"/00", "evil") }},
		{"shard is a FIFO", func(t *testing.T, u upper) { must(t, unix.Mkfifo(string(u)+"/00", 0o666)) }},
		{"entry is a link", func(t *testing.T, u upper) {
			u.put(t, "evil", "evil")
			path := u.path(t, action("evil"), "a")
			must(t, os.Rename(path, path+".moved"))
			must(t, os.Symlink(filepath.Base(path)+".moved", path))
		}},
		{"another action's entry", rewrite(replace(fmt.Sprintf("%x", action("evil")), fmt.Sprintf("%x", action("fmt"))))},
		{"wrong size", rewrite(replace("   4 ", "   5 "))},
		{"negative size", rewrite(replace("   4 ", "  -4 "))},
		{"huge size", rewrite(replace("                   4 ", "99999999999999999999 "))},
		{"signed size", rewrite(replace("   4 ", "  +4 "))},
		{"left-aligned size", rewrite(replace("   4 ", "4    "))},
		{"negative time", rewrite(replace("  1\n", " -1\n"))},
		{"short entry", rewrite(func(s string) string { return s[:len(s)-1] })},
		{"long entry", rewrite(func(s string) string { return s + "\n" })},
		{"no entry", rewrite(func(string) string { return "" })},
		{"another version", rewrite(replace("v1", "v2"))},
		{"upper-case id", rewrite(strings.ToUpper)},
		{"name in upper case", func(t *testing.T, u upper) {
			path := u.path(t, sha256.Sum256([]byte("evil")), "d")
			write(t, filepath.Dir(path)+"/"+strings.ToUpper(filepath.Base(path)), "evil")
		}},
		{"wrong shard", func(t *testing.T, u upper) {
			u.put(t, "evil", "evil")
			must(t, os.Mkdir(string(u)+"/00", 0o755))
			must(t, os.Rename(u.path(t, action("evil"), "a"), string(u)+"/00/"+fmt.Sprintf("%x-a", action("evil"))))
		}},
		{"other names", func(t *testing.T, u upper) {
			must(t, os.Mkdir(string(u)+"/00", 0o755))
			for _, name := range []string{"x", strings.Repeat("0", 64) + "-x", "-a", ".wh..wh..opq", strings.Repeat("0", 64), "00/.wh.x", strings.Repeat("g", 64) + "-a"} {
				write(t, filepath.Join(string(u), name), "evil")
			}
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			o := cache.Options{Dir: t.TempDir()}
			c, u := open(t, o), newUpper(t)
			test.make(t, u)
			u.put(t, "good", "good")
			sealed, err := c.Append(t.Context(), shared, string(u))
			if err != nil {
				t.Fatal(err)
			}
			if sealed.Skipped == 0 {
				t.Error("nothing was skipped")
			}
			layers := lease(t, c, shared).Layers()
			if got, ok := get(layers, "good"); !ok || got != "good" {
				t.Errorf("the good entry: %q, %v", got, ok)
			}
			if got, ok := get(layers, "evil"); ok {
				t.Errorf("the evil entry: %q", got)
			}
			checkWhole(t, o.Dir)
			onlyPlainFiles(t, layers[0])
		})
	}
}

func onlyPlainFiles(t *testing.T, dir string) {
	t.Helper()
	for _, shard := range names(t, dir) {
		for _, name := range names(t, filepath.Join(dir, shard)) {
			path := filepath.Join(dir, shard, name)
			info, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			if n, _ := unix.Llistxattr(path, nil); !info.Mode().IsRegular() || n > 0 || info.ModTime().Year() < 2038 {
				t.Errorf("%s: %v, %d bytes of attributes, %v", path, info.Mode(), n, info.ModTime())
			}
		}
	}
}

// Content is copied and nothing else of a file.
func TestSealCopiesContentAlone(t *testing.T) {
	u := newUpper(t)
	u.put(t, "good", "good")
	path := u.path(t, sha256.Sum256([]byte("good")), "d")
	if err := unix.Setxattr(path, "user.overlay.redirect", []byte("/etc"), 0); err != nil {
		t.Skip(err)
	}
	must(t, os.Chmod(path, os.ModeSetuid|0o777))
	c := open(t, cache.Options{Dir: t.TempDir()})
	if sealed, err := c.Append(t.Context(), shared, string(u)); err != nil || sealed.Files != 2 {
		t.Fatal(sealed, err)
	}
	onlyPlainFiles(t, lease(t, c, shared).Layers()[0])
}

func TestSealIsBounded(t *testing.T) {
	sparse := func(t *testing.T, path, _ string) {
		write(t, path, "")
		must(t, os.Truncate(path, 1<<40))
	}
	tests := []struct {
		name string
		make func(*testing.T, upper)
	}{
		{"1 TiB without a byte", plant(sparse)},
		{"many small files", func(t *testing.T, u upper) {
			for i := range 200 {
				u.put(t, fmt.Sprint(i), fmt.Sprint("output ", i))
			}
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			o := cache.Options{Dir: t.TempDir(), Limit: 4 * 200 * 4096}
			c, u := open(t, o), newUpper(t)
			test.make(t, u)
			if sealed, err := c.Append(t.Context(), shared, string(u)); !errors.Is(err, cache.ErrTooLarge) || c.Has(shared) {
				t.Errorf("%+v, %v", sealed, err)
			}
			checkWhole(t, o.Dir)
		})
	}
	t.Run("time", func(t *testing.T) {
		o := cache.Options{Dir: t.TempDir()}
		c, u := open(t, o), newUpper(t)
		u.put(t, "good", "good")
		late := errors.New("late")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(late)
		if _, err := c.Append(ctx, shared, string(u)); !errors.Is(err, late) {
			t.Error(err)
		}
		checkWhole(t, o.Dir)
	})
}

func FuzzEntry(f *testing.F) {
	f.Add([]byte(entryText(action("a"), action("b"), 1)))
	f.Add([]byte(strings.Repeat(" ", 175)))
	f.Fuzz(func(t *testing.T, text []byte) {
		if again, err := cache.EntryText(text); err == nil && !slices.Equal(again, text) {
			t.Errorf("%q was taken for %q", text, again)
		}
	})
}

func FuzzList(f *testing.F) {
	f.Add([]byte(`{"version": 1, "class": {"kind": "shared", "toolchain": "go1.26.8"}, "layers": [{"id": "0123456789abcdef", "files": 1, "bytes": 2}]}`))
	f.Add([]byte(`{"version": 1, "class": {"kind": "standard"}, "layers": [{"id": "../../../../../.."}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		ids, err := cache.ListedLayers(text)
		if err != nil {
			return
		}
		for _, id := range ids {
			if len(id) != 16 || strings.Trim(id, "0123456789abcdef") != "" {
				t.Errorf("%q is no layer", id)
			}
		}
	})
}
