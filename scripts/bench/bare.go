package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"
)

// goEnv is what Cargo's own recipe sets too.
var goEnv = []string{"CGO_ENABLED=0", "GOFLAGS=-buildvcs=false", "GO111MODULE=on", "GOWORK=off"}

// A bare is go build on this machine, without Cargo.
type bare struct {
	lab       *lab
	std       string // GOCACHE with nothing but the standard library
	toolchain string
}

// newBare compiles the standard library and gets the modules of the apps, into
// the module cache of this machine's user.
func (l *lab) newBare(ctx context.Context, toolchain string) (*bare, error) {
	b := &bare{lab: l, std: filepath.Join(l.scratch, "gocache"), toolchain: toolchain}
	for _, goos := range preparedOn {
		progress("compiling the standard library for bare builds, %s", goos)
		if err := command(ctx, l.scratch, b.env(b.std, goos), io.Discard, "go", "build", "-trimpath", "std"); err != nil {
			return nil, err
		}
	}
	for _, name := range l.apps.names {
		for _, goos := range l.systems(name) {
			dir := l.apps.work(name).Dir
			if err := command(ctx, dir, b.env(b.std, goos), io.Discard, "go", "list", "-deps", catalog[name].main); err != nil {
				return nil, err
			}
		}
	}
	return b, nil
}

func (b *bare) env(cache, goos string) []string {
	env := append([]string{"GOCACHE=" + cache, "GOOS=" + goos, "GOARCH=" + runtime.GOARCH}, goEnv...)
	if b.toolchain != "" {
		env = append(env, "GOTOOLCHAIN="+b.toolchain+"+auto")
	}
	return env
}

// A bareCache is a GOCACHE that began with the standard library alone.
type bareCache struct {
	*bare
	dir string
}

// with has f use a fresh cache. Its files are links: the go command adds files
// and does not change them.
func (b *bare) with(ctx context.Context, f func(bareCache) error) error {
	dir, err := os.MkdirTemp(b.lab.scratch, "bare-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c := bareCache{b, filepath.Join(dir, "gocache")}
	if err := command(ctx, "", nil, io.Discard, "cp", "-al", b.std, c.dir); err != nil {
		return err
	}
	return f(c)
}

// build measures one go build of an app at a version.
func (c bareCache) build(ctx context.Context, label, name, goos, version string) (time.Duration, error) {
	w := c.lab.apps.work(name)
	if err := w.Checkout(ctx, version); err != nil {
		return 0, err
	}
	out, err := os.MkdirTemp(filepath.Dir(c.dir), "out-") // a binary that is there already might not be linked again
	if err != nil {
		return 0, err
	}
	began := time.Now()
	err = command(ctx, w.Dir, c.env(c.dir, goos), io.Discard, "go", "build", "-trimpath", "-o", out+"/", catalog[name].main)
	took := time.Since(began)
	if err != nil {
		return 0, fmt.Errorf("bare build of %s: %w", name, err)
	}
	progress("%6.2f s bare: %s", took.Seconds(), label)
	return took, nil
}
