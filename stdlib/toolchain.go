package stdlib

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

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

// inspectTimeout bounds what a go command takes to say what it is.
const inspectTimeout = 2 * time.Minute

// Inspect asks the go command of an image what it is. An image without one is
// an error that names neither image nor flag.
func Inspect(ctx context.Context, e executor.Executor, image string) (Toolchain, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, inspectTimeout, fmt.Errorf("it did not answer within %v", inspectTimeout))
	defer cancel()
	args := append([]string{"go", "env", "-json", "GOVERSION"}, slices.Compact(slices.Sorted(maps.Values(variantOf)))...)
	stdout, stderr := text{max: maxList}, text{max: maxSaid}
	err := e.Run(ctx, executor.Step{ID: stepID("env"), Image: image, Args: args, Env: environment(), Stdout: &stdout, Stderr: &stderr})
	if err != nil {
		return Toolchain{}, fmt.Errorf("ask its go command what it is: %w", withText(err, stderr.b))
	}
	t := Toolchain{settings: map[string]string{}}
	if err := json.Unmarshal(stdout.b, &t.settings); err != nil {
		return Toolchain{}, fmt.Errorf("its go command says %.200q of itself: %w", stdout.b, err)
	}
	t.Version = cache.Toolchain(t.settings["GOVERSION"])
	if t.Version == "" {
		return Toolchain{}, fmt.Errorf("its go command does not say its version, but %.200q", stdout.b)
	}
	return t, nil
}
