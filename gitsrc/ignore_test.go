package gitsrc_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

// ignoreTable is .gitignore files, and paths about which git is asked too.
var ignoreTable = []struct {
	files map[string]string // by directory
	paths []string          // a slash at the end: a directory
}{
	{map[string]string{"": "*.o\n!keep.o\n/bin/\nbuild\n"},
		[]string{"a.o", "keep.o", "d/a.o", "d/keep.o", "bin/", "bin/x", "d/bin/", "bin", "build", "build/", "build/x", "d/build/x", "rebuild"}},
	{map[string]string{"": "foo/*\n!foo/bar\nfoo/bar/*\n!foo/bar/baz\n"},
		[]string{"foo/", "foo/x", "foo/bar/", "foo/bar/x", "foo/bar/baz", "d/foo/x"}},
	{map[string]string{"": "dir/\n!dir/kept\n"}, []string{"dir/", "dir/kept", "dir", "a/dir/", "a/dir/kept"}}, // nothing comes back from below
	{map[string]string{"": "*\n!*/\n!*.go\n"}, []string{"a.go", "a.c", "d/", "d/a.go", "d/a.c"}},
	{map[string]string{"": "**/cache\na/**\n!a/b\nx/**/y\n**/z/q\n"},
		[]string{"cache", "d/cache/", "d/e/cache", "a/", "a/b", "a/b/c", "x/y", "x/1/y", "x/1/2/y", "x/1/yy", "z/q", "1/z/q", "1/z/2/q"}},
	{map[string]string{"": "a**b\n**.log\nfoo**/bar\n***/end\n/**/top\n"},
		[]string{"ab", "a/b", "axxb", "x.log", "d/x.log", "foo1/bar", "foo/bar", "foo/1/bar", "foobar", "foo1/2/bar", "end", "d/end", "d/e/end", "top", "d/top"}},
	{map[string]string{"": "[abc].x\n[!abc].y\n[^abc].z\n[a-c]1\n[]-]2\n[[:digit:]]3\n[![:alpha:]]4\n[a\n[\\]]5\n[z-a]6\n[a-]7\n"},
		[]string{"a.x", "d.x", "a.y", "d.y", "a.z", "d.z", "b1", "d1", "]2", "-2", "x2", "53", "x3", "44", "x4", "[a", "]5", "x5", "b6", "a7", "-7", "b7"}},
	{map[string]string{"": "[[:upper:][:digit:]x]1\n[[:nope:]]2\n[[:alpha:]\n[[.a.]]3\n[a[:]4\n[\\a-\\c]5\n[/]6\nd[/]e\n[[:a[:]x]8\nx?**/bar\n"},
		[]string{"A1", "51", "x1", "y1", "a2", ":2", "a", "a3", ".3", "a]3", ".]3", "[4", ":4", "a4", "b5", "\\5", "6", "d/e", "[8", "a8", "x8", "xy1/bar", "xy/1/bar", "xybar"}},
	{map[string]string{"": "\\#hash\n#comment\n\\!bang\n!\nspace \nkept\\ \ntab\t\n\\\\back\nq\\uote\nend\\\n\\\n"},
		[]string{"#hash", "#comment", "comment", "!bang", "bang", "space", "space ", "kept", "kept ", "tab", "tab\t", "\\back", "quote", "end", "end\\", "\\"}},
	{map[string]string{"": "\ufeffbom\r\ncr\r\n\r\nlast"}, []string{"bom", "\ufeffbom", "cr", "cr\r", "last", "x"}},
	{map[string]string{"": "?at\na?b\nü\n"}, []string{"cat", "at", "ccat", "a/b", "axb", "ü", "üat"}},
	{map[string]string{"": "a/b\n/c\nd/\ne/f/\n/\n//\ng//\n"},
		[]string{"a/b", "x/a/b", "c", "x/c", "d", "d/", "x/d/", "e/f", "e/f/", "x/e/f/", "g/", "g"}},
	{map[string]string{"": "*.txt\nsub/*.dat\n", "sub": "!keep.txt\n/here\nonly/\n", "sub/deep": "*.txt\n!*.dat\n"},
		[]string{"a.txt", "keep.txt", "sub/keep.txt", "sub/a.txt", "sub/deep/keep.txt", "sub/here", "sub/deep/here", "here", "sub/only/", "sub/deep/only/x",
			"sub/a.dat", "sub/deep/a.dat", "a.dat"}},
	{map[string]string{"": "/sub/\n", "sub": "!*\n"}, []string{"sub/", "sub/x"}},                       // not read: its directory is ignored
	{map[string]string{"": "sub/*\n", "sub": "!.gitignore\n!x\n"}, []string{"sub/x", "sub/y", "sub/"}}, // read: it is not
	{map[string]string{"": "a*a*a*a*a*a*a*a*a*b\n"}, []string{strings.Repeat("a", 200), strings.Repeat("a", 200) + "b"}},
	{map[string]string{"": "*.[oa]\n*~\n.*\n!.gitignore\nvendor/*/x\n*/y\n"},
		[]string{"a.o", "a.a", "a.b", "x~", ".hidden", ".gitignore", "d/.hidden/x", "vendor/a/x", "vendor/a/b/x", "d/y", "d/e/y", "y"}},
	{map[string]string{"": "\\*\n\\?x\n\\[a]\na\\/b\n*\\.e\n**\\/s\n"}, []string{"*", "x", "?x", "[a]", "a", "a/b", "x.e", "s", "d/s"}},
	{map[string]string{"": "!a\na\n!a\n b\nc d\n"}, []string{"a", " b", "b", "c d"}},
}

// TestIgnored compares with git itself.
func TestIgnored(t *testing.T) {
	host := gitsrctest.New(t)
	repo := host.Repository("o/app")
	s := newSource(t, host, nil)
	for i, tc := range ignoreTable {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			tree := map[string]string{"tracked": ""}
			for dir, content := range tc.files {
				tree[filepath.ToSlash(filepath.Join(dir, ".gitignore"))] = content
			}
			repo.Commit("main", files(tree))
			fetched, _, dir := fetch(t, s, "main")
			for _, path := range tc.paths {
				name, isDir := strings.CutSuffix(path, "/")
				if got, want := fetched.Ignored(name, isDir), checkIgnore(t, dir, path); got != want {
					t.Errorf("Ignored(%q, %v) = %v; git says %v; patterns %q", name, isDir, got, want, tc.files)
				}
			}
		})
	}
}

// checkIgnore asks git whether a path would be ignored. git takes a path with
// a slash at its end for a directory, but does not look above a path that
// exists as something else, so the path is made first.
func checkIgnore(t *testing.T, dir, path string) bool {
	t.Helper()
	name, isDir := strings.CutSuffix(path, "/")
	full := filepath.Join(dir, name)
	if _, err := os.Lstat(full); err != nil {
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if isDir {
			err = os.Mkdir(full, 0o755)
		} else {
			err = os.WriteFile(full, nil, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer func() { // and what was made above it
			for p := full; p != dir && os.Remove(p) == nil; p = filepath.Dir(p) {
			}
		}()
	}
	cmd := exec.CommandContext(t.Context(), "git", "check-ignore", "--no-index", "--stdin", "-z")
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "GIT_CONFIG_NOSYSTEM=1"}
	cmd.Stdin = strings.NewReader("./" + name + "\x00") // a colon at the start would be magic
	out, err := cmd.Output()
	if exit, ok := err.(*exec.ExitError); err != nil && (!ok || exit.ExitCode() != 1) {
		t.Fatalf("git check-ignore %q: %v\n%s", path, err, exit.Stderr)
	}
	return len(bytes.TrimRight(out, "\x00")) > 0
}
