package recipe

import (
	"bytes"
	"io/fs"
	"os"
	"path"
	"strings"
)

// assembles reports whether the repository has a say in what the assembler
// reads, or could not be looked through.
//
// Two things are missing from the key under which the go command keeps an
// assembled package. What its files #include, such as a textflag.h of one's own
// in a vendored directory, is not in it, unless that is a header which is
// built for the target; and a module that stands in for another one goes by the
// other one's name. So whoever writes one of these could make the object that
// others find for a package that is not theirs. All that a verified module
// includes is in that module.
func assembles(tree *os.Root) bool {
	s := &scanner{tree: tree}
	gomod, err := s.read("go.mod")
	if err != nil || len(gomod) == maxFile || bytes.Contains(gomod, []byte("replace")) {
		return true
	}
	return s.assembles(".", 0)
}

// assembles reports whether there is a file to assemble in dir or below it, or
// a link out of the tree, which may lead to one.
func (s *scanner) assembles(dir string, depth int) bool {
	entries, err := s.readDir(dir)
	if err != nil || depth > maxDepth {
		return true
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		if strings.HasSuffix(name, ".s") {
			return true
		}
		if e.Type()&fs.ModeSymlink != 0 {
			if _, err := s.tree.Stat(name); err != nil {
				return true
			}
		}
		if e.IsDir() && e.Name() != ".git" && s.assembles(name, depth+1) {
			return true
		}
	}
	return false
}
