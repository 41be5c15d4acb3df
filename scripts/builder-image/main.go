// Builder-image assembles the image that builds run in, without a registry:
// a small Debian or Ubuntu userland from the packages that apt is configured
// for on this host, and a Go toolchain from the module proxy. It writes the
// form that docker save writes, which both engines load, and prints the digest
// of the image's configuration.
//
// It needs apt-get, dpkg-deb and go, no root, and leaves nothing but the
// archive and what the go command keeps in the module cache. The same packages
// give the same digest.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	out := flag.String("o", "bin/builder.tar", "write the archive to `file`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	digest, err := run(ctx, *out)
	if err != nil {
		fmt.Fprintln(os.Stderr, "builder-image:", err)
		os.Exit(1)
	}
	fmt.Println(digest)
}

// run assembles the image in a directory beside out, so that the last step is a rename.
func run(ctx context.Context, out string) (digest string, err error) {
	out, err = filepath.Abs(out)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(filepath.Dir(out), ".builder-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)

	system, err := userland(ctx, dir)
	if err != nil {
		return "", fmt.Errorf("userland: %w", err)
	}
	toolchain, err := goToolchain(ctx, dir)
	if err != nil {
		return "", fmt.Errorf("go toolchain: %w", err)
	}
	defer toolchain.Close()
	return writeImage(ctx, dir, out, system, toolchain.files)
}
