package recipe_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/recipe"
)

// What an assembler reads is not in the go command's keys: a plan says whether
// the repository could have put it there.
func TestAssembles(t *testing.T) {
	many := map[string]string{}
	for i := range 40 {
		many[strings.Repeat("d/", i)+fmt.Sprintf("f%d", i)] = ""
	}
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  bool
	}{
		{"Go alone", map[string]string{"internal/x/x.go": "package x\n", "doc/a.sh": "", "b.S": "", "s": ""}, false},
		{"assembly", map[string]string{"internal/x/x_arm64.s": ""}, true},
		{"vendored assembly", map[string]string{"vendor/golang.org/x/sys/cpu/cpu_x86.s": ""}, true},
		{"where go would not look", map[string]string{"testdata/_x/.y/x.s": ""}, true},
		{"a link to assembly", map[string]string{"x.s": "-> main.go"}, true},
		{"a link in the tree", map[string]string{"a/b": "-> ../main.go", "a/c": "-> b"}, false},
		{"a link out of the tree", map[string]string{"a/b": "-> ../../../pkg/mod/example.com/m@v1.0.0"}, true},
		{"a link out of the tree by another", map[string]string{"e/b": "-> ../t", "t/x": "", "e/a": "-> b/../../z"}, true},
		{"an absolute link", map[string]string{"a": "-> /go/pkg/mod"}, true},
		{"a link to nothing", map[string]string{"a": "-> b"}, true},
		{"a module for another", map[string]string{"go.mod": gomod + "replace example.com/m => example.com/n v1.0.0\n"}, true},
		{"a directory for a module", map[string]string{"go.mod": gomod + "replace (\n\texample.com/m => /go/pkg/mod/example.com/n@v1.0.0\n)\n"}, true},
		{"a go.mod too long to be read", map[string]string{"go.mod": gomod + strings.Repeat("// \n", 1<<18)}, true},
		{"a deep tree", many, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			files := map[string]string{"go.mod": gomod, "main.go": hello}
			for name, content := range tc.files {
				files[name] = content
			}
			target := linux
			target.Recipe = build.RecipeGo
			p, err := recipe.For(newTree(t, t.TempDir(), files), target, commit, "/out")
			if err != nil {
				t.Fatal(err)
			}
			if p.Assembles != tc.want {
				t.Errorf("Assembles is %v, want %v", p.Assembles, tc.want)
			}
		})
	}
}
