package build_test

import (
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/monochromegane/cargo/build"
)

func target() build.Target {
	return build.Target{
		Repository: build.Repository{Remote: "github.com", Owner: "me", Name: "app"},
		GOOS:       "linux", GOARCH: "amd64", Version: "v1.0.0",
	}
}

func TestValidate(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*build.Target)
		valid  bool
	}{
		{"plain", func(*build.Target) {}, true},
		{"nested owner", func(t *build.Target) { t.Owner = "group/sub" }, true},
		{"tilde owner", func(t *build.Target) { t.Owner = "~me" }, true},
		{"slash in version", func(t *build.Target) { t.Version = "release/1.2+x" }, true},
		{"recipe", func(t *build.Target) { t.Recipe = build.RecipeGo }, true},
		{"unknown recipe", func(t *build.Target) { t.Recipe = "rust" }, false},
		{"unknown platform", func(t *build.Target) { t.GOARCH = "z80" }, false},
		{"swapped platform", func(t *build.Target) { t.GOOS, t.GOARCH = t.GOARCH, t.GOOS }, false},
		{"shell in version", func(t *build.Target) { t.Version = "v1$(id)" }, false},
		{"option as version", func(t *build.Target) { t.Version = "-upload-pack" }, false},
		{"newline in version", func(t *build.Target) { t.Version = "v1\n" }, false},
		{"long version", func(t *build.Target) { t.Version = strings.Repeat("v", 129) }, false},
		{"no version", func(t *build.Target) { t.Version = "" }, false},
		{"dots as owner", func(t *build.Target) { t.Owner = ".." }, false},
		{"dots in owner", func(t *build.Target) { t.Owner = "a/../b" }, false},
		{"empty group", func(t *build.Target) { t.Owner = "a//b" }, false},
		{"deep owner", func(t *build.Target) { t.Owner = strings.Repeat("a/", 20) + "a" }, false},
		{"hidden name", func(t *build.Target) { t.Name = ".git" }, false},
		{"suffixed name", func(t *build.Target) { t.Name = "app.Git" }, false},
		{"port in remote", func(t *build.Target) { t.Remote = "host:80" }, false},
		{"upper-case remote", func(t *build.Target) { t.Remote = "GitHub.com" }, false},
		{"dots in remote", func(t *build.Target) { t.Remote = "a..b" }, false},
	} {
		target := target()
		tc.change(&target)
		if err := target.Validate(); (err == nil) != tc.valid || err != nil && !errors.Is(err, build.ErrInvalid) {
			t.Errorf("%s: Validate = %v", tc.name, err)
		}
	}
}

// The known platforms are those of the Go command.
func TestPlatforms(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "tool", "dist", "list").Output()
	if err != nil {
		t.Skip(err)
	}
	for platform := range strings.FieldsSeq(string(out)) {
		target := target()
		target.GOOS, target.GOARCH, _ = strings.Cut(platform, "/")
		if err := target.Validate(); err != nil {
			t.Error(err)
		}
	}
}

// What differs in any part has another key; only the image leaves the slot as it is.
func TestKey(t *testing.T) {
	base := build.Key{Target: target(), Commit: strings.Repeat("a", 40), Image: "sha256:1"}
	seen := map[string]string{base.Digest(): "base"}
	for name, change := range map[string]func(*build.Key){
		"remote":  func(k *build.Key) { k.Remote = "gitlab.com" },
		"split":   func(k *build.Key) { k.Owner, k.Version = "m", "ev1.0.0" },
		"version": func(k *build.Key) { k.Version = "v1" },
		"goos":    func(k *build.Key) { k.GOOS = "darwin" },
		"recipe":  func(k *build.Key) { k.Recipe = build.RecipeGo },
		"commit":  func(k *build.Key) { k.Commit = strings.Repeat("b", 40) },
		"image":   func(k *build.Key) { k.Image = "sha256:2" },
	} {
		k := base
		change(&k)
		if other, ok := seen[k.Digest()]; ok {
			t.Errorf("%s has the key of %s", name, other)
		}
		seen[k.Digest()] = name
		if same := k.Slot() == base.Slot(); same != (name == "image") {
			t.Errorf("%s: the slot is the same: %v", name, same)
		}
	}
}

func TestID(t *testing.T) {
	a, b := build.NewID(), build.NewID()
	if a == b || !a.Valid() || !b.Valid() {
		t.Errorf("ids %q and %q", a, b)
	}
	for _, id := range []build.ID{"", a[:31], a + "0", "../../../../../../../../etc/passwd", build.ID(strings.ToUpper(string("abcdef" + a[6:])))} {
		if id.Valid() {
			t.Errorf("%q is valid", id)
		}
	}
}

// The record is the API: its names are there to stay.
func TestRecordJSON(t *testing.T) {
	code := 2
	at := time.Date(2026, 1, 2, 3, 4, 5, 600_000_000, time.UTC)
	text, err := json.Marshal(build.Build{
		ID: "0123", Key: build.Key{Target: target(), Commit: "c", Image: "i"}, RefName: "refs/tags/v1.0.0", Public: true,
		State: build.Failed, Reason: build.ReasonExit, Message: "m", ExitCode: &code, AcceptedAt: at,
		Phases:   []build.Phase{{Name: build.PhaseFetch, Seconds: 0.5}},
		Artifact: &build.Artifact{Name: "a", Size: 1, SHA256: "s"}, Executor: "docker", Attempt: 1,
	})
	const want = `{"build_id":"0123","remote":"github.com","owner":"me","repo":"app","goos":"linux","goarch":"amd64","version":"v1.0.0","commit":"c","image":"i",` +
		`"ref":"refs/tags/v1.0.0","public":true,"state":"failed","reason":"exit","message":"m","exit_status":2,"accepted_at":"2026-01-02T03:04:05.6Z",` +
		`"phases":[{"name":"fetch","seconds":0.5}],"artifact":{"name":"a","size":1,"sha256":"s"},"executor":"docker","attempt":1}`
	if err != nil || string(text) != want {
		t.Errorf("%s (%v), want %s", text, err, want)
	}
}
