package recipe

import (
	"bytes"
	"errors"
	"fmt"
	gobuild "go/build"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/mod/module"

	"github.com/monochromegane/cargo/build"
)

// Bounds of what is read to plan a build, above any repository that was looked at.
const (
	maxEntries = 100_000  // names in the directories that are looked into
	maxSource  = 64 << 20 // bytes of Go files
	maxFile    = 1 << 20  // bytes of one Go file; of a longer one only these
	maxParsed  = 4 << 20  // bytes of Go files that are parsed whole; nested deep, each takes a second
	maxDepth   = 32       // directories in each other
	maxMains   = 256      // programs of one repository
)

// mainPackages are the programs that a build of t makes: the one in the root,
// or all of those under cmd/ that belong to the root's module.
func mainPackages(tree *os.Root, t build.Target) ([]mainPackage, error) {
	s := newScanner(tree, t)
	root, err := s.program(".")
	if err != nil {
		return nil, err
	}
	if root != nil {
		return []mainPackage{*root}, nil
	}
	if isDir(tree, "cmd") {
		if err := s.walk("cmd", 1); err != nil {
			return nil, err
		}
	}
	if len(s.mains) > 0 {
		return s.mains, nil
	}
	looked := "there is no program to build for " + t.Platform() + " without cgo: Cargo looked for a main package in the root and in every directory under cmd/"
	if t.Recipe == build.RecipeAuto {
		looked = "there is no Makefile, and " + looked
	}
	if len(s.nested) > 0 {
		looked += "; " + s.nested[0] + " is a module of its own, which it leaves out"
	}
	return nil, sourceError("%s", looked)
}

// A scanner looks for programs, and counts what it reads.
type scanner struct {
	tree    *os.Root
	context gobuild.Context
	opened  []byte // what context reads next

	entries, source, parsed int

	mains  []mainPackage
	nested []string // directories with a go.mod of their own
}

func newScanner(tree *os.Root, t build.Target) *scanner {
	s := &scanner{tree: tree}
	s.context = gobuild.Context{
		GOOS: t.GOOS, GOARCH: t.GOARCH, Compiler: "gc",
		ReleaseTags: gobuild.Default.ReleaseTags,
		JoinPath:    path.Join,
		OpenFile:    func(string) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(s.opened)), nil },
	}
	return s
}

// walk adds the programs in dir and below it.
func (s *scanner) walk(dir string, depth int) error {
	if isFile(s.tree, path.Join(dir, "go.mod")) {
		s.nested = append(s.nested, dir)
		return nil
	}
	p, err := s.program(dir)
	if err != nil {
		return err
	}
	if p != nil {
		s.mains = append(s.mains, *p)
		if len(s.mains) > maxMains {
			return sourceError("there are more than %d main packages under cmd/", maxMains)
		}
	}
	if depth == maxDepth {
		return nil
	}
	entries, err := s.readDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() && holdsPackages(e.Name()) {
			if err := s.walk(path.Join(dir, e.Name()), depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// holdsPackages reports whether go looks into a directory of that name. A name
// that is no element of an import path could also mean something else on a
// command line: "..." and "@" do.
func holdsPackages(name string) bool {
	return !strings.HasPrefix(name, "_") && !strings.HasPrefix(name, ".") &&
		name != "testdata" && name != "vendor" && !strings.Contains(name, "...") &&
		module.CheckImportPath("x/"+name) == nil
}

// program is the program in dir, or nil if there is none for the target.
func (s *scanner) program(dir string) (*mainPackage, error) {
	entries, err := s.readDir(dir)
	if err != nil {
		return nil, err
	}
	var main [][]byte
	for _, e := range entries {
		name := e.Name()
		if e.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			continue
		}
		content, err := s.read(path.Join(dir, name))
		if err != nil {
			return nil, err
		}
		switch s.packageOf(name, content) {
		case "main":
			main = append(main, content)
		case "", "documentation": // go ignores them too
		default:
			return nil, nil
		}
	}
	if main == nil {
		return nil, nil
	}
	return &mainPackage{dir: dir, vars: s.variables(main)}, nil
}

// variables are the variables to set in a program; none for programs that come
// after more source than is parsed.
func (s *scanner) variables(main [][]byte) []string {
	for _, content := range main {
		s.parsed += len(content)
	}
	if s.parsed > maxParsed {
		return nil
	}
	return stringVars(main)
}

// packageOf is the name in the package clause of a file that is built for the
// target without cgo; "" for any other.
func (s *scanner) packageOf(name string, content []byte) string {
	s.opened = content
	if ok, err := s.context.MatchFile(".", name); err != nil || !ok {
		return ""
	}
	f, err := parser.ParseFile(token.NewFileSet(), "", content, parser.ImportsOnly)
	if err != nil {
		return ""
	}
	for _, i := range f.Imports {
		if i.Path.Value == `"C"` {
			return ""
		}
	}
	return f.Name.Name
}

func (s *scanner) readDir(dir string) ([]fs.DirEntry, error) {
	f, err := s.tree.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("plan the build: %w", err)
	}
	defer f.Close()
	entries, err := f.ReadDir(maxEntries - s.entries + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("plan the build: %w", err)
	}
	if s.entries += len(entries); s.entries > maxEntries {
		return nil, sourceError("there are more than %d files and directories in the root and under cmd/", maxEntries)
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, nil
}

// read is the beginning of a Go file; nil if it is no regular file, or a link
// out of the tree.
func (s *scanner) read(name string) ([]byte, error) {
	if !isFile(s.tree, name) {
		return nil, nil
	}
	f, err := s.tree.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("plan the build: %w", err)
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, fmt.Errorf("plan the build: %w", err)
	}
	if s.source += len(content); s.source > maxSource {
		return nil, sourceError("there is more than %d MiB of Go in the root and under cmd/", maxSource>>20)
	}
	return content, nil
}

// nestedModule is a directory near the root that has a go.mod, or "".
func nestedModule(tree *os.Root) (string, error) {
	const near = 3
	s := &scanner{tree: tree}
	level := []string{"."}
	for range near {
		var next []string
		for _, dir := range level {
			entries, err := s.readDir(dir)
			if err != nil {
				return "", err
			}
			for _, e := range entries {
				if !e.IsDir() || !holdsPackages(e.Name()) {
					continue
				}
				sub := path.Join(dir, e.Name())
				if isFile(tree, path.Join(sub, "go.mod")) {
					return sub, nil
				}
				next = append(next, sub)
			}
		}
		level = next
	}
	return "", nil
}

// isDir does not follow links: neither does go.
func isDir(tree *os.Root, name string) bool {
	info, err := tree.Lstat(name)
	return err == nil && info.IsDir()
}
