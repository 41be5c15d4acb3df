package recipe

import (
	"fmt"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/monochromegane/cargo/build"
)

// goPlan is Cargo's own recipe.
//
// GOWORK is off, as it is for go install: what a version needs stands in its
// go.mod, and a committed go.work may name directories that are not there.
func goPlan(tree *os.Root, t build.Target, c Commit, out string) (Plan, error) {
	plan := Plan{Name: "go", Env: []string{"GO111MODULE=on", "GOWORK=off"}, Out: out, Assembles: assembles(tree)}
	modules := true
	switch {
	case isFile(tree, "go.mod"):
	case isDir(tree, "vendor"):
		// The tree lies where GOPATH wants it, and vendor/ has what it imports.
		plan.Env[0], modules = "GO111MODULE=off", false
	default:
		nested, err := nestedModule(tree)
		if err != nil {
			return Plan{}, err
		}
		if nested != "" {
			return Plan{}, sourceError("there is no go.mod in the root of %s, only one in %s: Cargo builds the module in the root of a repository, or runs its Makefile", t.Repository, nested)
		}
		plan.Steps = []Step{
			{[]string{"go", "mod", "init", t.Repository.String()}, build.ReasonSource, "making a go.mod, because the repository has none"},
			{[]string{"go", "mod", "tidy"}, build.ReasonSource, "resolving the imports of a repository without go.mod"},
		}
	}
	mains, err := mainPackages(tree, t)
	if err != nil {
		return Plan{}, err
	}
	builds, err := goBuilds(mains, modules, t, c, out)
	if err != nil {
		return Plan{}, err
	}
	plan.Steps = append(plan.Steps, builds...)
	return plan, nil
}

// goBuilds has one go build for all packages that can share one: those with
// the same variables to set, because the linker refuses -X for a variable of
// another type, and with a name of their own, because go build lets binaries
// of one name overwrite each other without a word.
func goBuilds(mains []mainPackage, modules bool, t build.Target, c Commit, out string) ([]Step, error) {
	named := map[string]int{}
	for _, m := range mains {
		named[m.binary(modules)]++
	}
	var shared [][]mainPackage // each with equal variables
	var steps []Step
	taken := map[string]string{}
	for _, m := range mains {
		name, alone := m.binary(modules), false
		if named[name] > 1 {
			name, alone = m.longBinary(), true
		}
		if other, ok := taken[name]; ok {
			return nil, sourceError("%s and %s would both be called %s", other, m.dir, name)
		}
		taken[name] = m.dir
		if alone {
			if t.GOOS == "windows" {
				name += ".exe"
			}
			steps = append(steps, goBuild([]mainPackage{m}, t, c, path.Join(out, name)))
			continue
		}
		i := slices.IndexFunc(shared, func(s []mainPackage) bool { return slices.Equal(s[0].vars, m.vars) })
		if i < 0 {
			shared = append(shared, []mainPackage{m})
		} else {
			shared[i] = append(shared[i], m)
		}
	}
	var first []Step
	for _, s := range shared {
		first = append(first, goBuild(s, t, c, strings.TrimSuffix(out, "/")+"/"))
	}
	return append(first, steps...), nil
}

// goBuild builds packages with the same variables.
func goBuild(packages []mainPackage, t build.Target, c Commit, out string) Step {
	values := map[string]string{
		"version": t.Version,
		"commit":  c.ID,
		"date":    c.Time.UTC().Format(time.RFC3339),
	}
	args := []string{"go", "build", "-trimpath"}
	var flags []string
	for _, v := range packages[0].vars {
		flags = append(flags, "-X", "main."+v+"="+values[v])
	}
	if len(flags) > 0 {
		args = append(args, "-ldflags", strings.Join(flags, " "))
	}
	args = append(args, "-o", out)
	for _, p := range packages {
		args = append(args, p.arg())
	}
	doing := "building " + packages[0].arg()
	if n := len(packages) - 1; n > 0 {
		doing += fmt.Sprintf(" and %d more", n)
	}
	return Step{Args: args, Failure: build.ReasonExit, Doing: doing}
}

// A mainPackage is a directory with a program for the target.
type mainPackage struct {
	dir  string   // slash path from the root of the tree; "." is the root
	vars []string // sorted; those of settable that it has
}

func (m mainPackage) arg() string {
	if m.dir == "." {
		return "."
	}
	return "./" + m.dir
}

// majorVersion is an element that go build leaves out of a binary's name.
var majorVersion = regexp.MustCompile(`^v(?:[2-9]|[1-9][0-9]+)$`)

// binary is the name that go build gives to the program of a package under
// cmd/: the last element of its import path, or in module mode the one before
// a major version. What the root's program is called, the module path decides.
func (m mainPackage) binary(modules bool) string {
	parent, name := path.Split(m.dir)
	if modules && parent != "" && majorVersion.MatchString(name) {
		return path.Base(parent)
	}
	return name
}

// longBinary tells programs of one name apart: cmd/a/server is a-server.
func (m mainPackage) longBinary() string {
	return strings.ReplaceAll(strings.TrimPrefix(m.dir, "cmd/"), "/", "-")
}
