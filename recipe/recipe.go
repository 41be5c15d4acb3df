// Package recipe decides which commands turn a tree into binaries. It only
// reads the tree, which belongs to whoever wrote the repository; what it
// decides is run in containers by others.
package recipe

import (
	"fmt"
	"os"
	"regexp"
	"time"

	"github.com/monochromegane/cargo/build"
)

// A Plan is the commands of one build, to be run in order in the root of the
// tree until one fails.
type Plan struct {
	Name  string // make or go
	Steps []Step
	Env   []string // "KEY=value", on top of what every build gets
	Out   string   // "": the output is what was added to the tree; else it is all that is in this directory

	// RunsCode says that a step runs what the repository says, as make does.
	// go build with cgo off only compiles it.
	RunsCode bool

	// Assembles says that the repository has a say in what the assembler reads:
	// then an object that goes by the name of another's package may not be what
	// that would be.
	Assembles bool
}

// A Step is one command.
type Step struct {
	Args    []string     // never passed through a shell
	Failure build.Reason // what it means when it exits with a status other than 0
	Doing   string       // what it does, for the log and for "... failed": "building ./cmd/app"
}

// A Commit is what was fetched.
type Commit struct {
	ID   string    // full id
	Time time.Time // of the commit
}

// An Error says that no sense can be made of a tree. It is the fault of the
// repository or of the request.
type Error struct {
	Reason   build.Reason
	Sentence string // for the person who asked for the build
}

func (e *Error) Error() string { return e.Sentence }

func sourceError(format string, args ...any) error {
	return &Error{build.ReasonSource, fmt.Sprintf(format, args...)}
}

var commitPattern = regexp.MustCompile(`^[0-9a-f]{40}(?:[0-9a-f]{24})?$`)

// For plans the build of t in tree, as it was fetched at commit c. Where the
// recipe can say where its output goes, that is out, an absolute path in the
// container that need not exist.
//
// With [build.RecipeAuto] a Makefile in the root decides: the plan is make and
// its first target. Without one, and with [build.RecipeGo], it is go build of
// the main package in the root, or of every main package under cmd/ where the
// root has none. The error is an *Error if the tree is at fault.
func For(tree *os.Root, t build.Target, c Commit, out string) (Plan, error) {
	if err := t.Validate(); err != nil {
		return Plan{}, err
	}
	if !commitPattern.MatchString(c.ID) {
		return Plan{}, fmt.Errorf("plan the build of %s: commit %q is not a full id", t.Repository, c.ID)
	}
	if t.Recipe == build.RecipeAuto && hasMakefile(tree) {
		return Plan{
			Name:     "make",
			Steps:    []Step{{Args: []string{"make"}, Failure: build.ReasonExit, Doing: "running make"}},
			RunsCode: true,
		}, nil
	}
	return goPlan(tree, t, c, out)
}

// hasMakefile looks where make looks. A link may lead to the file, but not out
// of the tree.
func hasMakefile(tree *os.Root) bool {
	for _, name := range []string{"GNUmakefile", "makefile", "Makefile"} {
		if isFile(tree, name) {
			return true
		}
	}
	return false
}

func isFile(tree *os.Root, name string) bool {
	info, err := tree.Stat(name)
	return err == nil && info.Mode().IsRegular()
}
