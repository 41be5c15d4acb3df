package gitsrc_test

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/monochromegane/cargo/gitsrc"
	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

func entry(mode, name, id string) gitsrctest.Entry {
	return gitsrctest.Entry{Mode: mode, Name: name, ID: id}
}

// wantFetchRefused fetches main, which must be refused and leave nothing, in
// the workspace or beside it.
func wantFetchRefused(t *testing.T, s *gitsrc.Source, why string) {
	t.Helper()
	ref, err := s.Resolve(t.Context(), app, "main", gitsrc.Token{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	parent := t.TempDir()
	dir := filepath.Join(parent, "workspace")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	_, err = s.Fetch(t.Context(), app, ref, gitsrc.Token{}, dir)
	wantRefused(t, err, why)
	wantEmpty(t, dir)
	if entries, _ := os.ReadDir(parent); len(entries) != 1 {
		t.Errorf("left beside the workspace: %v", entries)
	}
}

func TestHostileTrees(t *testing.T) {
	host := gitsrctest.New(t)
	repo := host.Repository("o/app")
	blob := repo.Object("blob", []byte("x"))
	link := repo.Object("blob", []byte(".git"))
	sub := repo.Tree(entry(gitsrctest.ModeFile, "config", blob))
	dir := func(name string) []gitsrctest.Entry { return []gitsrctest.Entry{entry(gitsrctest.ModeDir, name, sub)} }
	file := func(name string) []gitsrctest.Entry {
		return []gitsrctest.Entry{entry(gitsrctest.ModeFile, name, blob)}
	}
	const dotGit = "which some systems take for .git"

	for name, tc := range map[string]struct {
		entries []gitsrctest.Entry
		why     string
	}{
		"git":                {dir(".git"), dotGit},
		"git file":           {file(".git"), dotGit},
		"git link":           {[]gitsrctest.Entry{entry(gitsrctest.ModeSymlink, ".git", link)}, dotGit},
		"git submodule":      {[]gitsrctest.Entry{entry(gitsrctest.ModeSubmodule, ".git", repo.CommitTree(sub))}, dotGit},
		"upper case":         {dir(".GIT"), dotGit},
		"mixed case":         {dir(".gIt"), dotGit},
		"NTFS short name":    {dir("GIT~1"), dotGit},
		"NTFS dot":           {dir(".git."), dotGit},
		"NTFS space":         {dir(".git . "), dotGit},
		"NTFS stream":        {dir(".git::$INDEX_ALLOCATION"), dotGit},
		"HFS":                {dir(".g\u200cit"), dotGit},
		"HFS, upper case":    {dir("\ufeff.GI\u202eT"), dotGit},
		"backslash git":      {dir(`a\.git\hooks`), dotGit},
		"backslash above":    {file(`..\..\x`), dotGit},
		"above":              {dir(".."), `a file named ".."`},
		"here":               {dir("."), `a file named "."`},
		"slash":              {file("a/../../x"), "has a slash in it"},
		"absolute":           {file("/tmp/x"), "has a slash in it"},
		"long name":          {file(strings.Repeat("n", 256)), "file name of 256 bytes"},
		"twice":              {append(file("a"), file("a")...), `a" twice`},
		"file and directory": {append(file("a"), dir("a")...), `a" twice`},
		"link and directory": {append([]gitsrctest.Entry{entry(gitsrctest.ModeSymlink, "a", link)}, dir("a")...), `a" twice`},
		"not next to each other": {[]gitsrctest.Entry{entry(gitsrctest.ModeSymlink, "a", link), entry(gitsrctest.ModeFile, "a.b", blob), entry(gitsrctest.ModeDir, "a", sub)},
			`a" twice`},
		"device":           {[]gitsrctest.Entry{entry("60000", "a", blob)}, "mode is unknown"},
		"setuid":           {[]gitsrctest.Entry{entry("104755", "a", blob)}, "mode is unknown"},
		"empty link":       {[]gitsrctest.Entry{entry(gitsrctest.ModeSymlink, "a", repo.Object("blob", nil))}, "target of 0 bytes"},
		"NUL link":         {[]gitsrctest.Entry{entry(gitsrctest.ModeSymlink, "a", repo.Object("blob", []byte("a\x00b")))}, "NUL in its target"},
		"long link":        {[]gitsrctest.Entry{entry(gitsrctest.ModeSymlink, "a", repo.Object("blob", make([]byte, 4096)))}, "target of 4096 bytes"},
		"large .gitignore": {[]gitsrctest.Entry{entry(gitsrctest.ModeFile, ".gitignore", repo.Object("blob", make([]byte, 600<<10)))}, ".gitignore files hold more than 512 KiB"},
	} {
		t.Run(name, func(t *testing.T) {
			below := append([]gitsrctest.Entry{entry(gitsrctest.ModeFile, "!first", blob)}, tc.entries...)
			tree := repo.Tree(entry(gitsrctest.ModeDir, "d", repo.Tree(below...)))
			repo.SetRef("refs/heads/main", repo.CommitTree(tree))
			wantFetchRefused(t, newSource(t, host, nil), tc.why)
		})
	}
}

// Names that look odd and are honest: systemd units and the like.
func TestHonestNames(t *testing.T) {
	host := gitsrctest.New(t)
	repo := host.Repository("o/app")
	blob := repo.Object("blob", []byte("x"))
	var entries []gitsrctest.Entry
	names := []string{" ", "-rf", "...", ".gitattributes", ".github", `dev-disk\x2dlabel.mount`, "a:b", "git", "git~2", "\xff\xfe", strings.Repeat("n", 255)}
	for _, name := range names {
		entries = append(entries, gitsrctest.Entry{Mode: gitsrctest.ModeFile, Name: name, ID: blob})
	}
	repo.SetRef("refs/heads/main", repo.CommitTree(repo.Tree(entries...)))
	_, _, dir := fetch(t, newSource(t, host, nil), "main")
	for _, name := range names {
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}

func TestLimits(t *testing.T) {
	host := gitsrctest.New(t)
	repo := host.Repository("o/app")
	set := func(tree string) { repo.SetRef("refs/heads/main", repo.CommitTree(tree)) }
	limited := func(l gitsrc.Limits) *gitsrc.Source {
		return newSource(t, host, func(o *gitsrc.Options) { o.Limits = l })
	}

	t.Run("zeros", func(t *testing.T) { // 300 kB on the wire
		set(repo.Tree(entry(gitsrctest.ModeFile, "zeros", repo.Object("blob", make([]byte, 64<<20)))))
		wantFetchRefused(t, limited(gitsrc.Limits{TreeBytes: 63 << 20}), "it unpacks to more than 63 MiB (--source-limit)")
	})
	t.Run("wire", func(t *testing.T) {
		set(repo.WriteTree(files(map[string]string{"f": noise(t, 200_000)})))
		wantFetchRefused(t, limited(gitsrc.Limits{WireBytes: 100 << 10}), "more than 100 KiB would be downloaded for it (--source-limit)")
	})
	t.Run("one file many times", func(t *testing.T) {
		blob := repo.Object("blob", make([]byte, 1<<20))
		var entries []gitsrctest.Entry
		for i := range 20 {
			entries = append(entries, entry(gitsrctest.ModeFile, fmt.Sprintf("f%02d", i), blob))
		}
		set(repo.Tree(entries...))
		wantFetchRefused(t, limited(gitsrc.Limits{TreeBytes: 10 << 20}), "its files hold more than 10 MiB (--source-limit)")
	})
	t.Run("one directory many times", func(t *testing.T) { // 10^10 files, 12 objects
		tree := repo.WriteTree(files(map[string]string{"f": "x"}))
		for range 10 {
			var entries []gitsrctest.Entry
			for i := range 10 {
				entries = append(entries, entry(gitsrctest.ModeDir, fmt.Sprint(i), tree))
			}
			tree = repo.Tree(entries...)
		}
		set(tree)
		wantFetchRefused(t, limited(gitsrc.Limits{Files: 1000}), "it has more than 1000 files and directories")
	})
	t.Run("files", func(t *testing.T) {
		many := make(map[string]string)
		for i := range 100 {
			many[fmt.Sprint(i)] = fmt.Sprint(i)
		}
		set(repo.WriteTree(files(many)))
		wantFetchRefused(t, limited(gitsrc.Limits{Files: 50}), "it has more than 50 files and directories")
	})
	deep := func(levels int, name string) string {
		tree := repo.WriteTree(files(map[string]string{"f": "x"}))
		for range levels {
			tree = repo.Tree(entry(gitsrctest.ModeDir, name, tree))
		}
		return tree
	}
	t.Run("objects", func(t *testing.T) { // that are in no tree
		tree := []byte{}
		commit := fmt.Appendf(nil, "tree %x\ncommitter A <a> 1 +0000\n\n", objectID("tree", tree))
		entries := []packEntry{{kind: 1, data: commit}, {kind: 2, data: tree}}
		for i := range 100 {
			entries = append(entries, packEntry{kind: 3, data: fmt.Append(nil, i)})
		}
		sendPack(host, hex.EncodeToString(objectID("commit", commit)), makePack(entries...))
		defer host.Intercept(nil)
		wantFetchRefused(t, limited(gitsrc.Limits{Files: 50}), "it has more than 50 files and directories")
	})
	t.Run("deltas", func(t *testing.T) { // a few bytes that make 4 MiB, often
		commit := fmt.Appendf(nil, "tree %x\ncommitter A <a> 1 +0000\n\n", objectID("tree", nil))
		base := make([]byte, 1<<20)
		entries := []packEntry{{kind: 1, data: commit}, {kind: 3, data: base}}
		for i := range 20 {
			delta := append(leb(1<<20), leb(4<<20+1)...)
			delta = append(delta, bytes.Repeat([]byte{0x80 | 0x40, 0x10}, 4)...) // copy 1 MiB from the start
			entries = append(entries, packEntry{kind: 7, prefix: objectID("blob", base), data: append(delta, 1, byte(i))})
		}
		sendPack(host, hex.EncodeToString(objectID("commit", commit)), makePack(entries...))
		defer host.Intercept(nil)
		wantFetchRefused(t, limited(gitsrc.Limits{TreeBytes: 50 << 20}), "it unpacks to more than 50 MiB")
	})
	t.Run("depth", func(t *testing.T) {
		set(deep(9, "d"))
		wantFetchRefused(t, limited(gitsrc.Limits{PathDepth: 8}), "directories deeper than 8 levels")
		set(deep(8, "d"))
		fetch(t, limited(gitsrc.Limits{PathDepth: 8}), "main")
	})
	t.Run("path", func(t *testing.T) {
		set(deep(12, strings.Repeat("d", 200)))
		wantFetchRefused(t, limited(gitsrc.Limits{}), "path of more than 2048 bytes")
	})
	t.Run("time", func(t *testing.T) {
		set(deep(1, "d"))
		s := limited(gitsrc.Limits{Timeout: 300 * time.Millisecond})
		ref, err := s.Resolve(t.Context(), app, "main", gitsrc.Token{}, 0)
		if err != nil {
			t.Fatal(err)
		}
		host.Delay(time.Hour)
		defer host.Delay(0)
		dir := t.TempDir()
		_, err = s.Fetch(t.Context(), app, ref, gitsrc.Token{}, dir)
		if !errors.Is(err, gitsrc.ErrUnavailable) || !strings.Contains(err.Error(), "it took longer than 300ms") {
			t.Errorf("Fetch = %v", err)
		}
		wantEmpty(t, dir)
	})
}

// noise is text that does not compress.
func noise(t *testing.T, n int) string {
	t.Helper()
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		sum := sha1.Sum([]byte(fmt.Sprint(i)))
		b.Write(sum[:])
	}
	return b.String()
}

func TestMoved(t *testing.T) {
	host := gitsrctest.New(t)
	repo := host.Repository("o/app")
	repo.Commit("main", files(map[string]string{"f": "1"}))
	s := newSource(t, host, nil)
	ref, err := s.Resolve(t.Context(), app, "main", gitsrc.Token{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	moved := repo.CommitTree(repo.WriteTree(files(map[string]string{"f": "2"})))
	try := func(t *testing.T) {
		t.Helper()
		dir := t.TempDir()
		if _, err := s.Fetch(t.Context(), app, ref, gitsrc.Token{}, dir); err != gitsrc.ErrMoved {
			t.Errorf("Fetch = %v, want ErrMoved", err)
		}
		wantEmpty(t, dir)
	}
	t.Run("between listing and asking", func(t *testing.T) {
		host.Intercept(func(_ http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPost {
				repo.SetRef("refs/heads/main", moved)
			}
			return false
		})
		defer host.Intercept(nil)
		try(t)
	})
	t.Run("before", try)
	t.Run("gone", func(t *testing.T) {
		repo.SetRef("refs/heads/main", "")
		try(t)
	})
}

// prompt is how soon a canceled Fetch must return; the machine may be busy.
const prompt = 2 * time.Second

func TestCancel(t *testing.T) {
	host := gitsrctest.New(t)
	repo := host.Repository("o/app")
	many := make(map[string]string)
	for i := range 3000 {
		many[fmt.Sprintf("%d/%d", i%100, i)] = "x"
	}
	many["zeros"] = string(make([]byte, 128<<20)) // takes a while to unpack
	repo.Commit("main", files(many))
	git(t, repo.Dir, "repack", "-adq")
	s := newSource(t, host, nil)
	ref, err := s.Resolve(t.Context(), app, "main", gitsrc.Token{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	cause := errors.New("the client went away")
	try := func(t *testing.T, reached func(dir string) bool) {
		t.Helper()
		ctx, cancel := context.WithCancelCause(t.Context())
		dir := t.TempDir()
		result := make(chan error, 1)
		go func() {
			_, err := s.Fetch(ctx, app, ref, gitsrc.Token{}, dir)
			result <- err
		}()
		for !reached(dir) {
			select {
			case err := <-result:
				t.Fatalf("Fetch = %v before it was canceled", err)
			case <-time.After(time.Millisecond):
			}
		}
		begin := time.Now()
		cancel(cause)
		if err := <-result; !errors.Is(err, cause) {
			t.Errorf("Fetch = %v, want the cause", err)
		}
		took := time.Since(begin)
		t.Logf("canceled in %v", took)
		if took > prompt {
			t.Errorf("it took %v to cancel", took)
		}
		wantEmpty(t, dir)
	}
	t.Run("writing", func(t *testing.T) {
		try(t, func(dir string) bool { _, err := os.Stat(filepath.Join(dir, "0", "0")); return err == nil })
	})
	t.Run("unpacking", func(t *testing.T) {
		try(t, func(dir string) bool {
			_, err := os.Stat(filepath.Join(dir, ".git", "objects", "pack", "incoming"))
			return err == nil
		})
	})
	for name, method := range map[string]string{"listing": http.MethodGet, "asking": http.MethodPost} {
		t.Run(name, func(t *testing.T) {
			arrived := make(chan struct{}, 1)
			host.Intercept(func(_ http.ResponseWriter, r *http.Request) bool {
				if r.Method == method {
					arrived <- struct{}{}
					<-r.Context().Done()
					return true
				}
				return false
			})
			defer host.Intercept(nil)
			try(t, func(string) bool {
				select {
				case <-arrived:
					return true
				default:
					return false
				}
			})
		})
	}
}
