// Package modrepo turns Go modules into git repositories, for demonstrations
// and measurements where the real host cannot be reached. It needs the go and
// the git program.
package modrepo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/mod/zip"
)

// A Work is a directory whose content becomes the commits of a repository.
// Equal contents make equal commits: author and time are fixed.
type Work struct {
	Dir string
}

// New makes a repository of the directory dir, which must exist.
func New(ctx context.Context, dir string) (Work, error) {
	w := Work{dir}
	return w, w.git(ctx, "init", "-q", "-b", "main")
}

// Unpack writes the files of a module at a version, MODULE@VERSION, into the
// directory. The go command fetches and verifies it.
func (w Work) Unpack(ctx context.Context, name string) (module.Version, error) {
	out, err := exec.CommandContext(ctx, "go", "mod", "download", "-json", name).Output()
	var info struct{ Path, Version, Zip, Error string }
	if jsonErr := json.Unmarshal(out, &info); jsonErr != nil {
		return module.Version{}, errors.Join(err, jsonErr)
	}
	if info.Error != "" {
		return module.Version{}, errors.New(info.Error)
	}
	m := module.Version{Path: info.Path, Version: info.Version}
	// zip.Unzip wants an empty directory, and this one has a .git by now.
	tree, err := os.MkdirTemp(filepath.Join(w.Dir, ".git"), "module-")
	if err != nil {
		return m, err
	}
	defer os.RemoveAll(tree)
	if err := zip.Unzip(tree, m, info.Zip); err != nil {
		return m, err
	}
	return m, os.CopyFS(w.Dir, os.DirFS(tree))
}

// Commit commits all that is in the directory and tags it with the version.
func (w Work) Commit(ctx context.Context, version string) error {
	return errors.Join(
		w.git(ctx, "add", "--all", "--force"),
		w.git(ctx, "commit", "-q", "-m", version),
		w.git(ctx, "tag", "-a", "-m", version, version),
	)
}

// Checkout makes the directory what it was when it was tagged.
func (w Work) Checkout(ctx context.Context, version string) error {
	return w.git(ctx, "checkout", "-q", "--detach", version)
}

// Publish makes the bare repository at the path bare, with every commit and tag.
func (w Work) Publish(ctx context.Context, bare string) error {
	return w.git(ctx, "clone", "-q", "--bare", ".", bare)
}

func (w Work) git(ctx context.Context, args ...string) error {
	const date = "2026-01-01T00:00:00Z"
	git := exec.CommandContext(ctx, "git", args...)
	git.Dir = w.Dir
	git.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL="+os.DevNull,
		"GIT_AUTHOR_NAME=githost", "GIT_AUTHOR_EMAIL=githost@localhost", "GIT_AUTHOR_DATE="+date,
		"GIT_COMMITTER_NAME=githost", "GIT_COMMITTER_EMAIL=githost@localhost", "GIT_COMMITTER_DATE="+date)
	if out, err := git.CombinedOutput(); err != nil {
		return fmt.Errorf("git %s: %w\n%s", args[0], err, strings.TrimSpace(string(out)))
	}
	return nil
}
