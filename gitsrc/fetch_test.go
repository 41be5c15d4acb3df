package gitsrc_test

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/monochromegane/cargo/gitsrc"
	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

// everything is a tree with one of each kind, but for a submodule.
func everything() fstest.MapFS {
	return fstest.MapFS{
		"Makefile":     {Data: []byte("all:\n\tgo build\n"), Mode: 0o644},
		"a-b":          {Data: []byte("before a/ for git\n"), Mode: 0o644},
		"a/b/c/deep":   {Data: []byte("deep\n"), Mode: 0o644},
		"a/empty":      {Mode: 0o644},
		"run.sh":       {Data: []byte("#!/bin/sh\n"), Mode: 0o755},
		"link":         {Data: []byte("a/b/c/deep"), Mode: 0o777 | fs.ModeSymlink},
		"absolute":     {Data: []byte("/etc/hostname"), Mode: 0o777 | fs.ModeSymlink},
		"outside":      {Data: []byte("../../../x"), Mode: 0o777 | fs.ModeSymlink},
		"to-git":       {Data: []byte(".git/config"), Mode: 0o777 | fs.ModeSymlink},
		"big.lfs":      {Data: []byte("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"), Mode: 0o644},
		".gitignore":   {Data: []byte("/bin/\n"), Mode: 0o644},
		"ümlaut \n\\x": {Data: []byte("odd name\n"), Mode: 0o644},
		"README":       {Data: []byte("upper\n"), Mode: 0o644},
		"readme":       {Data: []byte("lower\n"), Mode: 0o644},
	}
}

func TestFetchWritesTheTree(t *testing.T) {
	host := gitsrctest.New(t)
	repo := host.Repository("o/app")
	want := everything()
	commit := repo.Commit("main", want)
	repo.Tag("v1", commit)
	s := newSource(t, host, nil)

	tree, ref, dir := fetch(t, s, "v1")
	if ref.Name != "refs/tags/v1" || ref.Commit != commit || !ref.Public {
		t.Errorf("ref = %+v", ref)
	}
	if tree.Commit != commit || !tree.Time.Equal(gitsrctest.Epoch) || tree.Files != len(want) {
		t.Errorf("tree = %s at %v with %d files, want %s at %v with %d", tree.Commit, tree.Time, tree.Files, commit, gitsrctest.Epoch, len(want))
	}
	got := fstest.MapFS{}
	size := int64(0)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		if name == ".git" {
			return fs.SkipDir
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if mtime := info.ModTime(); d.Type() != fs.ModeSymlink && (!mtime.Truncate(time.Second).Equal(gitsrctest.Epoch) || !mtime.Equal(mtimeOf(t, dir))) {
			t.Errorf("%q has time %v, want the commit's second, and the time of the whole tree, %v", name, mtime, mtimeOf(t, dir))
		}
		switch d.Type() {
		case fs.ModeDir:
			if info.Mode().Perm() != 0o755 && name != "." {
				t.Errorf("%q has mode %v", name, info.Mode())
			}
			return nil
		case fs.ModeSymlink:
			target, err := os.Readlink(path)
			got[name] = &fstest.MapFile{Data: []byte(target), Mode: 0o777 | fs.ModeSymlink}
			return err
		}
		content, err := os.ReadFile(path)
		size += int64(len(content))
		got[name] = &fstest.MapFile{Data: content, Mode: info.Mode()}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b []byte) bool { return string(a) == string(b) })); diff != "" {
		t.Errorf("tree differs (-want +got):\n%s", diff)
	}
	if tree.Bytes != size {
		t.Errorf("Bytes = %d, want %d", tree.Bytes, size)
	}
	for name := range want {
		if !tree.Tracked(name) {
			t.Errorf("Tracked(%q) = false", name)
		}
	}
	for _, name := range []string{"a", "bin", ".git/config", "", "a/b/c/deeper"} {
		if tree.Tracked(name) {
			t.Errorf("Tracked(%q) = true", name)
		}
	}
}

func TestFetchIgnoresTheUmask(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	host := gitsrctest.New(t)
	host.Repository("o/app").Commit("main", everything())
	_, _, dir := fetch(t, newSource(t, host, nil), "main")
	for name, want := range map[string]fs.FileMode{"a": 0o755, "a/empty": 0o644, "run.sh": 0o755, ".git": 0o755, ".git/HEAD": 0o644} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s has mode %v (%v), want %v", name, info.Mode(), err, want)
		}
	}
}

// TestDotGit asks the real git what a Makefile would ask it.
func TestDotGit(t *testing.T) {
	host := gitsrctest.New(t)
	repo := host.Repository("o/app")
	first := repo.Commit("main", files(map[string]string{"f": "1"}))
	second := repo.Commit("main", everything())
	repo.Commit("feature/x", files(map[string]string{"f": "2"}))
	repo.Tag("light", second)
	repo.Annotate("v1.2.3", "commit", second)
	nested := repo.Annotate("inner", "commit", first)
	repo.Annotate("release/outer", "tag", nested)
	s := newSource(t, host, nil)

	for _, tc := range []struct{ version, commit, describe, branch string }{
		{"v1.2.3", second, "v1.2.3", "HEAD"},
		{"light", second, "light", "HEAD"},
		{"main", second, "", "main"},
		{"feature/x", repo.Ref("refs/heads/feature/x"), "", "feature/x"},
		{"release/outer", first, "release/outer", "HEAD"},
		{first, first, "inner", "HEAD"},
		{second, second, "light", "HEAD"},
	} {
		t.Run(strings.ReplaceAll(tc.version, "/", "-"), func(t *testing.T) {
			_, _, dir := fetch(t, s, tc.version)
			if got := git(t, dir, "rev-parse", "HEAD"); got != tc.commit {
				t.Errorf("HEAD = %s, want %s", got, tc.commit)
			}
			if got := git(t, dir, "rev-parse", "--abbrev-ref", "HEAD"); got != tc.branch {
				t.Errorf("branch = %s, want %s", got, tc.branch)
			}
			if tc.describe != "" {
				if got := git(t, dir, "describe", "--tags", "--always", "--dirty"); got != tc.describe {
					t.Errorf("describe = %s, want %s", got, tc.describe)
				}
			}
			git(t, dir, "diff-index", "--quiet", "HEAD", "--") // before anything refreshes the index
			if got := git(t, dir, "status", "--porcelain"); got != "" {
				t.Errorf("status = %s", got)
			}
			if got := git(t, dir, "log", "--format=%H"); got != tc.commit {
				t.Errorf("log = %s, want only %s", got, tc.commit)
			}
			if got := git(t, dir, "fsck", "--strict"); got != "" {
				t.Errorf("fsck: %s", got)
			}
			if got := git(t, dir, "remote"); got != "" {
				t.Errorf("remotes: %s", got)
			}
			if _, err := os.Stat(filepath.Join(dir, ".git", "hooks")); err == nil {
				t.Error("there are hooks")
			}
			if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			if got := git(t, dir, "status", "--porcelain"); got != "?? new" {
				t.Errorf("status with a new file = %s", got)
			}
		})
	}
}

// An annotated tag stays one, or git describe without --tags does not see it.
func TestDotGitKeepsTheTagObject(t *testing.T) {
	host := gitsrctest.New(t)
	repo := host.Repository("o/app")
	tag := repo.Annotate("v1", "commit", repo.Commit("main", files(map[string]string{"f": "1"})))
	_, _, dir := fetch(t, newSource(t, host, nil), "v1")
	if got := git(t, dir, "describe"); got != "v1" {
		t.Errorf("describe = %s", got)
	}
	if got := git(t, dir, "rev-parse", "v1"); got != tag {
		t.Errorf("v1 = %s, want the tag object %s", got, tag)
	}
}

// A ref whose name is shell code may be what a commit id is the tip of, but
// its name does not come near a Makefile.
func TestDotGitLeavesOutRefsThatAreNotPlain(t *testing.T) {
	host := gitsrctest.New(t)
	repo := host.Repository("o/app")
	commit := repo.CommitTree(repo.WriteTree(files(map[string]string{"f": "1"})))
	repo.SetRef("refs/tags/v1;$(id)", commit)
	_, ref, dir := fetch(t, newSource(t, host, nil), commit)
	if ref.Name != "refs/tags/v1;$(id)" {
		t.Errorf("ref = %+v", ref)
	}
	if got := git(t, dir, "for-each-ref"); got != "" {
		t.Errorf("refs: %s", got)
	}
	if got := git(t, dir, "rev-parse", "HEAD"); got != commit {
		t.Errorf("HEAD = %s, want %s", got, commit)
	}
}

func TestFetchSubmodule(t *testing.T) {
	host := gitsrctest.New(t)
	repo := host.Repository("o/app")
	inner := repo.CommitTree(repo.WriteTree(files(map[string]string{"f": "1"})))
	modules := repo.Object("blob", []byte("[submodule \"sub\"]\n\tpath = sub\n\turl = ../../evil\n"))
	repo.Tag("v1", repo.CommitTree(repo.Tree(
		gitsrctest.Entry{Mode: gitsrctest.ModeFile, Name: ".gitmodules", ID: modules},
		gitsrctest.Entry{Mode: gitsrctest.ModeSubmodule, Name: "sub", ID: inner},
	)))
	_, _, dir := fetch(t, newSource(t, host, nil), "v1")
	if entries, err := os.ReadDir(filepath.Join(dir, "sub")); err != nil || len(entries) > 0 {
		t.Errorf("sub: %v, %v; want an empty directory", entries, err)
	}
	if got := git(t, dir, "status", "--porcelain"); got != "" {
		t.Errorf("status = %s", got)
	}
}

func TestFetchOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("giving files away needs root")
	}
	const id = 54321
	host := gitsrctest.New(t)
	repo := host.Repository("o/app")
	commit := repo.Commit("main", everything())
	repo.Annotate("v1", "commit", commit)
	s := newSource(t, host, func(o *gitsrc.Options) { o.Owner = gitsrc.Owner{UID: id, GID: id + 1} })
	_, _, dir := fetch(t, s, "v1")
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		if st := info.Sys().(*syscall.Stat_t); st.Uid != id || st.Gid != id+1 {
			t.Errorf("%s belongs to %d:%d", path, st.Uid, st.Gid)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	owner := &syscall.Credential{Uid: id, Gid: id + 1}
	if got := gitAs(t, dir, owner, "describe", "--tags", "--dirty"); got != "v1" {
		t.Errorf("describe as the owner = %s", got)
	}
	if got := gitAs(t, dir, owner, "status", "--porcelain"); got != "" {
		t.Errorf("status as the owner = %s", got)
	}
}

// Enough files, alike and large enough, that git sends deltas and that not all
// of them are kept in memory.
func TestFetchDeltas(t *testing.T) {
	if testing.Short() {
		t.Skip("135 MB of deltas")
	}
	host := gitsrctest.New(t)
	repo := host.Repository("o/app")
	random := rand.New(rand.NewPCG(1, 2))
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return b
	}
	want := fstest.MapFS{"zeros": {Data: make([]byte, 65<<20), Mode: 0o644}}
	content := noise(1 << 20)
	for i := range 70 {
		content = slices.Clone(content)
		copy(content[i*1000:], noise(500))
		want[fmt.Sprintf("dir/file%02d", i)] = &fstest.MapFile{Data: content, Mode: 0o644}
	}
	repo.Commit("main", want)
	git(t, repo.Dir, "-c", "pack.threads=1", "repack", "-adq", "--window=5", "--depth=20")

	tree, _, dir := fetch(t, newSource(t, host, nil), "main")
	for name, file := range want {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(got) != string(file.Data) {
			t.Errorf("%s differs (%v)", name, err)
		}
	}
	if tree.Files != len(want) {
		t.Errorf("%d files, want %d", tree.Files, len(want))
	}
	if got := git(t, dir, "status", "--porcelain"); got != "" {
		t.Errorf("status = %s", got)
	}
	if got := git(t, dir, "verify-pack", "-s", filepath.Join(dir, onlyPack(t, dir))); !strings.Contains(got, "chain length = 4:") {
		t.Errorf("the pack has no chains of deltas:\n%s", got[max(0, len(got)-500):])
	}
}

func onlyPack(t *testing.T, dir string) string {
	t.Helper()
	packs, err := filepath.Glob(filepath.Join(dir, ".git/objects/pack/*.pack"))
	if err != nil || len(packs) != 1 {
		t.Fatalf("packs: %v, %v", packs, err)
	}
	name, _ := filepath.Rel(dir, packs[0])
	return name
}

func TestFetchTimes(t *testing.T) {
	host := gitsrctest.New(t)
	repo := host.Repository("o/app")
	tree := repo.WriteTree(files(map[string]string{"f": "1"}))
	for _, tc := range []struct {
		version string
		seconds int64
		want    func() time.Time
	}{
		{"zero", 0, func() time.Time { return time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC) }},
		{"past", 1e9, func() time.Time { return time.Unix(1e9, 0) }},
		{"future", 5e9, time.Now},
	} {
		who := fmt.Sprintf("T <t@example.com> %d +0200", tc.seconds)
		repo.Tag(tc.version, repo.Object("commit", fmt.Appendf(nil, "tree %s\nauthor %s\ncommitter %s\n\nx\n", tree, who, who)))
	}
	s := newSource(t, host, nil)
	past, _, dir := fetch(t, s, "past")
	if !past.Time.Equal(time.Unix(1e9, 0)) || past.Time.Location() != time.UTC {
		t.Errorf("Time = %v", past.Time)
	}
	if got := mtimeOf(t, filepath.Join(dir, "f")); !got.Truncate(time.Second).Equal(past.Time) {
		t.Errorf("f has time %v, want the second %v", got, past.Time)
	}
	_, _, again := fetch(t, s, "past")
	if a, b := mtimeOf(t, filepath.Join(dir, "f")), mtimeOf(t, filepath.Join(again, "f")); !a.Equal(b) {
		t.Errorf("the same commit gives %v and %v", a, b)
	}
	_, _, dir = fetch(t, s, "zero")
	if got := mtimeOf(t, filepath.Join(dir, "f")).UTC(); got.Year() != 1980 {
		t.Errorf("f has time %v, want 1980", got)
	}
	_, _, dir = fetch(t, s, "future")
	if got := mtimeOf(t, filepath.Join(dir, "f")); time.Since(got) < 0 || time.Since(got) > time.Minute {
		t.Errorf("f has time %v, want about now, and not what is to come", got)
	}
}

// Or the go command would take one's index of a package for the other's.
func TestFetchTellsCommitsOfOneSecondApart(t *testing.T) {
	host := gitsrctest.New(t)
	repo := host.Repository("o/app")
	for _, tc := range []struct {
		name    string
		seconds int64
	}{
		{"past", 1e9},
		{"before 1980", 0},
		{"now", time.Now().Unix()},
		{"to come", 5e9},
	} {
		t.Run(tc.name, func(t *testing.T) {
			who := fmt.Sprintf("T <t@example.com> %d +0200", tc.seconds)
			var got []time.Time
			for _, pkg := range []string{"path", "sort", "sync"} {
				tree := repo.WriteTree(files(map[string]string{"f.go": "package app\n\nimport _ \"" + pkg + "\"\n"}))
				version := fmt.Sprint("v", tc.seconds, pkg)
				repo.Tag(version, repo.Object("commit", fmt.Appendf(nil, "tree %s\nauthor %s\ncommitter %s\n\nx\n", tree, who, who)))
				_, _, dir := fetch(t, newSource(t, host, nil), version)
				mtime := mtimeOf(t, filepath.Join(dir, "f.go"))
				if mtime.After(time.Now()) {
					t.Errorf("%s: %v is to come", version, mtime)
				}
				if slices.ContainsFunc(got, mtime.Equal) {
					t.Errorf("%s: another commit of this second has the time %v too", version, mtime)
				}
				got = append(got, mtime)
				if status := git(t, dir, "status", "--porcelain"); status != "" {
					t.Errorf("%s: status = %s", version, status)
				}
			}
		})
	}
}

func mtimeOf(t *testing.T, name string) time.Time {
	t.Helper()
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return info.ModTime()
}

func TestFetchWantsAnEmptyDirectory(t *testing.T) {
	host := gitsrctest.New(t)
	host.Repository("o/app").Commit("main", everything())
	s := newSource(t, host, nil)
	ref, err := s.Resolve(t.Context(), app, "main", gitsrc.Token{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	kept := filepath.Join(dir, "kept")
	if err := os.WriteFile(kept, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Fetch(t.Context(), app, ref, gitsrc.Token{}, dir); err == nil {
		t.Error("no error")
	}
	if _, err := os.Stat(kept); err != nil {
		t.Errorf("what was there is gone: %v", err)
	}
}
