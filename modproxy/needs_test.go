package modproxy_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/module"

	"github.com/monochromegane/cargo/modproxy"
)

// hash is one that go.sum could have.
const hash = "h1:mL1N/T3taQHkDXs73rZJwtUhF3w3ftmwwsq0BUmARs4="

const sums = "example.com/a v1.0.0 " + hash + "\n" +
	"example.com/a v1.0.0/go.mod " + hash + "\n" +
	"example.com/b v1.0.0 " + hash + "\n" +
	"example.com/b v1.2.0 " + hash + "\n" +
	"example.com/B v1.2.0 " + hash + "\n" +
	"example.com/c/v2 v2.0.0/go.mod " + hash + "\n"

func TestNeeds(t *testing.T) {
	const a, b = "example.com/a v1.0.0", "example.com/b v1.0.0"
	for name, tc := range map[string]struct {
		mod, sum string
		want     []string // zips
	}{
		"required":              {"go 1.21\nrequire example.com/a v1.0.0\n", sums, []string{a}},
		"indirect too":          {"go 1.21\nrequire (\n\texample.com/a v1.0.0\n\texample.com/b v1.0.0 // indirect\n)\n", sums, []string{a, b}},
		"without a hash":        {"go 1.21\nrequire example.com/c/v2 v2.0.0\n", sums, nil},
		"replaced":              {"go 1.21\nrequire example.com/x v1.0.0\nreplace example.com/x => example.com/a v1.0.0\n", sums, []string{a}},
		"replaced, one version": {"go 1.21\nrequire example.com/x v1.0.0\nreplace example.com/x => example.com/a v1.0.0\nreplace example.com/x v1.0.0 => example.com/b v1.2.0\n", sums, []string{"example.com/b v1.2.0"}},
		"another version is":    {"go 1.21\nrequire example.com/b v1.0.0\nreplace example.com/b v1.1.0 => example.com/a v1.0.0\n", sums, []string{b}},
		"replaced by a path":    {"go 1.21\nrequire example.com/a v1.0.0\nreplace example.com/a => ../a\n", sums, nil},
		"excluded":              {"go 1.21\nrequire example.com/a v1.0.0\nexclude example.com/a v1.0.0\n", sums, nil},
		"before Go 1.17":        {"go 1.16\nrequire example.com/a v1.0.0\n", sums, []string{"example.com/B v1.2.0", a, b, "example.com/b v1.2.0"}},
		"of no Go version":      {"require example.com/a v1.0.0\n", sums, []string{"example.com/B v1.2.0", a, b, "example.com/b v1.2.0"}},
		"a toolchain":           {"go 1.16\nrequire example.com/a v1.0.0\n", strings.ReplaceAll(sums, "example.com/b v1.2.0", "golang.org/toolchain v0.0.1-go1.27.0.linux-amd64"), []string{"example.com/B v1.2.0", a, b}},
		"of a candidate":        {"go 1.27rc1\nrequire example.com/a v1.0.0\n", sums, []string{a}},
	} {
		t.Run(name, func(t *testing.T) {
			needs, err := modproxy.Needs([]byte("module example.org/app\n"+tc.mod), []byte(tc.sum))
			if err != nil {
				t.Fatal(err)
			}
			var zips, mods []string
			for _, m := range needs {
				if m.Sum != hash {
					t.Errorf("%v", m)
				}
				if line := m.Path + " " + m.Version; strings.HasSuffix(line, "/go.mod") {
					mods = append(mods, line)
				} else {
					zips = append(zips, line)
				}
			}
			if d := cmp.Diff(tc.want, zips); d != "" {
				t.Errorf("zips (-want +got):\n%s", d)
			}
			if d := cmp.Diff([]string{"example.com/a v1.0.0/go.mod", "example.com/c/v2 v2.0.0/go.mod"}, mods); d != "" {
				t.Errorf("go.mod files (-want +got):\n%s", d)
			}
		})
	}
}

func TestNeedsOfWhatNobodyWrites(t *testing.T) {
	const mod = "module example.org/app\n\ngo 1.16\n"
	for name, line := range map[string]string{
		"slip":           "example.com/../../etc v1.0.0 " + hash,
		"absolute":       "/etc v1.0.0 " + hash,
		"no domain":      "cache v1.0.0 " + hash,
		"no version":     "example.com/a v1 " + hash,
		"slip version":   "example.com/a v1.0.0-../../x " + hash,
		"other hash":     "example.com/a v1.0.0 h2:mL1N/T3taQHkDXs73rZJwtUhF3w3ftmwwsq0BUmARs4=",
		"short hash":     "example.com/a v1.0.0 h1:mL1N",
		"no base64":      "example.com/a v1.0.0 h1:" + strings.Repeat("!", 44),
		"no hash":        "example.com/a v1.0.0",
		"more":           "example.com/a v1.0.0 " + hash + " x",
		"long element":   "example.com/" + strings.Repeat("a", 251) + " v1.0.0 " + hash,
		"long version":   "example.com/a v1.0.0-" + strings.Repeat("a", 251) + " " + hash,
		"long path":      "example.com" + strings.Repeat("/a", 600) + " v1.0.0 " + hash,
		"twice a go.mod": "example.com/a v1.0.0/go.mod/go.mod " + hash,
	} {
		if needs, err := modproxy.Needs([]byte(mod), []byte(line+"\n")); err != nil || len(needs) != 0 {
			t.Errorf("%s: %v, %v; want nothing", name, needs, err)
		}
	}
	var many, files strings.Builder
	for i := range 5_001 {
		fmt.Fprintf(&many, "example.com/m%d v1.0.0 %s\n", i, hash)
		fmt.Fprintf(&files, "example.com/m%d v1.0.0/go.mod %s\n", i, hash)
	}
	for name, in := range map[string][2]string{
		"syntax":        {"module (", ""},
		"large go.mod":  {mod + strings.Repeat("\n", 1<<20), ""},
		"large go.sum":  {mod, strings.Repeat("\n", 4<<20+1)},
		"many modules":  {mod, many.String()},
		"many go.mod's": {mod, files.String()},
	} {
		if needs, err := modproxy.Needs([]byte(in[0]), []byte(in[1])); err == nil {
			t.Errorf("%s: %d needs and no error", name, len(needs))
		}
	}
}

func FuzzNeeds(f *testing.F) {
	f.Add("module example.org/app\n\ngo 1.21\n\nrequire example.com/a v1.0.0\n", sums)
	f.Add("module example.org/app\n\nreplace example.com/b => ../x\n", sums)
	f.Add("module example.org/app\nexclude example.com/a v1.0.0\nretract [v1.0.0, v1.1.0]\ntool example.com/a\n", "example.com/../a v1.0.0 "+hash)
	for _, name := range []string{"go.mod", "go.sum"} {
		if b, err := os.ReadFile(filepath.Join("..", name)); err == nil {
			f.Add(string(b), string(b))
		}
	}
	f.Fuzz(func(t *testing.T, mod, sum string) {
		needs, err := modproxy.Needs([]byte(mod), []byte(sum))
		if err != nil && needs != nil {
			t.Fatal("needs and an error")
		}
		seen := map[modproxy.Module]bool{}
		for _, m := range needs {
			if err := module.Check(m.Path, strings.TrimSuffix(m.Version, "/go.mod")); err != nil {
				t.Error(err)
			}
			if seen[m] || !strings.Contains(sum, m.Path) || !strings.Contains(sum, m.Sum) {
				t.Errorf("%v is twice there or made up", m)
			}
			seen[m] = true
		}
	})
}
