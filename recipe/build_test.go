package recipe_test

import (
	"debug/buildinfo"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/recipe"
)

const talking = `package main

var (
	version = "dev"
	commit  string
	date    = "unknown"
)

func main() { println(version, commit, date) }
`

const told = "v1.2.3 0123456789abcdef0123456789abcdef01234567 2024-02-29T14:30:15Z\n"

// run runs the plan for a tree of files with the host's go, offline, in the
// directory that a worker would use, and returns the directory with the output.
func run(t *testing.T, target build.Target, files map[string]string) (out string, err error) {
	t.Helper()
	goPath := t.TempDir()
	dir := filepath.Join(goPath, "src", filepath.FromSlash(target.Repository.String()))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	out = filepath.Join(goPath, "out")
	plan, err := recipe.For(newTree(t, dir, files), target, commit, out)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range plan.Steps {
		cmd := exec.CommandContext(t.Context(), s.Args[0], s.Args[1:]...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(),
			"GOOS="+target.GOOS, "GOARCH="+target.GOARCH, "CGO_ENABLED=0", "GOPATH="+goPath, "GOFLAGS=-buildvcs=false -modcacherw",
			"GOPROXY=off", "GOTOOLCHAIN=local", "PWD="+dir)
		cmd.Env = append(cmd.Env, plan.Env...)
		if b, err := cmd.CombinedOutput(); err != nil {
			return "", errors.New(s.Doing + " failed: " + string(s.Failure) + ": " + string(b))
		}
	}
	return out, nil
}

func produced(t *testing.T, out string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(out)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestPlansWork(t *testing.T) {
	for _, tc := range []struct {
		name           string
		goos, goarch   string
		files          map[string]string
		want           []string
		toldBy, silent string // binaries to run
	}{
		{
			name:  "root",
			files: map[string]string{"go.mod": "module example.com/thing/v2\n\ngo 1.26\n", "main.go": talking},
			want:  []string{"thing"}, toldBy: "thing",
		},
		{
			name:  "root without variables",
			files: map[string]string{"go.mod": gomod, "main.go": hello},
			want:  []string{"app"}, silent: "app",
		},
		{
			name: "cmd, names that collide, a variable of another type",
			files: map[string]string{
				"go.mod": gomod, "lib.go": "package app", "cmd/app/main.go": talking, "cmd/a/server/main.go": talking, "cmd/b/server/main.go": hello,
				"cmd/int/main.go": hello + "var version = 3\n", "cmd/tool/v3/main.go": hello,
			},
			want: []string{"a-server", "app", "b-server", "int", "tool"}, toldBy: "a-server", silent: "b-server",
		},
		{
			name:  "no go.mod",
			files: map[string]string{"main.go": talking, "sub/sub.go": "package sub"},
			want:  []string{"app"}, toldBy: "app",
		},
		{
			name: "no go.mod, its own import path",
			files: map[string]string{
				"main.go": "package main\nimport \"git.local/group/sub/app/words\"\nfunc main() { println(words.Hello) }", "words/w.go": "package words\nconst Hello = \"hello\"",
			},
			want: []string{"app"}, silent: "app",
		},
		{
			name: "vendor in GOPATH mode",
			files: map[string]string{
				"cmd/x/main.go":                 "package main\nimport \"example.com/words\"\nimport \"git.local/group/sub/app/own\"\nvar version string\nfunc main() { println(words.Hello + own.Empty) }",
				"vendor/example.com/words/w.go": "package words\nconst Hello = \"hello\"", "own/o.go": "package own\nconst Empty = \"\"",
			},
			want: []string{"x"}, silent: "x",
		},
		{
			name: "a go.work that leads out",
			files: map[string]string{
				"go.mod": gomod, "main.go": hello, "go.work": "go 1.26\n\nuse (\n\t.\n\t../../elsewhere\n)\n",
			},
			want: []string{"app"}, silent: "app",
		},
		{
			name: "windows", goos: "windows", goarch: "amd64",
			files: map[string]string{"go.mod": gomod, "cmd/a/x/main.go": talking, "cmd/b/x/main.go": talking, "cmd/y/main.go": talking},
			want:  []string{"a-x.exe", "b-x.exe", "y.exe"},
		},
		{
			name: "js", goos: "js", goarch: "wasm",
			files: map[string]string{"go.mod": gomod, "main_js.go": talking},
			want:  []string{"app"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			target := linux
			target.GOARCH = runtime.GOARCH
			if tc.goos != "" {
				target.GOOS, target.GOARCH = tc.goos, tc.goarch
			}
			out, err := run(t, target, tc.files)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, produced(t, out)); d != "" {
				t.Fatalf("output (-want +got):\n%s", d)
			}
			if target.GOOS == "windows" {
				info, err := buildinfo.ReadFile(filepath.Join(out, tc.want[0]))
				if err != nil || info.Path != "example.com/app/cmd/a/x" {
					t.Errorf("%s: %v, %v", tc.want[0], info, err)
				}
			}
			for name, want := range map[string]string{tc.toldBy: told, tc.silent: "hello\n"} {
				if name == "" {
					continue
				}
				b, err := exec.CommandContext(t.Context(), filepath.Join(out, name)).CombinedOutput()
				if err != nil || string(b) != want {
					t.Errorf("%s says %q, %v; want %q", name, b, err, want)
				}
			}
		})
	}
}

func TestPlansFailWithTheRightReason(t *testing.T) {
	imports := "package main\nimport _ \"example.com/nowhere\"\nfunc main() {}"
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"imports that cannot be resolved", map[string]string{"main.go": imports}, "resolving the imports of a repository without go.mod failed: source"},
		{"a name that is no module path", map[string]string{"main.go": hello}, "making a go.mod, because the repository has none failed: source"},
		{"does not compile", map[string]string{"go.mod": gomod, "main.go": "package main\nfunc main() { x }"}, "building . failed: exit"},
		{"a replace that leads out", map[string]string{"go.mod": gomod + "require example.com/x v1.0.0\nreplace example.com/x => ../../x\n", "main.go": "package main\nimport _ \"example.com/x\"\nfunc main() {}"}, "building . failed: exit"},
		{"vendor that does not agree", map[string]string{"go.mod": gomod + "require example.com/nowhere v1.0.0\n", "main.go": imports, "vendor/modules.txt": ""}, "building . failed: exit"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			target := linux
			if tc.name == "a name that is no module path" {
				target.Name = "app."
			}
			if _, err := run(t, target, tc.files); err == nil || !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("run = %v, want %q", err, tc.want)
			}
		})
	}
}
