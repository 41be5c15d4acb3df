package httpserver

import (
	"errors"
	"strings"
	"testing"

	"github.com/monochromegane/cargo/build"
)

func hey(version string) build.Target {
	return build.Target{
		Repository: build.Repository{Remote: "github.com", Owner: "rakyll", Name: "hey"},
		GOOS:       "linux", GOARCH: "amd64", Version: version,
	}
}

func parse(escaped string) (t build.Target, archive bool, err error) {
	segments, err := split(escaped)
	if err != nil {
		return t, false, err
	}
	if len(segments) < minTarget {
		return t, false, errNoRoute
	}
	return parseTarget(segments)
}

func TestParseTarget(t *testing.T) {
	nested := hey("v1")
	nested.Remote, nested.Owner, nested.Name = "gitlab.com", "group/sub", "repo"
	for _, tc := range []struct {
		path    string
		want    build.Target
		archive bool
	}{
		{path: "/github.com/rakyll/hey/linux/amd64/v0.1.4", want: hey("v0.1.4")},
		{path: "/github.com/rakyll/hey/linux/amd64/v0.1.4/hey_linux_amd64.tar.gz", want: hey("v0.1.4"), archive: true},
		{path: "/gitlab.com/group/sub/repo/linux/amd64/v1", want: nested},
		{path: "/gitlab.com/group/sub/repo/linux/amd64/v1/repo_linux_amd64.tar.gz", want: nested, archive: true},
		{path: "/github.com/rakyll/hey/linux/amd64/release%2F1.2", want: hey("release/1.2")},
		{path: "/github.com/rakyll/hey/linux/amd64/release%2f1.2/hey_linux_amd64.tar.gz", want: hey("release/1.2"), archive: true},
		{path: "/%67ithub.com/rakyll/hey/linux/amd64/v1+meta", want: hey("v1+meta")},
		{path: "/github.com/rakyll/hey/linux/amd64/hey_linux_amd64.tar.gz", want: hey("hey_linux_amd64.tar.gz")},
	} {
		got, archive, err := parse(tc.path)
		if err != nil || got != tc.want || archive != tc.archive {
			t.Errorf("parse(%q) = %+v, %v, %v; want %+v, %v", tc.path, got, archive, err, tc.want, tc.archive)
		}
	}
}

func TestParseTargetRefuses(t *testing.T) {
	for path, want := range map[string]error{
		"":                                       build.ErrInvalid,
		"*":                                      build.ErrInvalid,
		"/github.com/rakyll/hey/linux/amd64/v1/": build.ErrInvalid,
		"//github.com/rakyll/hey/linux/amd64/v1": build.ErrInvalid,
		"/github.com//rakyll/hey/linux/amd64/v1": build.ErrInvalid,
		"/github.com/../hey/linux/amd64/v1":      build.ErrInvalid,
		"/github.com/rakyll/%2e%2e/linux/amd64/v1":                     build.ErrInvalid,
		"/github.com/rakyll/hey/linux/amd64/..":                        build.ErrInvalid,
		"/github.com/rakyll%2Fx/hey/linux/amd64/v1":                    build.ErrInvalid,
		"/github.com/rakyll/hey/linux%2Famd64/x/v1":                    build.ErrInvalid,
		"/github.com/rakyll/hey/linux/amd64/v1%00":                     build.ErrInvalid,
		"/github.com/rakyll/hey/linux/amd64/$(id)":                     build.ErrInvalid,
		"/github.com/rakyll/hey/linux/amd64/-v":                        build.ErrInvalid,
		"/github.com/rakyll/hey/linux/amd65/v1":                        build.ErrInvalid,
		"/github.com/rakyll/hey.git/linux/amd64/v1":                    build.ErrInvalid,
		"/user:secret@github.com/rakyll/hey/linux/amd64/v1":            build.ErrInvalid,
		"/github.com/rakyll/hey/linux/amd64/%zz":                       build.ErrInvalid,
		"/github.com/rakyll/hey/linux/amd64":                           errNoRoute,
		"/github.com/rakyll/hey/linux/amd64/v1/hey_linux_arm64.tar.gz": errNoRoute,
		"/" + strings.Repeat("a/", maxPath):                            errPathTooLong,
	} {
		if got, _, err := parse(path); !errors.Is(err, want) {
			t.Errorf("parse(%q) = %+v, %v; want %v", path, got, err, want)
		}
	}
}

// What is parsed is valid, and the path that we write for it means the same.
func FuzzParseTarget(f *testing.F) {
	for _, seed := range []string{
		"/github.com/rakyll/hey/linux/amd64/v0.1.4",
		"/github.com/rakyll/hey/linux/amd64/v0.1.4/hey_linux_amd64.tar.gz",
		"/gitlab.com/a/b/c/js/wasm/x%2Fy",
		"/a/linux/amd64/js/wasm/linux_amd64_js.tar.gz/x",
		"/h/o/linux/js/wasm/o_linux_js.tar.gz",
		"/%2e%2e/o/r/linux/amd64/%00",
		"//x",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		got, archive, err := parse(path)
		if err != nil {
			return
		}
		if err := got.Validate(); err != nil {
			t.Fatalf("parse(%q) = %+v, which is not valid: %v", path, got, err)
		}
		written := targetPath(got)
		if archive {
			written = archivePath(got)
		}
		again, archiveAgain, err := parse(written)
		if err != nil || again != got || archiveAgain != archive {
			t.Fatalf("parse(%q) = %+v, %v; written as %q it is %+v, %v, %v", path, got, archive, written, again, archiveAgain, err)
		}
	})
}
