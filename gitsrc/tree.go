package gitsrc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/format/index"
)

// A Tree is what Fetch wrote. Its methods answer from the commit, not from the
// directory, which a build may have changed; they are safe for concurrent use.
type Tree struct {
	Commit string
	Time   time.Time // the committer's, in UTC
	Files  int       // files and symbolic links
	Bytes  int64     // of the files

	tracked map[string]struct{}
	ignores ignores
}

// Tracked reports whether the commit has a file or a symbolic link at a
// slash-separated path.
func (t *Tree) Tracked(path string) bool {
	_, ok := t.tracked[path]
	return ok
}

// Ignored reports whether git would ignore a new file, or a new directory, at
// a slash-separated path, by the .gitignore files of the commit.
func (t *Tree) Ignored(path string, isDir bool) bool { return t.ignores.match(path, isDir) }

// output makes files and directories with their owner and exactly their mode,
// whatever the umask.
type output struct{ owner Owner }

func (o output) create(root *os.Root, name string, mode fs.FileMode) (*os.File, error) {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return nil, err
	}
	if o.owner != (Owner{}) {
		err = f.Chown(o.owner.UID, o.owner.GID)
	}
	if err = errors.Join(err, f.Chmod(mode)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (o output) mkdir(root *os.Root, name string) error {
	if err := root.Mkdir(name, 0o755); err != nil {
		return err
	}
	return errors.Join(o.chown(root, name), root.Chmod(name, 0o755))
}

func (o output) chown(root *os.Root, name string) error {
	if o.owner == (Owner{}) {
		return nil
	}
	return root.Lchown(name, o.owner.UID, o.owner.GID)
}

// A checkout writes the tree of one commit. Everything goes through os.Root,
// by one name at a time, into directories that it has made itself; symbolic
// links are made when nothing else is left to be written.
type checkout struct {
	output
	ctx    context.Context // of the one Fetch that this value lives in
	pack   *pack
	root   *os.Root
	mtime  time.Time
	limits Limits

	tree    *Tree
	entries []*index.Entry
	dirs    []string // every directory but the root
	links   []link
	names   int   // files and directories so far
	ignored int64 // bytes of .gitignore files so far
}

type link struct {
	path, target string
	entry        *index.Entry
}

// write writes the directory tree whose object is id.
func (c *checkout) write(id plumbing.Hash) error {
	if err := c.dir(c.root, "", id, 0); err != nil {
		return err
	}
	for _, l := range c.links {
		if err := c.link(l); err != nil {
			return err
		}
	}
	// Last, because what was made in a directory has changed its time.
	for _, dir := range c.dirs {
		if err := c.root.Chtimes(dir, c.mtime, c.mtime); err != nil {
			return err
		}
	}
	return errors.Join(c.chown(c.root, "."), c.root.Chtimes(".", c.mtime, c.mtime))
}

// dir writes what the tree object id lists into root; prefix is "" or the path
// of root with a slash.
func (c *checkout) dir(root *os.Root, prefix string, id plumbing.Hash, depth int) error {
	if depth > c.limits.PathDepth {
		return refuse("it has directories deeper than %d levels", c.limits.PathDepth)
	}
	listing, err := c.object(id, plumbing.TreeObject)
	if err != nil {
		return err
	}
	rest, err := c.pack.bytes(c.ctx, listing)
	if err != nil {
		return err
	}
	seen := make(map[string]bool)
	for len(rest) > 0 {
		var e treeEntry
		if e, rest, err = nextEntry(rest); err != nil {
			return err
		}
		path := prefix + e.name
		if seen[e.name] {
			return refuse("it holds %q twice", path)
		}
		seen[e.name] = true
		if c.names++; c.names > c.limits.Files {
			return c.pack.tooManyFiles()
		}
		if len(path) > maxPathBytes {
			return refuse("it holds a path of more than %d bytes", maxPathBytes)
		}
		if err := c.entry(root, path, e, depth); err != nil {
			return err
		}
	}
	return nil
}

func (c *checkout) entry(root *os.Root, path string, e treeEntry, depth int) error {
	switch e.mode {
	case filemode.Dir:
		return c.subdir(root, path, e, depth)
	case filemode.Submodule:
		c.index(path, e, 0)
		return c.mkdirAt(root, path, e.name)
	case filemode.Symlink:
		return c.symlink(path, e)
	}
	return c.file(root, path, e)
}

func (c *checkout) mkdirAt(root *os.Root, path, name string) error {
	if err := c.mkdir(root, name); err != nil {
		return err
	}
	c.dirs = append(c.dirs, path)
	return nil
}

func (c *checkout) subdir(root *os.Root, path string, e treeEntry, depth int) error {
	if err := c.mkdirAt(root, path, e.name); err != nil {
		return err
	}
	sub, err := root.OpenRoot(e.name)
	if err != nil {
		return err
	}
	return errors.Join(c.dir(sub, path+"/", e.id, depth+1), sub.Close())
}

func (c *checkout) file(root *os.Root, path string, e treeEntry) error {
	blob, err := c.object(e.id, plumbing.BlobObject)
	if err != nil {
		return err
	}
	if err := c.account(blob.size); err != nil {
		return err
	}
	if e.name == ignoreFile {
		if err := c.ignore(path, blob); err != nil {
			return err
		}
	}
	mode := fs.FileMode(0o644)
	if e.mode == filemode.Executable {
		mode = 0o755
	}
	f, err := c.create(root, e.name, mode)
	if err != nil {
		return err
	}
	if err := errors.Join(c.pack.writeTo(c.ctx, f, blob), f.Close()); err != nil {
		return fmt.Errorf("write %q: %w", path, err)
	}
	c.index(path, e, blob.size)
	c.tree.tracked[path] = struct{}{}
	c.tree.Files++
	return root.Chtimes(e.name, c.mtime, c.mtime)
}

// account counts n bytes of a file. The same object may be in a tree a million times.
func (c *checkout) account(n int64) error {
	if n > c.limits.TreeBytes-c.tree.Bytes {
		return refuse("its files hold more than %s (--source-limit)", size(c.limits.TreeBytes))
	}
	c.tree.Bytes += n
	return nil
}

func (c *checkout) ignore(path string, blob *object) error {
	if c.ignored += blob.size; c.ignored > maxIgnoreBytes {
		return refuse("its .gitignore files hold more than %s", size(maxIgnoreBytes))
	}
	content, err := c.pack.bytes(c.ctx, blob)
	if err != nil {
		return err
	}
	c.tree.ignores.add(path[:max(len(path)-len(ignoreFile)-1, 0)], content)
	return nil
}

// symlink notes a symbolic link for the end.
func (c *checkout) symlink(path string, e treeEntry) error {
	blob, err := c.object(e.id, plumbing.BlobObject)
	if err != nil {
		return err
	}
	if blob.size == 0 || blob.size > maxLinkBytes {
		return refuse("its symbolic link %q has a target of %d bytes; 1 to %d are possible", path, blob.size, maxLinkBytes)
	}
	target, err := c.pack.bytes(c.ctx, blob)
	if err != nil {
		return err
	}
	for _, b := range target {
		if b == 0 {
			return refuse("its symbolic link %q has a NUL in its target", path)
		}
	}
	c.links = append(c.links, link{path, string(target), c.index(path, e, blob.size)})
	c.tree.tracked[path] = struct{}{}
	c.tree.Files++
	return nil
}

// link makes a symbolic link, its target exactly as it is stored.
func (c *checkout) link(l link) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	if err := errors.Join(c.root.Symlink(l.target, l.path), c.chown(c.root, l.path)); err != nil {
		return err
	}
	info, err := c.root.Lstat(l.path)
	if err != nil {
		return err
	}
	l.entry.ModifiedAt = info.ModTime() // os.Root cannot set the time of a link
	return nil
}

// index notes a path for git's index.
func (c *checkout) index(path string, e treeEntry, size int64) *index.Entry {
	entry := &index.Entry{Name: path, Mode: e.mode, Hash: e.id, Size: uint32(size), ModifiedAt: c.mtime}
	c.entries = append(c.entries, entry)
	return entry
}

func (c *checkout) object(id plumbing.Hash, kind plumbing.ObjectType) (*object, error) {
	if err := c.ctx.Err(); err != nil {
		return nil, err
	}
	return c.pack.object(id, kind)
}

// object finds an object that must be there.
func (p *pack) object(id plumbing.Hash, kind plumbing.ObjectType) (*object, error) {
	o, ok := p.byID[id]
	if !ok {
		return nil, broken(fmt.Sprintf("it lacks the %v %v", kind, id))
	}
	if o.kind != kind {
		return nil, broken(fmt.Sprintf("%v is a %v where a %v belongs", id, o.kind, kind))
	}
	return o, nil
}
