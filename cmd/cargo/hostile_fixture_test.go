package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/monochromegane/cargo/build"
)

// A fixture is a repository that means harm, from a file in testdata/hostile:
// what it does, in words; after an empty line how its build must end, in lines
// of "key: value"; and its files. What cannot be written so is in scenes.
type fixture struct {
	name string
	tree fstest.MapFS // "link: NAME TARGET" adds a symbolic link

	server   string       // "server: NAME", one of hostileServers; small if left out
	recipe   build.Recipe // "recipe: go"
	platform string       // "platform: GOOS/GOARCH"
	version  string       // "version: TAG"; the branch main if left out
	private  bool         // "private: yes"
	both     bool         // "engines: both": how it ends depends on the engine

	state   build.State      // "want: STATE [REASON]"
	reason  build.Reason     // of a failed build
	status  int              // "want: STATUS": the request is refused with it
	within  time.Duration    // "within: DURATION", from the start to the end
	log     []*regexp.Regexp // "log: REGEXP": a line of the log must match it
	never   []*regexp.Regexp // "never: REGEXP": no line of the log may match it
	archive []string         // "archive: MODE NAME": all that the archive holds
}

func readFixtures(t *testing.T) (all []*fixture) {
	t.Helper()
	files, err := filepath.Glob("testdata/hostile/*.txtar")
	if err != nil || len(files) < 30 {
		t.Fatalf("%d fixtures, %v", len(files), err)
	}
	known := map[string]bool{}
	for _, file := range files {
		f := &fixture{
			name: strings.TrimSuffix(filepath.Base(file), ".txtar"), tree: fstest.MapFS{},
			server: "small", platform: "linux/amd64", version: "main",
		}
		known[f.name] = true
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		a := txtar.Parse(text)
		for _, file := range a.Files {
			f.tree[file.Name] = &fstest.MapFile{Data: file.Data, Mode: 0o644}
		}
		_, directives, _ := strings.Cut(string(a.Comment), "\n\n")
		for line := range strings.Lines(directives) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			if err := f.set(key, value); err != nil {
				t.Fatalf("%s: %q: %v", file, line, err)
			}
		}
		if f.state == "" && f.status == 0 || hostileServers[f.server] == nil {
			t.Fatalf("%s does not say how it must end, or names no server", file)
		}
		all = append(all, f)
	}
	for name := range scenes {
		if !known[name] {
			t.Errorf("there is no fixture %s", name)
		}
	}
	return all
}

// set reads one directive.
func (f *fixture) set(key, value string) (err error) {
	first, rest, _ := strings.Cut(value, " ")
	switch key {
	case "server":
		f.server = value
	case "recipe":
		f.recipe = build.Recipe(value)
	case "platform":
		f.platform = value
	case "version":
		f.version = value
	case "private":
		f.private = true
	case "engines":
		f.both = value == "both"
	case "link":
		f.tree[first] = &fstest.MapFile{Data: []byte(rest), Mode: fs.ModeSymlink | 0o777}
	case "want":
		if f.status, err = strconv.Atoi(value); err != nil {
			f.state, f.reason, err = build.State(first), build.Reason(rest), nil
		}
	case "within":
		f.within, err = time.ParseDuration(value)
	case "log":
		f.log, err = appendPattern(f.log, value)
	case "never":
		f.never, err = appendPattern(f.never, value)
	case "archive":
		f.archive = append(f.archive, value)
	default:
		return os.ErrInvalid
	}
	return err
}

func appendPattern(list []*regexp.Regexp, pattern string) ([]*regexp.Regexp, error) {
	re, err := regexp.Compile("(?m)" + pattern)
	return append(list, re), err
}
