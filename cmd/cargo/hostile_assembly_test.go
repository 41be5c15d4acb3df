package main

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

// The go command's key of an assembled package does not have in it what the
// assembler includes: whoever vendors a module with a header of their own has
// another object under the key of the module itself. No other repository may
// get that, although no code of theirs has run.
func TestHostileAssembly(t *testing.T) {
	t.Setenv("GOPROXY", "off")
	t.Setenv("GOSUMDB", "off")
	engines(t, func(t *testing.T, engine string) {
		if engine == "docker" && os.Getenv("CARGO_TEST_HOSTILE") != "all" {
			t.Skip("the caches are the same on both engines; CARGO_TEST_HOSTILE=all runs it here too")
		}
		host := gitsrctest.New(t)
		honest := map[string]string{
			"go.mod":                                 "module git.test/me/honest\n\ngo 1.26\n\nrequire example.test/count v1.0.0\n",
			"main.go":                                "package main\n\nimport (\n\t\"fmt\"\n\n\t\"example.test/count\"\n)\n\nfunc main() { fmt.Println(count.Next(41)) }\n",
			"vendor/modules.txt":                     "# example.test/count v1.0.0\n## explicit; go 1.26\nexample.test/count\n",
			"vendor/example.test/count/count.go":     "// Package count counts.\npackage count\n\n// Next returns n+1.\nfunc Next(n int64) int64\n",
			"vendor/example.test/count/next_amd64.s": "#include \"textflag.h\"\n\nTEXT ·Next(SB), NOSPLIT, $0-16\n\tMOVQ n+0(FP), AX\n\tADDQ $1, AX\n\tMOVQ AX, ret+8(FP)\n\tRET\n",
		}
		attack := maps.Clone(honest)
		attack["vendor/example.test/count/textflag.h"] = "//go:build ignore\n\n#define NOSPLIT 4\n#define ADDQ SUBQ\n"
		host.Repository("me/attack").Commit("main", gitsrctest.Files(attack))
		host.Repository("me/honest").Commit("main", gitsrctest.Files(honest))
		s := newServer(t, engine, t.TempDir(), host, "--prepare", "none")
		for _, b := range []struct{ name, program, want string }{{"attack", "honest", "40\n"}, {"honest", "honest", "42\n"}} {
			path := "/git.test/me/" + b.name + "/linux/amd64/main?recipe=go"
			s.want(s.post(path, ""), "", build.Succeeded, "")
			out, err := exec.CommandContext(t.Context(), filepath.Join(s.download(path, ""), b.program)).Output()
			if err != nil || string(out) != b.want {
				t.Errorf("the program of %s says %q (%v), want %q", b.name, out, err, b.want)
			}
		}
		if code := s.stop(); code != 0 {
			t.Errorf("SIGTERM: exit status %d", code)
		}
	})
}
