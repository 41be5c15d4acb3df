package httpserver_test

import (
	"bufio"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/httpserver"
)

const openapi = "../docs/openapi.yaml"

// documented reads the paths of openapi.yaml and the methods of each. It knows
// as much YAML as that file uses: two spaces for each level.
func documented(t *testing.T) map[string][]string {
	f, err := os.Open(openapi)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	paths := map[string][]string{}
	section, path := "", ""
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		key, _, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch indent := len(line) - len(strings.TrimLeft(line, " ")); {
		case indent == 0:
			section = key
		case section == "paths" && indent == 2:
			path = key
			paths[path] = nil
		case section == "paths" && indent == 4 && key != "parameters" && !strings.HasPrefix(key, "-"):
			paths[path] = append(paths[path], strings.ToUpper(key))
		}
	}
	return paths
}

// What is documented is what is routed: the same paths, the same methods.
func TestOpenAPIMatchesRoutes(t *testing.T) {
	a := newAPI(t)
	paths := documented(t)
	for _, route := range httpserver.Routes {
		if _, ok := paths[route]; !ok && route != "other" {
			t.Errorf("%s is not in openapi.yaml", route)
		}
	}
	fill := strings.NewReplacer("{remote}", "github.com", "{owner}", "o", "{repo}", "r", "{GOOS}", "linux", "{GOARCH}", "amd64",
		"{version}", "v1", "{archive}", "r_linux_amd64.tar.gz", "{id}", string(build.NewID()))
	for path, methods := range paths {
		if !slices.Contains(httpserver.Routes, path) {
			t.Errorf("%s is in openapi.yaml but is no route", path)
			continue
		}
		r := a.do(t, "BREW", fill.Replace(path))
		if r.code != http.StatusMethodNotAllowed {
			t.Errorf("BREW %s = %d, want 405", path, r.code)
		}
		want := append(methods, "HEAD")
		slices.Sort(want)
		if got := r.header.Get("Allow"); got != strings.Join(want, ", ") {
			t.Errorf("%s allows %q, documented is %q", path, got, want)
		}
	}
}

func TestOpenAPIKnowsEveryWord(t *testing.T) {
	for name, quote := range map[string]string{openapi: "", "../docs/api.md": "`"} {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range build.States {
			if !strings.Contains(string(text), quote+string(s)+quote) {
				t.Errorf("%s does not know the state %s", name, s)
			}
		}
		for _, r := range build.Reasons {
			if !strings.Contains(string(text), quote+string(r)+quote) {
				t.Errorf("%s does not know the reason %s", name, r)
			}
		}
		for _, p := range build.Phases {
			if !strings.Contains(string(text), quote+string(p)+quote) {
				t.Errorf("%s does not know the phase %s", name, p)
			}
		}
	}
}
