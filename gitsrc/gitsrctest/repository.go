package gitsrctest

import (
	"bytes"
	"compress/zlib"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

// Epoch is the time of a repository's first commit; each later one is a minute younger.
var Epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// A Repository is a bare repository into which a test writes objects and refs
// as it likes, hostile ones too: nothing is checked. A failure ends the test.
type Repository struct {
	Dir string // the bare repository

	t       testing.TB
	commits int
}

// Files is a tree of plain files: path to content. Use an [fstest.MapFS] for
// executables and symbolic links (Data is the target).
func Files(files map[string]string) fs.FS {
	tree := make(fstest.MapFS, len(files))
	for path, content := range files {
		tree[path] = &fstest.MapFile{Data: []byte(content), Mode: 0o644}
	}
	return tree
}

// Commit makes tree the content of branch, in a commit on top of what the
// branch was, and returns the commit's id.
func (r *Repository) Commit(branch string, tree fs.FS) string {
	r.t.Helper()
	var parents []string
	if parent := r.Ref("refs/heads/" + branch); parent != "" {
		parents = []string{parent}
	}
	id := r.CommitTree(r.WriteTree(tree), parents...)
	r.SetRef("refs/heads/"+branch, id)
	return id
}

// CommitTree writes a commit of a tree, and moves no branch.
func (r *Repository) CommitTree(tree string, parents ...string) string {
	r.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "tree %s\n", tree)
	for _, p := range parents {
		fmt.Fprintf(&b, "parent %s\n", p)
	}
	who := fmt.Sprintf("Test <test@example.com> %d +0000", Epoch.Add(time.Duration(r.commits)*time.Minute).Unix())
	fmt.Fprintf(&b, "author %s\ncommitter %s\n\ncommit %d\n", who, who, r.commits)
	r.commits++
	return r.Object("commit", []byte(b.String()))
}

// Tag sets a lightweight tag.
func (r *Repository) Tag(name, commit string) { r.t.Helper(); r.SetRef("refs/tags/"+name, commit) }

// Annotate sets an annotated tag of an object of a kind, such as "commit", and returns the id of the tag object.
func (r *Repository) Annotate(name, kind, object string) string {
	r.t.Helper()
	id := r.Object("tag", fmt.Appendf(nil, "object %s\ntype %s\ntag %s\ntagger Test <test@example.com> %d +0000\n\n%s\n",
		object, kind, name, Epoch.Unix(), name))
	r.SetRef("refs/tags/"+name, id)
	return id
}

// Ref is the id that a ref points to, "" if there is none.
func (r *Repository) Ref(name string) string {
	b, _ := os.ReadFile(filepath.Join(r.Dir, filepath.FromSlash(name)))
	return strings.TrimSpace(string(b))
}

// SetRef points a ref, by its full name, to an object; "" removes the ref.
func (r *Repository) SetRef(name, id string) {
	r.t.Helper()
	if id != "" {
		r.write(name, []byte(id+"\n"))
		return
	}
	if err := os.Remove(filepath.Join(r.Dir, filepath.FromSlash(name))); err != nil {
		r.t.Fatal(err)
	}
}

// WriteTree writes a file system as tree objects and returns the root's id.
func (r *Repository) WriteTree(tree fs.FS) string {
	r.t.Helper()
	entries, err := fs.ReadDir(tree, ".")
	if err != nil {
		r.t.Fatal(err)
	}
	var out []Entry
	for _, e := range entries {
		out = append(out, r.entry(tree, e))
	}
	slices.SortFunc(out, func(a, b Entry) int { return strings.Compare(a.sortKey(), b.sortKey()) })
	return r.Tree(out...)
}

func (r *Repository) entry(tree fs.FS, e fs.DirEntry) Entry {
	r.t.Helper()
	info, err := e.Info()
	if err != nil {
		r.t.Fatal(err)
	}
	if e.IsDir() {
		sub, err := fs.Sub(tree, e.Name())
		if err != nil {
			r.t.Fatal(err)
		}
		return Entry{ModeDir, e.Name(), r.WriteTree(sub)}
	}
	if info.Mode().Type() == fs.ModeSymlink {
		target, err := fs.ReadLink(tree, e.Name())
		if err != nil {
			r.t.Fatal(err)
		}
		return Entry{ModeSymlink, e.Name(), r.Object("blob", []byte(target))}
	}
	content, err := fs.ReadFile(tree, e.Name())
	if err != nil {
		r.t.Fatal(err)
	}
	mode := ModeFile
	if info.Mode()&0o100 != 0 {
		mode = ModeExecutable
	}
	return Entry{mode, e.Name(), r.Object("blob", content)}
}

// The modes of tree entries, as git writes them.
const (
	ModeFile       = "100644"
	ModeExecutable = "100755"
	ModeSymlink    = "120000"
	ModeDir        = "40000"
	ModeSubmodule  = "160000"
)

// An Entry is one entry of a tree object.
type Entry struct{ Mode, Name, ID string }

// sortKey orders entries as git does: a directory as if its name ended in a slash.
func (e Entry) sortKey() string {
	if e.Mode == ModeDir {
		return e.Name + "/"
	}
	return e.Name
}

// Tree writes one tree object of exactly these entries, in this order.
func (r *Repository) Tree(entries ...Entry) string {
	r.t.Helper()
	var b bytes.Buffer
	for _, e := range entries {
		id, err := hex.DecodeString(e.ID)
		if err != nil {
			r.t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %s\x00%s", e.Mode, e.Name, id)
	}
	return r.Object("tree", b.Bytes())
}

// Object writes a loose object of a kind (blob, tree, commit, tag) and returns its id.
func (r *Repository) Object(kind string, content []byte) string {
	r.t.Helper()
	raw := append(fmt.Appendf(nil, "%s %d\x00", kind, len(content)), content...)
	sum := sha1.Sum(raw)
	id := hex.EncodeToString(sum[:])
	name := "objects/" + id[:2] + "/" + id[2:]
	if _, err := os.Stat(filepath.Join(r.Dir, filepath.FromSlash(name))); err == nil {
		return id
	}
	var b bytes.Buffer
	z, _ := zlib.NewWriterLevel(&b, zlib.BestSpeed) // the level is valid, and writing to memory
	_, _ = z.Write(raw)                             // cannot fail
	_ = z.Close()
	r.write(name, b.Bytes())
	return id
}

// write replaces a file of the repository in one step, as git does.
func (r *Repository) write(name string, content []byte) {
	r.t.Helper()
	path := filepath.Join(r.Dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(path+".tmp", content, 0o644); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		r.t.Fatal(err)
	}
}
