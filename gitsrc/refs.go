package gitsrc

import (
	"encoding/hex"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
)

const (
	tagPrefix    = "refs/tags/"
	branchPrefix = "refs/heads/"
)

// A tip is one tag or branch of a listing.
type tip struct {
	name   string
	id     plumbing.Hash // what the ref points to: for an annotated tag, the tag object
	commit plumbing.Hash // id, peeled
}

// tips are the tags and branches of a repository, sorted by name. Other refs
// are left out: refs/pull is a stranger's, and HEAD is a branch already.
type tips []tip

func newTips(list *packp.AdvRefs) tips {
	var out tips
	for name, id := range list.References {
		if !validRef(name) || id.IsZero() {
			continue
		}
		commit, ok := list.Peeled[name]
		if !ok {
			commit = id
		}
		out = append(out, tip{strings.Clone(name), id, commit})
	}
	slices.SortFunc(out, func(a, b tip) int { return strings.Compare(a.name, b.name) })
	return out
}

func (ts tips) find(name string) (tip, bool) {
	i, ok := slices.BinarySearchFunc(ts, name, func(t tip, name string) int { return strings.Compare(t.name, name) })
	if !ok {
		return tip{}, false
	}
	return ts[i], true
}

// resolve finds what a version means: a tag, else a branch, else a full commit
// id that is the tip of a tag or, failing that, of a branch. Any other commit
// is none: a host serves commits of strangers' forks through the parent.
func (ts tips) resolve(version string) (tip, bool) {
	for _, prefix := range []string{tagPrefix, branchPrefix} {
		if t, ok := ts.find(prefix + version); ok {
			return t, true
		}
	}
	raw, err := hex.DecodeString(version)
	if err != nil || len(raw) != len(plumbing.Hash{}) {
		return tip{}, false
	}
	for _, prefix := range []string{tagPrefix, branchPrefix} {
		for _, t := range ts {
			if t.commit == plumbing.Hash(raw) && strings.HasPrefix(t.name, prefix) {
				return t, true
			}
		}
	}
	return tip{}, false
}

// bytes is about what ts take in memory.
func (ts tips) bytes() int64 {
	n := int64(0)
	for _, t := range ts {
		n += int64(len(t.name)) + 64
	}
	return n
}

// validRef reports whether name is a tag or a branch by the rules of
// git-check-ref-format(1).
func validRef(name string) bool {
	if !strings.HasPrefix(name, tagPrefix) && !strings.HasPrefix(name, branchPrefix) {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part[0] == '.' || strings.HasSuffix(part, ".lock") {
			return false
		}
	}
	return !strings.HasSuffix(name, ".") && !strings.Contains(name, "..") && !strings.Contains(name, "@{") &&
		!strings.ContainsAny(name, " ~^:?*[\\") && !hasControl(name)
}

// plainRef reports whether a valid ref's name is as harmless as a version that
// Cargo accepts: git itself allows names that are shell code.
func plainRef(name string) bool {
	for _, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("._+/-", c) >= 0:
		default:
			return false
		}
	}
	return true
}
