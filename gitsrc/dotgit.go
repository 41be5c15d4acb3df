package gitsrc

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/go-git/go-git/v5/plumbing/format/index"
)

// gitConfig makes git compare what holds in a container too, where users have
// other numbers: sizes and modification times, in whole seconds.
const gitConfig = `[core]
	repositoryformatversion = 0
	filemode = true
	bare = false
	checkStat = minimal
`

const packDir = "objects/pack"

// A dotGit is the .git directory beside a tree: a shallow repository of one
// commit, without a remote. Makefiles ask it for versions; Cargo never reads it.
type dotGit struct {
	output
	root *os.Root
	file *os.File // the pack, while it arrives
}

func newDotGit(root *os.Root, out output) (*dotGit, error) {
	if err := out.mkdir(root, ".git"); err != nil {
		return nil, err
	}
	sub, err := root.OpenRoot(".git")
	if err != nil {
		return nil, err
	}
	g := &dotGit{output: out, root: sub}
	for _, dir := range []string{"objects", packDir, "objects/info", "refs", "refs/heads", "refs/tags"} {
		if err := g.mkdir(sub, dir); err != nil {
			return nil, errors.Join(err, sub.Close())
		}
	}
	// Not through create: the pack is read again, and git's packs are read-only.
	g.file, err = sub.OpenFile(packDir+"/incoming", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return nil, errors.Join(err, sub.Close())
	}
	return g, nil
}

func (g *dotGit) Close() error { return errors.Join(g.file.Close(), g.root.Close()) }

// finish makes the repository of what has arrived: t at commit.
func (g *dotGit) finish(p *pack, t tip, c commit, entries []*index.Entry) error {
	name := packDir + "/pack-" + p.checksum.String()
	if err := g.root.Rename(packDir+"/incoming", name+".pack"); err != nil {
		return err
	}
	if err := errors.Join(g.chown(g.root, name+".pack"), g.file.Chmod(0o444)); err != nil {
		return err
	}
	if err := g.write(name+".idx", 0o444, p.index); err != nil {
		return err
	}
	for file, content := range refFiles(t, c) {
		err := g.write(file, 0o644, func(w io.Writer) error {
			_, err := io.WriteString(w, content)
			return err
		})
		if err != nil {
			return err
		}
	}
	return g.write("index", 0o644, func(w io.Writer) error {
		return index.NewEncoder(w).Encode(&index.Index{Version: 2, Entries: entries})
	})
}

// refFiles are the small files of a repository that is at t. The ref stands in
// packed-refs, so that its name is no path, and only if it is harmless.
func refFiles(t tip, c commit) map[string]string {
	files := map[string]string{
		"config": gitConfig,
		"HEAD":   t.commit.String() + "\n",
	}
	if c.parents > 0 {
		files["shallow"] = t.commit.String() + "\n"
	}
	if !plainRef(t.name) {
		return files
	}
	packed := fmt.Sprintf("# pack-refs with: peeled fully-peeled sorted \n%v %s\n", t.id, t.name)
	if t.id != t.commit {
		packed += fmt.Sprintf("^%v\n", t.commit)
	}
	files["packed-refs"] = packed
	if strings.HasPrefix(t.name, branchPrefix) {
		files["HEAD"] = "ref: " + t.name + "\n"
	}
	return files
}

func (g *dotGit) write(name string, mode fs.FileMode, content func(io.Writer) error) error {
	f, err := g.create(g.root, name, mode)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	return errors.Join(content(w), w.Flush(), f.Close())
}
