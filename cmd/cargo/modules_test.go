package main

import (
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

// A module comes through the door, checked against the repository's go.sum.
func TestModules(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		host := gitsrctest.New(t)
		files := map[string]string{
			"go.mod":               "module git.test/me/app\n\ngo 1.26.0\n\nrequire golang.org/x/mod v0.41.0\n",
			"cmd/one/main.go":      "package main\n\nimport \"golang.org/x/mod/semver\"\n\nfunc main() { println(semver.Major(\"v1.2.3\")) }\n",
			"cmd/two/tool/main.go": "package main\n\nfunc main() { println(\"two\") }\n",
		}
		repo := host.Repository("me/app")
		commit := func(sum string) {
			files["go.sum"] = sum
			repo.Commit("main", gitsrctest.Files(files))
		}
		s := newServer(t, engine, t.TempDir(), host)
		const path = "/git.test/me/app/linux/amd64/main"

		commit("golang.org/x/mod v0.41.0 h1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\ngolang.org/x/mod v0.41.0/go.mod h1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n")
		if _, log := s.want(s.post(path, ""), "", build.Failed, build.ReasonExit); !strings.Contains(log, "checksum mismatch") {
			t.Errorf("a module that is not what go.sum says was used:\n%s", log)
		}
		commit(ownSum(t, "golang.org/x/mod v0.41.0"))
		_, log := s.want(s.post(path, ""), "", build.Succeeded, "")
		if !strings.Contains(log, `"modules are there"`) || !strings.Contains(log, `"missing":0`) {
			t.Errorf("the log does not say that the module was laid out:\n%s", log)
		}
		dir := s.download(path, "")
		for name, says := range map[string]string{"one": "v1\n", "tool": "two\n"} {
			if out, err := exec.CommandContext(t.Context(), filepath.Join(dir, name)).CombinedOutput(); err != nil || string(out) != says {
				t.Errorf("%s says %q (%v), want %q", name, out, err, says)
			}
		}
		if r := s.do(http.MethodGet, path, ""); r.StatusCode != http.StatusOK {
			t.Errorf("GET = %s", r.Status)
		}
	})
}

// A go.mod that asks for a newer Go than the image's gets it through the door.
func TestNewerToolchain(t *testing.T) {
	host := gitsrctest.New(t)
	files := hello("new")
	files["go.mod"] = "module git.test/me/hello\n\ngo 1.27.0\n"
	files["main.go"] = "package main\n\nimport \"runtime\"\n\nfunc main() { println(runtime.Version()) }\n"
	host.Repository("me/hello").Commit("main", gitsrctest.Files(files))
	engines(t, func(t *testing.T, engine string) {
		s := newServer(t, engine, t.TempDir(), host)
		const path = "/git.test/me/hello/linux/amd64/main"
		s.want(s.post(path, ""), "", build.Succeeded, "")
		out, err := exec.CommandContext(t.Context(), filepath.Join(s.download(path, ""), "hello")).CombinedOutput()
		if err != nil || string(out) != "go1.27.0\n" {
			t.Errorf("built by %q (%v), want go1.27.0", out, err)
		}
	})
}

// ownSum is what this repository's go.sum says of a module.
func ownSum(t *testing.T, module string) string {
	out, err := exec.CommandContext(t.Context(), "grep", "^"+strings.Fields(module)[0]+" "+strings.Fields(module)[1], "../../go.sum").Output()
	if err != nil {
		t.Fatalf("go.sum does not know %s: %v", module, err)
	}
	return string(out)
}
