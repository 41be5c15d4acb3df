package stdlib

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/monochromegane/cargo/cache"
	"github.com/monochromegane/cargo/executor"
)

// variantOf is the setting that chooses the variant of each architecture
// (https://go.dev/wiki/MinimumRequirements#microarchitecture-support).
var variantOf = map[string]string{
	"386": "GO386", "amd64": "GOAMD64", "arm": "GOARM", "arm64": "GOARM64",
	"mips": "GOMIPS", "mipsle": "GOMIPS", "mips64": "GOMIPS64", "mips64le": "GOMIPS64",
	"ppc64": "GOPPC64", "ppc64le": "GOPPC64", "riscv64": "GORISCV64", "wasm": "GOWASM",
}

// A Toolchain is the go command of a builder image.
type Toolchain struct {
	Version  cache.Toolchain   // such as go1.26.8
	settings map[string]string // of variantOf
}

// Platform is the target goos/goarch as this toolchain builds for it, without cgo.
func (t Toolchain) Platform(goos, goarch string) cache.Platform {
	p := cache.Platform{GOOS: goos, GOARCH: goarch}
	if name := variantOf[goarch]; t.settings[name] != "" {
		p.Variant = name + "=" + t.settings[name]
	}
	return p
}

// Inspect asks the go command of an image what it is.
func Inspect(ctx context.Context, e executor.Executor, image string) (Toolchain, error) {
	args := append([]string{"go", "env", "-json", "GOVERSION"}, slices.Compact(slices.Sorted(maps.Values(variantOf)))...)
	var stdout, stderr text
	err := e.Run(ctx, executor.Step{ID: stepID("env"), Image: image, Args: args, Env: environment, Stdout: &stdout, Stderr: &stderr})
	if err != nil {
		return Toolchain{}, fmt.Errorf("ask the image's go command what it is: %w %s", err, bytes.TrimSpace(stderr.b))
	}
	t := Toolchain{settings: map[string]string{}}
	if err := json.Unmarshal(stdout.b, &t.settings); err != nil {
		return Toolchain{}, fmt.Errorf("read what the image's go command says of itself: %w", err)
	}
	t.Version = cache.Toolchain(t.settings["GOVERSION"])
	if t.Version == "" {
		return Toolchain{}, fmt.Errorf("the image's go command does not say its version: %.200q", stdout.b)
	}
	return t, nil
}

// maxText bounds what is kept of a command's output.
const maxText = 64 << 10

// text keeps the beginning of what is written to it.
type text struct{ b []byte }

func (t *text) Write(p []byte) (int, error) {
	t.b = append(t.b, p[:min(len(p), maxText-len(t.b))]...)
	return len(p), nil
}
