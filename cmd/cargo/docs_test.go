package main

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// foreign are flags that the documents name and that are other programs'.
var foreign = []string{
	"change", "connect-timeout", "enable-feature", "follow", "full", "help", "max-time", "packages", "preserve-env", "private", "retry", "tags",
}

// document reads one of the files that people read.
func document(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../..", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// README.md names every flag, and no document names one that is not there.
func TestDocumentsAndFlags(t *testing.T) {
	flags := map[string]bool{"keep": true, "json": true, "undo": true, "rebuild-records": true} // of other commands
	readme := document(t, "README.md")
	for _, f := range serveFlags() {
		name := f.Names()[0]
		flags[name] = true
		if !strings.Contains(readme, "`--"+name+"`") {
			t.Errorf("README.md does not name --%s", name)
		}
	}
	named := regexp.MustCompile("(?:^|[\\s`(\\[])--([a-z][a-z-]+)")
	names, err := filepath.Glob("../../docs/*")
	if err != nil || len(names) == 0 {
		t.Fatalf("documents %q, %v", names, err)
	}
	for _, path := range append(names, "../../README.md", "../../deploy/cargo.service") {
		name, _ := filepath.Rel("../..", path)
		unknown := map[string]bool{}
		for _, m := range named.FindAllStringSubmatch(document(t, name), -1) {
			if !flags[m[1]] && !slices.Contains(foreign, m[1]) {
				unknown[m[1]] = true
			}
		}
		if len(unknown) > 0 {
			t.Errorf("%s names flags that are not there: %q", name, slices.Sorted(maps.Keys(unknown)))
		}
	}
}
