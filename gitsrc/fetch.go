package gitsrc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/sideband"

	"github.com/monochromegane/cargo/build"
)

// maxTagChain is how many tags may point to each other before a commit comes.
const maxTagChain = 5

// Fetch writes the tree of ref into dir, an existing empty directory, and
// beside it a shallow .git of that one commit. tok is used only where ref is
// not Public. Files are as the commit stores them: 0644, or 0755 if executable;
// symbolic links as they are, absolute ones too; an empty directory for each
// submodule; LFS pointers stay pointers; names that differ in case only stay
// apart. Whoever reads dir must not follow links out of it.
//
// Every file and directory has the time of the commit (held between 1980 and
// now), with a fraction of the second that is the commit's own: the same source
// is the same bytes in every archive made of it that counts in seconds, git
// sees nothing modified, and make finds no file older than another, so that
// generated files that are committed are not made again by chance.
//
// On error dir is left empty. The error is ErrNotFound, ErrMoved, wraps
// ErrUnavailable, is a *RefusedError, wraps the cause of ctx, or is a fault of
// the disk.
func (s *Source) Fetch(ctx context.Context, repo build.Repository, ref Ref, tok Token, dir string) (*Tree, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.limits.Timeout, slowError(s.limits.Timeout))
	defer cancel() // also ends a response that was not read to its end
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the workspace: %w", err)
	}
	defer root.Close()
	if err := checkEmpty(root); err != nil {
		return nil, err
	}
	tree, err := s.fetch(ctx, repo, ref, tok, root)
	if err != nil {
		if ctx.Err() != nil {
			err = s.ended(ctx, repo)
		}
		if left := empty(root); left != nil {
			err = errors.Join(err, left)
		}
		return nil, err // ErrNotFound stays as it is
	}
	return tree, nil
}

func (s *Source) fetch(ctx context.Context, repo build.Repository, ref Ref, tok Token, root *os.Root) (*Tree, error) {
	if ref.Public {
		tok = Token{} // or what became private since would be taken for public
	}
	t, incoming, err := s.open(ctx, repo, ref, tok)
	if err != nil {
		return nil, err
	}
	defer incoming.Close()
	out := output{s.owner}
	git, err := newDotGit(root, out)
	if err != nil {
		return nil, err
	}
	defer git.Close()
	wire := &wireReader{r: incoming}
	p, err := readPack(ctx, wire, git.file, s.limits)
	if err != nil {
		return nil, s.packError(ctx, repo, err, wire.err)
	}
	head, err := p.commit(ctx, t)
	if err != nil {
		return nil, err
	}
	c := &checkout{
		output: out, ctx: ctx, pack: p, root: root, limits: s.limits,
		mtime: fileTime(head.time, t.commit, time.Now()),
		tree:  &Tree{Commit: ref.Commit, Time: head.time, tracked: make(map[string]struct{}), ignores: make(ignores)},
	}
	if err := c.write(head.tree); err != nil {
		return nil, err
	}
	if err := git.finish(p, t, head, c.entries); err != nil {
		return nil, err
	}
	return c.tree, nil
}

// open asks for the one commit of ref, and returns the pack as it comes.
func (s *Source) open(ctx context.Context, repo build.Repository, ref Ref, tok Token) (tip, io.ReadCloser, error) {
	session, list, err := s.connect(ctx, repo, tok)
	if err != nil {
		return tip{}, nil, err
	}
	t, ok := newTips(list).find(ref.Name)
	if !ok || t.commit.String() != ref.Commit {
		return tip{}, nil, ErrMoved
	}
	if !list.Capabilities.Supports(capability.Shallow) {
		return tip{}, nil, refuse("its host cannot serve a single commit (no shallow clones)")
	}
	req := packp.NewUploadPackRequestFromCapabilities(list.Capabilities)
	req.Wants = []plumbing.Hash{t.id}
	req.Depth = packp.DepthCommits(1)
	_ = req.Capabilities.Set(capability.Shallow) // takes no argument: cannot fail
	if list.Capabilities.Supports(capability.NoProgress) {
		_ = req.Capabilities.Set(capability.NoProgress)
	}
	resp, err := session.UploadPack(ctx, req)
	if err != nil {
		if strings.Contains(err.Error(), "not our ref") { // git's words; go-git keeps no type
			return tip{}, nil, ErrMoved // between the two requests
		}
		return tip{}, nil, s.classify(ctx, repo, err)
	}
	var band sideband.Type
	switch {
	case req.Capabilities.Supports(capability.Sideband64k):
		band = sideband.Sideband64k
	case req.Capabilities.Supports(capability.Sideband):
		band = sideband.Sideband
	default:
		return t, resp, nil
	}
	return t, struct {
		io.Reader
		io.Closer
	}{sideband.NewDemuxer(band, resp), resp}, nil
}

// A wireReader remembers what went wrong in reading, but for the plain end:
// parsers on top of it may hide it.
type wireReader struct {
	r   io.Reader
	err error
}

func (w *wireReader) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if err != nil && err != io.EOF {
		w.err = err
	}
	return n, err
}

// packError says what a pack that cannot be used means: wireErr is what the
// connection said.
func (s *Source) packError(ctx context.Context, repo build.Repository, err, wireErr error) error {
	if _, ok := errors.AsType[*RefusedError](err); ok {
		return err
	}
	if _, ok := errors.AsType[*os.PathError](err); ok {
		return fmt.Errorf("keep the pack: %w", err)
	}
	switch {
	case wireErr != nil:
		return s.classify(ctx, repo, wireErr)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return s.classify(ctx, repo, err)
	}
	return broken(err.Error())
}

// commit is the commit of t: through the tag objects, if t is an annotated tag.
func (p *pack) commit(ctx context.Context, t tip) (commit, error) {
	id := t.id
	for range maxTagChain {
		o, ok := p.byID[id]
		if !ok {
			return commit{}, broken("it lacks what was asked for")
		}
		content, err := p.bytes(ctx, o)
		if err != nil {
			return commit{}, err
		}
		switch {
		case o.kind == plumbing.CommitObject && id == t.commit:
			return parseCommit(content)
		case o.kind != plumbing.TagObject:
			return commit{}, refuse("%s does not point to a commit", t.name)
		}
		if id, err = parseTag(content); err != nil {
			return commit{}, err
		}
	}
	return commit{}, refuse("%s is a tag of a tag of a tag, and so on", t.name)
}

// fileTime is the time that every file and directory of a tree gets: the
// second is the commit's, since make and zip are at odds with before 1980 and
// with times to come; the fraction is made of the commit's id. It is there for
// the go command, which keeps an index of each package directory (imports,
// build constraints) in GOCACHE under the names, sizes and times of its files.
// Commits of the same second are common, rebased or written by a script: where
// one changes an import to another of the same length, it would be built with
// the imports of the other. make sees equal times, and git compares seconds
// only (gitConfig). The go command keeps no index of files younger than 2 s.
func fileTime(commit time.Time, id plumbing.Hash, now time.Time) time.Time {
	t := commit.Truncate(time.Second)
	if first := time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC); t.Before(first) {
		t = first
	}
	if this := now.Truncate(time.Second); t.After(this) {
		t = this
	}
	t = t.Add(time.Duration(binary.BigEndian.Uint32(id[:]) % 1e9))
	if t.After(now) { // a second earlier, because now itself could be the time of two commits
		t = t.Add(-time.Second)
	}
	return t
}

func checkEmpty(root *os.Root) error {
	dir, err := root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(1)
	if len(names) > 0 {
		return fmt.Errorf("the workspace %s is not empty", root.Name())
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// empty removes everything in root. It does not stop for a context: what is
// left behind would be found by the next build.
func empty(root *os.Root) error {
	dir, err := root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	for _, name := range names {
		err = errors.Join(err, root.RemoveAll(name))
	}
	return err
}
