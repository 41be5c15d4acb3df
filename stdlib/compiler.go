package stdlib

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/monochromegane/cargo/cache"
	"github.com/monochromegane/cargo/executor"
)

// goPath is what the container may write to.
const goPath = "/go"

// environment is that of every step here, but for the target. Of what builds
// have, it is what the go command makes part of an entry's name, and where it
// may write.
func environment() []string {
	return []string{
		"CGO_ENABLED=0", "GOTOOLCHAIN=local", "GOENV=off", "GOFLAGS=", "GOPROXY=off", "GOWORK=off",
		"HOME=" + goPath + "/home", "GOPATH=" + goPath, "GOCACHE=" + goPath + "/cache", "GOTMPDIR=" + goPath + "/tmp", "TMPDIR=" + goPath + "/tmp",
	}
}

// A compiler compiles the library for one platform.
type compiler struct {
	*Library
	platform   cache.Platform
	background bool
	dir        string // goPath on the host
}

func (c *compiler) cacheDir() string { return filepath.Join(c.dir, "cache") }

// layOut makes the directories of the build user below dir.
func (c *compiler) layOut(dir string) error {
	c.dir = filepath.Join(dir, "go")
	for _, d := range []string{c.dir, c.cacheDir(), filepath.Join(c.dir, "home"), filepath.Join(c.dir, "tmp")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
		if err := os.Chown(d, executor.HostUID, executor.HostUID); err != nil {
			return err
		}
	}
	return nil
}

// run compiles every package as builds do: -trimpath is part of what the go
// command looks for. Other flags that builds have by themselves, such as
// -buildvcs, make no difference.
func (c *compiler) run(ctx context.Context) error {
	list, said := text{max: maxList}, text{max: maxSaid}
	if err := c.step(ctx, &list, &said, "go", "list", "std"); err != nil {
		return withText(err, said.b)
	}
	p := newProgress(c, strings.Fields(string(list.b)))
	if err := c.step(ctx, nil, p, "go", "build", "-v", "-trimpath", "std"); err != nil {
		return withText(err, append(p.rest.b, p.line.b...))
	}
	return nil
}

func (c *compiler) step(ctx context.Context, stdout, stderr io.Writer, args ...string) error {
	env := append(environment(), "GOOS="+c.platform.GOOS, "GOARCH="+c.platform.GOARCH)
	if cpus := c.Limits.CPUs; cpus > 0 {
		// Without /sys the Go runtime cannot see the quota.
		env = append(env, "GOMAXPROCS="+strconv.Itoa(int(math.Ceil(cpus))))
	}
	err := c.Executor.Run(ctx, executor.Step{
		ID:         stepID("stdlib"),
		Image:      c.Image,
		Args:       args,
		Env:        env,
		Mounts:     []executor.Mount{{Source: c.dir, Target: goPath, Writable: true}},
		Limits:     c.Limits,
		Background: c.background,
		Stdout:     stdout,
		Stderr:     stderr,
	})
	if err != nil {
		return fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// stepID is a fresh one.
func stepID(doing string) string { return doing + "-" + rand.Text() }

// withText adds what a command said to its error.
func withText(err error, said []byte) error {
	if said = bytes.TrimSpace(said); len(said) > 0 {
		return fmt.Errorf("%w: %s", err, said)
	}
	return err
}

// progressEvery is how many packages are compiled between two lines of the log.
const progressEvery = 100

// progress reads what go build -v writes: the packages, one a line, as it
// compiles them, and what goes wrong.
type progress struct {
	*compiler
	left     map[string]bool // not compiled yet
	done, of int
	line     text // that has not ended yet
	rest     text // the lines that name no package
}

// maxLine is longer than the name of any package.
const maxLine = 4 << 10

func newProgress(c *compiler, packages []string) *progress {
	p := &progress{compiler: c, left: make(map[string]bool, len(packages)), of: len(packages), line: text{max: maxLine}, rest: text{max: maxSaid}}
	for _, name := range packages {
		p.left[name] = true
	}
	return p
}

func (p *progress) Write(b []byte) (int, error) {
	for line := range bytes.Lines(b) {
		_, _ = p.line.Write(line)
		if line[len(line)-1] == '\n' {
			p.end()
			p.line.b = p.line.b[:0]
		}
	}
	return len(b), nil
}

func (p *progress) end() {
	name := string(bytes.TrimSpace(p.line.b))
	if !p.left[name] {
		_, _ = fmt.Fprintln(&p.rest, name)
		return
	}
	delete(p.left, name)
	p.done++
	if p.done%progressEvery == 0 {
		p.Log.Info("preparing the standard library", "platform", p.platform.String(), "packages", p.done, "of", p.of)
	}
	// The rest is to keep what was compiled.
	p.Metrics.LibraryPrepared(p.platform.GOOS, p.platform.GOARCH, min(float64(p.done)/float64(p.of), 0.99))
}
