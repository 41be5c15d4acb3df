// Githost serves Go modules as git repositories on loopback, for the demo where
// the real host cannot be reached. Each argument is a module at a version; the
// go command fetches and verifies it, and its code becomes the only commit of
// /owner/name.git, tagged with the version. It prints its base URL when it serves.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/zip"

	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
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
	out, err := exec.CommandContext(ctx, "go", "mod", "download", "-json", name).Output()
	var info struct{ Path, Version, Zip, Error string }
	if jsonErr := json.Unmarshal(out, &info); jsonErr != nil {
		return errors.Join(err, jsonErr)
	}
	if info.Error != "" {
		return errors.New(info.Error)
	}
	_, name, ok := strings.Cut(info.Path, "/")
	if !ok {
		return errors.New("its path has no owner and name")
	}
	tree, err := os.MkdirTemp(root, "tree-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	if err := zip.Unzip(tree, module.Version{Path: info.Path, Version: info.Version}, info.Zip); err != nil {
		return err
	}
	bare := filepath.Join(root, filepath.FromSlash(name)+".git")
	for _, args := range [][]string{
		{"init", "-q", "-b", "main"},
		{"add", "--all", "--force"},
		{"commit", "-q", "-m", info.Version},
		{"tag", "-a", "-m", info.Version, info.Version},
		{"clone", "-q", "--bare", ".", bare},
	} {
		git := exec.CommandContext(ctx, "git", args...)
		git.Dir = tree
		git.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
			"GIT_AUTHOR_NAME=githost", "GIT_AUTHOR_EMAIL=githost@localhost", "GIT_AUTHOR_DATE=2026-01-01T00:00:00Z",
			"GIT_COMMITTER_NAME=githost", "GIT_COMMITTER_EMAIL=githost@localhost", "GIT_COMMITTER_DATE=2026-01-01T00:00:00Z")
		if out, err := git.CombinedOutput(); err != nil {
			return fmt.Errorf("git %s: %w\n%s", args[0], err, out)
		}
	}
	return nil
}
