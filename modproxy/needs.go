package modproxy

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"go/version"
	"maps"
	"slices"
	"strings"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
)

// A Module is what a line of go.sum says: a version of a module and the hash
// of its zip or, where "/go.mod" is the end of Version, of its go.mod alone.
type Module struct {
	Path, Version string
	Sum           string // "h1:..."
}

const goModSuffix = "/go.mod"

// toolchain is the module whose zips are toolchains of Go.
const toolchain = "golang.org/toolchain"

// Bounds of what Needs reads and returns. The largest Go programs have some
// 1,000 modules and 3,000 lines.
const (
	maxGoMod  = 1 << 20
	maxGoSum  = 4 << 20
	maxZips   = 2_000
	maxGoMods = 5_000
)

// Needs are what a build of the main module will want, as far as its go.mod
// and go.sum tell: the zips of what is required, and every go.mod that go.sum
// names. Both files are anybody's. An error is for a log at most: the go
// command says better what is wrong with them.
func Needs(gomod, gosum []byte) ([]Module, error) {
	if len(gomod) > maxGoMod || len(gosum) > maxGoSum {
		return nil, errors.New("go.mod or go.sum is too large")
	}
	f, err := modfile.Parse("go.mod", gomod, nil)
	if err != nil {
		return nil, fmt.Errorf("go.mod: %w", err)
	}
	wanted := required(f)
	// Before Go 1.17 a go.mod did not name all that a build takes.
	all := f.Go == nil || version.Compare("go"+f.Go.Version, "go1.17") < 0
	needs := map[Module]bool{}
	zips, mods := 0, 0
	for line := range bytes.Lines(gosum) {
		m, ok := parseSum(string(line))
		if !ok || needs[m] {
			continue
		}
		if strings.HasSuffix(m.Version, goModSuffix) {
			mods++
		} else if m.Path == toolchain {
			continue // its programs must be executable, which nothing in a Tree is
		} else if all || wanted[module.Version{Path: m.Path, Version: m.Version}] {
			zips++
		} else {
			continue
		}
		if zips > maxZips || mods > maxGoMods {
			return nil, fmt.Errorf("more than %d modules or %d go.mod files", maxZips, maxGoMods)
		}
		needs[m] = true
	}
	return slices.SortedFunc(maps.Keys(needs), Module.compare), nil
}

// required are the modules that f asks for, after its replacements by other
// modules. One that is replaced by a directory is not.
func required(f *modfile.File) map[module.Version]bool {
	replaced := map[module.Version]module.Version{}
	for _, r := range f.Replace {
		replaced[r.Old] = r.New
	}
	excluded := map[module.Version]bool{}
	for _, x := range f.Exclude {
		excluded[x.Mod] = true
	}
	wanted := map[module.Version]bool{}
	for _, r := range f.Require {
		if excluded[r.Mod] {
			continue
		}
		m, ok := replaced[r.Mod]
		if !ok {
			m, ok = replaced[module.Version{Path: r.Mod.Path}]
		}
		if !ok {
			m = r.Mod
		}
		if m.Version != "" {
			wanted[m] = true
		}
	}
	return wanted
}

// parseSum reads a line of go.sum. Not ok is one that names no module which
// there can be, or no hash that is known.
func parseSum(line string) (m Module, ok bool) {
	f := strings.Fields(line)
	if len(f) != 3 {
		return Module{}, false
	}
	m = Module{Path: f[0], Version: f[1], Sum: f[2]}
	_, ok = m.digest()
	if ok {
		_, ok = m.request()
	}
	return m, ok
}

func (m Module) compare(n Module) int { return strings.Compare(m.line(), n.line()) }

func (m Module) line() string { return m.Path + " " + m.Version + " " + m.Sum + "\n" }

// digest is the hash in Sum.
func (m Module) digest() (d digest, ok bool) {
	text, ok := strings.CutPrefix(m.Sum, "h1:")
	if !ok || len(text) != base64.StdEncoding.EncodedLen(len(d)) {
		return d, false
	}
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	return d, err == nil && copy(d[:], b) == len(d)
}

// h1 is what go.sum has for d.
func h1(d digest) string { return "h1:" + base64.StdEncoding.EncodeToString(d[:]) }

// request is what a build would ask its Door for, to have m.
func (m Module) request() (request, bool) {
	version, mod := strings.CutSuffix(m.Version, goModSuffix)
	ext := ".zip"
	if mod {
		ext = ".mod"
	}
	path, err := module.EscapePath(m.Path)
	escaped, err2 := module.EscapeVersion(version)
	if err != nil || err2 != nil || !isFileName(path+"@"+escaped) {
		return request{}, false
	}
	q, err := parse("/"+path+"/@v/"+escaped+ext, "")
	ok := err == nil && (q.kind == kindZip || q.kind == kindMod) && q.path == m.Path && q.version == version
	q.toKeep = true
	return q, ok
}

// isFileName reports whether file systems take name beneath a directory.
func isFileName(name string) bool {
	if len(name) > maxPath {
		return false
	}
	for element := range strings.SplitSeq(name, "/") {
		if len(element) > 250 { // with room for what the go command appends
			return false
		}
	}
	return true
}
