package gitsrc

import (
	"path"
	"strings"
)

const (
	ignoreFile = ".gitignore"

	// maxIgnoreBytes bounds all .gitignore files of a tree together. Their
	// patterns are kept while the build runs.
	maxIgnoreBytes = 512 << 10
)

// ignores are the patterns of all .gitignore files of a tree, by the
// directory in which each stands; "" is the root.
type ignores map[string][]ignorePattern

// add reads the .gitignore file of dir.
func (ig ignores) add(dir string, content []byte) {
	text := strings.TrimPrefix(string(content), "\ufeff")
	for line := range strings.SplitSeq(text, "\n") {
		if p, ok := parseIgnore(strings.TrimSuffix(line, "\r")); ok {
			ig[dir] = append(ig[dir], p)
		}
	}
}

// match decides as gitignore(5) says: a path is ignored if a directory above
// it is, or else by the last pattern that matches it, in the deepest
// .gitignore file that has such a pattern.
func (ig ignores) match(name string, isDir bool) bool {
	for i := range len(name) {
		if name[i] == '/' && ig.excluded(name[:i], true) {
			return true
		}
	}
	return ig.excluded(name, isDir)
}

func (ig ignores) excluded(name string, isDir bool) bool {
	for dir := name; dir != ""; {
		i := strings.LastIndexByte(dir, '/')
		below := name[i+1:]
		dir = name[:max(i, 0)]
		patterns := ig[dir]
		for i := len(patterns) - 1; i >= 0; i-- {
			if patterns[i].match(below, isDir) {
				return !patterns[i].negated
			}
		}
	}
	return false
}

// An ignorePattern is one line of a .gitignore file.
type ignorePattern struct {
	negated  bool
	dirOnly  bool
	anywhere bool // without a slash: matches the last element of a path
	glob     glob
}

// parseIgnore reads a line, and reports whether there is a pattern in it.
func parseIgnore(line string) (ignorePattern, bool) {
	var p ignorePattern
	if strings.HasPrefix(line, "#") {
		return p, false
	}
	line = trimSpaces(line)
	line, p.negated = strings.CutPrefix(line, "!")
	line, p.dirOnly = strings.CutSuffix(line, "/")
	p.anywhere = !strings.Contains(line, "/")
	line = strings.TrimPrefix(line, "/")
	if line == "" {
		return p, false
	}
	var ok bool
	p.glob, ok = parseGlob(line)
	return p, ok
}

// trimSpaces removes the spaces at the end of a line, but for one that a
// backslash precedes.
func trimSpaces(line string) string {
	end := 0
	for i := 0; i < len(line); i++ {
		switch line[i] {
		case ' ':
		case '\\':
			i++
			end = min(i+1, len(line))
		default:
			end = i + 1
		}
	}
	return line[:end]
}

func (p ignorePattern) match(name string, isDir bool) bool {
	if p.dirOnly && !isDir {
		return false
	}
	if p.anywhere {
		name = path.Base(name)
	}
	return p.glob.match(name)
}
