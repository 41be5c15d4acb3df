package gitsrc

import (
	"bytes"
	"encoding/hex"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
)

const (
	maxNameBytes = 255  // of one file name: NAME_MAX of Linux
	maxPathBytes = 2048 // leaves half of PATH_MAX to where the tree lies
	maxLinkBytes = 4095 // of a symbolic link's target: PATH_MAX without its NUL
)

// A commit is what Cargo needs of a commit object.
type commit struct {
	tree    plumbing.Hash
	parents int
	time    time.Time // the committer's
}

// parseCommit reads a commit object, whose header is lines of a key and a
// value up to the first empty line.
func parseCommit(b []byte) (commit, error) {
	var c commit
	head, _, _ := bytes.Cut(b, []byte("\n\n"))
	for i, line := range strings.Split(string(head), "\n") {
		key, value, _ := strings.Cut(line, " ")
		switch {
		case i == 0:
			id, ok := parseID(value)
			if key != "tree" || !ok {
				return commit{}, broken("a commit without a tree")
			}
			c.tree = id
		case key == "parent":
			c.parents++
		case key == "committer" && c.time.IsZero():
			seconds, ok := parseWhen(value)
			if !ok {
				return commit{}, refuse("its commit has no readable time")
			}
			c.time = time.Unix(seconds, 0).UTC()
		}
	}
	if c.time.IsZero() {
		return commit{}, refuse("its commit has no time")
	}
	return c, nil
}

// parseWhen reads the seconds of "Name <mail> SECONDS ZONE".
func parseWhen(who string) (int64, bool) {
	fields := strings.Fields(who[strings.LastIndexByte(who, '>')+1:])
	if len(fields) == 0 {
		return 0, false
	}
	// A year of five digits does not fit where times go: JSON and archives.
	const year9999 = 253402300799
	seconds, err := strconv.ParseInt(fields[0], 10, 64)
	return seconds, err == nil && seconds >= 0 && seconds <= year9999
}

// parseTag reads what a tag object points to.
func parseTag(b []byte) (plumbing.Hash, error) {
	line, _, _ := strings.Cut(string(b[:min(len(b), 64)]), "\n")
	value, ok := strings.CutPrefix(line, "object ")
	id, valid := parseID(value)
	if !ok || !valid {
		return plumbing.ZeroHash, broken("a tag of nothing")
	}
	return id, nil
}

func parseID(s string) (plumbing.Hash, bool) {
	raw, err := hex.DecodeString(s)
	if err != nil || len(raw) != len(plumbing.Hash{}) {
		return plumbing.ZeroHash, false
	}
	return plumbing.Hash(raw), true
}

// A treeEntry is one name in a tree object.
type treeEntry struct {
	mode filemode.FileMode // Dir, Regular, Executable, Symlink or Submodule
	name string
	id   plumbing.Hash
}

// nextEntry reads the first entry of a tree object and returns the rest. The
// entry can be created in a directory as it is; what cannot is refused.
func nextEntry(b []byte) (e treeEntry, rest []byte, err error) {
	mode, b, ok := bytes.Cut(b, []byte{' '})
	name, b, ok2 := bytes.Cut(b, []byte{0})
	if !ok || !ok2 || len(b) < len(e.id) {
		return treeEntry{}, nil, broken("a tree that ends early")
	}
	e.name = string(name)
	copy(e.id[:], b)
	switch string(mode) {
	case "40000", "040000": // the second was written by old tools
		e.mode = filemode.Dir
	case "100644", "100664": // the second is git's past
		e.mode = filemode.Regular
	case "100755":
		e.mode = filemode.Executable
	case "120000":
		e.mode = filemode.Symlink
	case "160000":
		e.mode = filemode.Submodule
	default:
		return treeEntry{}, nil, refuse("it holds %q, whose mode is unknown", e.name)
	}
	return e, b[len(e.id):], checkName(e.name)
}

// checkName refuses what git refuses to check out: names that are no names,
// and those that some file system takes for .git, backslash as a separator
// included. All of them would be plain names here, but none is honest.
func checkName(name string) error {
	switch {
	case name == "":
		return refuse("it holds a file without a name")
	case name == "." || name == "..":
		return refuse("it holds a file named %q", name)
	case strings.ContainsAny(name, "/\x00"):
		return refuse("it holds the file name %q, which has a slash in it", name)
	case len(name) > maxNameBytes:
		return refuse("it holds a file name of %d bytes; %d are the most", len(name), maxNameBytes)
	}
	for part := range strings.SplitSeq(name, `\`) {
		if part == ".." || isDotGit(part) {
			return refuse("it holds the file name %q, which some systems take for .git or a directory above", name)
		}
	}
	return nil
}

// isDotGit reports whether name means .git on ext4 (as it is), on NTFS (any
// case, the short name git~1, trailing dots and spaces, alternate streams) or
// on HFS+ (any case, code points that it ignores).
func isDotGit(name string) bool {
	ntfs, _, _ := strings.Cut(name, ":")
	ntfs = strings.TrimRight(ntfs, ". ")
	if strings.EqualFold(ntfs, ".git") || strings.EqualFold(ntfs, "git~1") {
		return true
	}
	hfs := strings.Map(func(r rune) rune {
		if ignoredByHFS(r) {
			return -1
		}
		return r
	}, name)
	return utf8.ValidString(name) && strings.EqualFold(hfs, ".git")
}

// ignoredByHFS reports whether HFS+ leaves r out when it compares names. See
// next_hfs_char in git's utf8.c.
func ignoredByHFS(r rune) bool {
	return 0x200c <= r && r <= 0x200f || 0x202a <= r && r <= 0x202e || 0x206a <= r && r <= 0x206f || r == 0xfeff
}
