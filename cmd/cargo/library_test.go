package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// A preparedLibrary is a data directory in which nothing but the standard
// library was prepared, for the whole of this process: that takes a minute and
// more, and what comes of it is the same on both engines.
// CARGO_TEST_LIBRARY names one that is there already.
type preparedLibrary struct {
	once sync.Once
	dir  string
	err  error
}

var library preparedLibrary // main removes it

// copyLibrary gives the server that is to run on a data directory a prepared
// standard library of its own.
func copyLibrary(t *testing.T, engine, data string) {
	t.Helper()
	image := builderImage(t)
	library.once.Do(func() { library.err = library.prepare(engine, image) })
	err := library.err
	if err == nil {
		err = command("mkdir", "-p", filepath.Join(data, "cache"))
	}
	if err == nil { // no links: what harms one server must not harm another
		err = command("cp", "-a", filepath.Join(library.dir, "cache", "packages"), filepath.Join(data, "cache"))
	}
	if err != nil {
		t.Fatalf("prepare the standard library: %v", err)
	}
}

func (l *preparedLibrary) prepare(engine, image string) (err error) {
	if l.dir = os.Getenv("CARGO_TEST_LIBRARY"); l.dir != "" {
		return nil
	}
	if l.dir, err = os.MkdirTemp("", "cargo-library-"); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Cmd{Path: self, Args: []string{"cargo", "cache", "prepare", "--executor", engine, "--data-dir", l.dir, "--image", image}, Env: os.Environ()}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func (l *preparedLibrary) remove() {
	if os.Getenv("CARGO_TEST_LIBRARY") == "" && l.dir != "" {
		_ = os.RemoveAll(l.dir)
	}
}

func command(args ...string) error {
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%q: %w: %s", args, err, out)
	}
	return nil
}
