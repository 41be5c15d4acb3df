package recipe_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/recipe"
)

var (
	commit = recipe.Commit{
		ID:   "0123456789abcdef0123456789abcdef01234567",
		Time: time.Date(2024, 2, 29, 23, 30, 15, 5, time.FixedZone("far", 9*3600)),
	}
	linux = build.Target{
		Repository: build.Repository{Remote: "git.local", Owner: "group/sub", Name: "app"},
		GOOS:       "linux", GOARCH: "amd64", Version: "v1.2.3",
	}
)

// newTree makes a tree of files at slash paths; a content "-> x" makes a link to x.
func newTree(t testing.TB, dir string, files map[string]string) *os.Root {
	t.Helper()
	for name, content := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, ok := strings.CutPrefix(content, "-> "); ok {
			err = os.Symlink(to, p)
		} else {
			err = os.WriteFile(p, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

const (
	gomod = "module example.com/app\n\ngo 1.26\n"
	hello = "package main\n\nfunc main() { println(\"hello\") }\n"
)

// packages are the last arguments of the go build steps: what is built.
func packages(p recipe.Plan) (dirs []string) {
	for _, s := range p.Steps {
		if i := slices.Index(s.Args, "-o"); i >= 0 {
			dirs = append(dirs, s.Args[i+2:]...)
		}
	}
	return dirs
}

func TestMakefile(t *testing.T) {
	makePlan := recipe.Plan{Name: "make", Steps: []recipe.Step{{Args: []string{"make"}, Failure: build.ReasonExit, Doing: "running make"}}, RunsCode: true}
	for _, tc := range []struct {
		name  string
		files map[string]string
		make  bool
	}{
		{"Makefile", map[string]string{"Makefile": "all:"}, true},
		{"makefile", map[string]string{"makefile": "all:"}, true},
		{"GNUmakefile", map[string]string{"GNUmakefile": "all:"}, true},
		{"link inside", map[string]string{"build/Makefile": "all:", "Makefile": "-> build/Makefile"}, true},
		{"link out", map[string]string{"Makefile": "-> ../../etc/passwd"}, false},
		{"absolute link", map[string]string{"Makefile": "-> /etc/passwd"}, false},
		{"directory", map[string]string{"Makefile/x": ""}, false},
		{"another name", map[string]string{"Makefile.am": "all:", "MAKEFILE": "all:", "sub/Makefile": "all:"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.files["go.mod"], tc.files["main.go"] = gomod, hello
			tree := newTree(t, t.TempDir(), tc.files)
			p, err := recipe.For(tree, linux, commit, "/out")
			if err != nil {
				t.Fatal(err)
			}
			if tc.make {
				if d := cmp.Diff(makePlan, p); d != "" {
					t.Errorf("plan (-want +got):\n%s", d)
				}
			} else if p.Name != "go" {
				t.Errorf("plan %q, want go", p.Name)
			}
			asked := linux
			asked.Recipe = build.RecipeGo
			if p, err := recipe.For(tree, asked, commit, "/out"); err != nil || p.Name != "go" {
				t.Errorf("recipe=go gives %q, %v", p.Name, err)
			}
		})
	}
}

func TestGoPlan(t *testing.T) {
	tree := newTree(t, t.TempDir(), map[string]string{"go.mod": gomod, "main.go": "package main\nvar (\n\tversion = \"dev\"\n\tcommit, date string\n)\nfunc main() {}\n"})
	p, err := recipe.For(tree, linux, commit, "/out")
	if err != nil {
		t.Fatal(err)
	}
	want := recipe.Plan{
		Name: "go", Env: []string{"GO111MODULE=on", "GOWORK=off"}, Out: "/out",
		Steps: []recipe.Step{{
			Args: []string{
				"go", "build", "-trimpath",
				"-ldflags", "-X main.commit=" + commit.ID + " -X main.date=2024-02-29T14:30:15Z -X main.version=v1.2.3",
				"-o", "/out/", ".",
			},
			Failure: build.ReasonExit, Doing: "building .",
		}},
	}
	if d := cmp.Diff(want, p); d != "" {
		t.Errorf("plan (-want +got):\n%s", d)
	}
}

func TestProgramsAreFound(t *testing.T) {
	with := func(files map[string]string) map[string]string {
		files["go.mod"] = gomod
		return files
	}
	many := map[string]string{}
	for i := range 5 {
		many[fmt.Sprintf("cmd/c%d/main.go", i)] = hello
	}
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  []string
	}{
		{"root before cmd", map[string]string{"main.go": hello, "cmd/x/main.go": hello}, []string{"."}},
		{"library in the root", map[string]string{"lib.go": "package lib", "cmd/x/main.go": hello}, []string{"./cmd/x"}},
		{"all of cmd", many, []string{"./cmd/c0", "./cmd/c1", "./cmd/c2", "./cmd/c3", "./cmd/c4"}},
		{"cmd itself and below", map[string]string{"cmd/main.go": hello, "cmd/a/b/c/main.go": hello, "cmd/a/lib.go": "package a"}, []string{"./cmd", "./cmd/a/b/c"}},
		{"left out", map[string]string{
			"cmd/x/main.go": hello, "cmd/testdata/main.go": hello, "cmd/_old/main.go": hello, "cmd/.hidden/main.go": hello,
			"cmd/vendor/v/main.go": hello, "cmd/.../main.go": hello, "cmd/a...b/main.go": hello, "cmd/a@v1/main.go": hello, "cmd/a b/main.go": hello,
			"cmd/module/go.mod": gomod, "cmd/module/main.go": hello, "cmd/module/sub/main.go": hello,
			"cmd/linked": "-> x", "cmd/only_test/main_test.go": hello, "cmd/-flag/main.go": hello,
		}, []string{"./cmd/-flag", "./cmd/x"}},
		{"ignored files", map[string]string{"gen.go": "//go:build ignore\n\npackage main", "lib.go": "package lib", "cmd/x/main.go": hello}, []string{"./cmd/x"}},
		{"file for another system", map[string]string{"main_windows.go": hello, "cmd/x/main.go": hello}, []string{"./cmd/x"}},
		{"constraint for another system", map[string]string{"main.go": "//go:build !linux\n\n" + hello, "cmd/x/main.go": hello}, []string{"./cmd/x"}},
		{"constraint for this one", map[string]string{"main.go": "//go:build linux && amd64 && !cgo\n\n" + hello}, []string{"."}},
		{"cgo is off", map[string]string{"main.go": "package main\nimport \"C\"\nfunc main() {}", "cmd/x/main.go": hello}, []string{"./cmd/x"}},
		{"documentation beside it", map[string]string{"main.go": hello, "doc.go": "package documentation"}, []string{"."}},
		{"mixed packages", map[string]string{"main.go": hello, "lib.go": "package lib", "cmd/x/main.go": hello}, []string{"./cmd/x"}},
		{"broken file beside it", map[string]string{"main.go": hello, "x.go": "\x00\xff package", "y.go": ""}, []string{"."}},
		{"links", map[string]string{"main.go": "-> src/real.go", "src/real.go": hello}, []string{"."}},
		{"links out", map[string]string{"main.go": "-> /etc/passwd", "up.go": "-> ../x.go", "cmd/x/main.go": hello}, []string{"./cmd/x"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := recipe.For(newTree(t, t.TempDir(), with(tc.files)), linux, commit, "/out")
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, packages(p)); d != "" {
				t.Errorf("packages (-want +got):\n%s", d)
			}
		})
	}
}

func TestStepsForWhatCannotShareOne(t *testing.T) {
	files := map[string]string{"go.mod": gomod}
	for _, d := range []string{"a/server", "b/server", "tool", "tool/v2", "plain", "other"} {
		files["cmd/"+d+"/main.go"] = hello
	}
	files["cmd/plain/main.go"] += "var version string\n"
	files["cmd/other/main.go"] += "var version = 1\n"
	target := linux
	target.GOOS = "windows"
	p, err := recipe.For(newTree(t, t.TempDir(), files), target, commit, "/out")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range p.Steps {
		got = append(got, strings.Join(s.Args[3:], " "))
	}
	want := []string{
		"-o /out/ ./cmd/other",
		"-ldflags -X main.version=v1.2.3 -o /out/ ./cmd/plain",
		"-o /out/a-server.exe ./cmd/a/server",
		"-o /out/b-server.exe ./cmd/b/server",
		"-o /out/tool.exe ./cmd/tool",
		"-o /out/tool-v2.exe ./cmd/tool/v2",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("steps (-want +got):\n%s", d)
	}
}

func TestWithoutGoMod(t *testing.T) {
	for _, tc := range []struct {
		name  string
		files map[string]string
		env   string
		steps []string
	}{
		{"vendor", map[string]string{"main.go": hello, "vendor/x/x.go": "package x"}, "GO111MODULE=off", []string{"build"}},
		{"nothing", map[string]string{"main.go": hello}, "GO111MODULE=on", []string{"mod init git.local/group/sub/app", "mod tidy", "build"}},
		{"vendor that is a link", map[string]string{"main.go": hello, "vendor": "-> x", "x/x.go": "package x"}, "GO111MODULE=on", []string{"mod init git.local/group/sub/app", "mod tidy", "build"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := recipe.For(newTree(t, t.TempDir(), tc.files), linux, commit, "/out")
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(p.Env, tc.env) {
				t.Errorf("environment %q, want %s", p.Env, tc.env)
			}
			var got []string
			for _, s := range p.Steps {
				args := strings.Join(s.Args[1:], " ")
				wantReason := build.ReasonSource
				if strings.HasPrefix(args, "build ") {
					args, wantReason = "build", build.ReasonExit
				}
				if s.Failure != wantReason {
					t.Errorf("%s: failure is %s, want %s", args, s.Failure, wantReason)
				}
				got = append(got, args)
			}
			if d := cmp.Diff(tc.steps, got); d != "" {
				t.Errorf("steps (-want +got):\n%s", d)
			}
		})
	}
}

func TestNoSenseInTheTree(t *testing.T) {
	collision := map[string]string{"go.mod": gomod}
	for _, d := range []string{"a/server", "b/server", "a-server"} {
		collision["cmd/"+d+"/main.go"] = hello
	}
	tooMany := map[string]string{"go.mod": gomod}
	for i := range 257 {
		tooMany[fmt.Sprintf("cmd/c%d/m.go", i)] = hello
	}
	for _, tc := range []struct {
		name  string
		files map[string]string
		text  string
	}{
		{"empty", nil, "there is no Makefile, and there is no program to build for linux/amd64 without cgo"},
		{"library", map[string]string{"go.mod": gomod, "lib.go": "package lib"}, "main package in the root and in every directory under cmd/"},
		{"main elsewhere", map[string]string{"go.mod": gomod, "app/main.go": hello}, "no program"},
		{"nested module", map[string]string{"go.mod": gomod, "cmd/x/go.mod": gomod, "cmd/x/main.go": hello}, "cmd/x is a module of its own"},
		{"module in a subdirectory", map[string]string{"main.go": hello, "src/app/go.mod": gomod}, "no go.mod in the root of git.local/group/sub/app, only one in src/app"},
		{"cmd is a link", map[string]string{"go.mod": gomod, "cmd": "-> tools", "tools/x/main.go": hello}, "no program"},
		{"names that collide twice", collision, "would both be called a-server"},
		{"too many programs", tooMany, "more than 256"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := recipe.For(newTree(t, t.TempDir(), tc.files), linux, commit, "/out")
			e, ok := errors.AsType[*recipe.Error](err)
			if !ok || e.Reason != build.ReasonSource || !strings.Contains(e.Sentence, tc.text) {
				t.Errorf("For = %v, want a source error with %q", err, tc.text)
			}
		})
	}
}

func TestForChecksItsArguments(t *testing.T) {
	tree := newTree(t, t.TempDir(), map[string]string{"go.mod": gomod, "main.go": hello})
	bad := linux
	bad.Version = "v1 -X main.x=y"
	if _, err := recipe.For(tree, bad, commit, "/out"); !errors.Is(err, build.ErrInvalid) {
		t.Errorf("For = %v, want ErrInvalid", err)
	}
	if _, err := recipe.For(tree, linux, recipe.Commit{ID: "HEAD"}, "/out"); err == nil {
		t.Error("For took HEAD for a commit")
	}
}

// TestVariables shows what is set through the flags of the plan.
func TestVariables(t *testing.T) {
	for source, want := range map[string]string{
		`var version string`:                           "version",
		`var version = "dev"`:                          "version",
		`var version string = "dev"`:                   "version",
		"var version = `dev`":                          "version",
		`var version, commit, date string`:             "commit date version",
		`var version, commit = "a", "b"`:               "commit version",
		"var (\n version = \"a\"\n date string\n)":     "date version",
		`var version, x = "a", f()`:                    "version",
		`var version = f()`:                            "",
		`var version = 1`:                              "",
		`var version int`:                              "",
		`var version []string`:                         "",
		`var version *string`:                          "",
		`var version, commit = g()`:                    "",
		`const version = "a"`:                          "",
		`func h() { var version string; _ = version }`: "",
		`var Version string`:                           "",
		`type version string`:                          "",
		`var version = "a" +`:                          "", // does not parse
	} {
		tree := newTree(t, t.TempDir(), map[string]string{
			"go.mod": gomod, "main.go": hello, "x.go": "package main\n" + source + "\n",
			"x_windows.go": "package main\nvar version string\n", "x_test.go": "package main\nvar date string\n",
		})
		p, err := recipe.For(tree, linux, commit, "/out")
		if err != nil {
			t.Fatal(err)
		}
		set := map[string]bool{}
		for _, f := range strings.Fields(strings.Join(p.Steps[0].Args, " ")) {
			if v, ok := strings.CutPrefix(f, "main."); ok {
				name, _, _ := strings.Cut(v, "=")
				set[name] = true
			}
		}
		if got := strings.Join(slices.Sorted(maps.Keys(set)), " "); got != want {
			t.Errorf("%s: sets %q, want %q", source, got, want)
		}
	}
}

func TestPlanningIsBounded(t *testing.T) {
	deep := "package main\n\nvar x = " + strings.Repeat("(", 90_000) + "1" + strings.Repeat(")", 90_000) + "\n"
	files := map[string]string{"go.mod": gomod, "a.go": "package main\n\nvar version string\n\nfunc main() {}\n"}
	for i := range 40 {
		files[fmt.Sprintf("x%d.go", i)] = deep
	}
	p, err := recipe.For(newTree(t, t.TempDir(), files), linux, commit, "/out")
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(p.Steps[0].Args, "-ldflags") {
		t.Error("all of it was parsed")
	}
}

func FuzzFor(f *testing.F) {
	for _, s := range []string{
		hello, "//go:build linux\n\npackage main\nvar version, commit = \"a\", `b`\n", "package main\nvar (\nversion string = ((\"x\"))\n)",
		"package main\nvar version", "package main; import \"C\"", "\xef\xbb\xbfpackage main", "package main\n//go:embed x\nvar version string",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, source []byte) {
		tree := newTree(t, t.TempDir(), map[string]string{"go.mod": gomod, "cmd/x/main.go": hello})
		if err := tree.WriteFile("main.go", source, 0o644); err != nil {
			t.Fatal(err)
		}
		p, err := recipe.For(tree, linux, commit, "/out")
		if err != nil {
			t.Fatal(err)
		}
		if got := packages(p); len(got) != 1 || got[0] != "." && got[0] != "./cmd/x" {
			t.Errorf("packages %q", got)
		}
	})
}
