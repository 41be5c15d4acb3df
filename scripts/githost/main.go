// Githost serves Go modules as git repositories on loopback, for the demo where
// the real host cannot be reached. Each argument is a module at a version; the
// go command fetches and verifies it, and its code becomes the only commit of
// /owner/name.git, tagged with the version. It prints its base URL when it serves.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
	"github.com/monochromegane/cargo/scripts/modrepo"
)

func main() {
	flag.Usage = func() { fmt.Fprintln(os.Stderr, "usage: githost MODULE@VERSION...") }
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serve(ctx, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "githost:", err)
		os.Exit(1)
	}
}

// serve serves the modules until ctx ends.
func serve(ctx context.Context, modules []string) error {
	root, err := os.MkdirTemp("", "githost-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	for _, m := range modules {
		if err := repository(ctx, root, m); err != nil {
			return fmt.Errorf("%s: %w", m, err)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("http://%s\n", ln.Addr())
	srv := &http.Server{Handler: gitsrctest.Handler(root, nil), ReadHeaderTimeout: 10 * time.Second}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// repository makes the bare repository of one module below root.
func repository(ctx context.Context, root, name string) error {
	tree, err := os.MkdirTemp(root, "tree-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	work, err := modrepo.New(ctx, tree)
	if err != nil {
		return err
	}
	m, err := work.Unpack(ctx, name)
	if err != nil {
		return err
	}
	_, path, ok := strings.Cut(m.Path, "/")
	if !ok {
		return errors.New("its path has no owner and name")
	}
	if err := work.Commit(ctx, m.Version); err != nil {
		return err
	}
	return work.Publish(ctx, filepath.Join(root, filepath.FromSlash(path)+".git"))
}
