package sandbox

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/monochromegane/cargo/executor"
)

// CheckMounts looks at the mounts of a step before a runtime does. It returns
// executor.ErrMount where a target inside an earlier mount is no directory
// there, or is reached through a symbolic link: a runtime would follow that, or
// make the directory, or report a fault of its own. Nothing may write to the
// sources between this and the start of the step.
func CheckMounts(mounts []executor.Mount) error {
	for i, m := range mounts {
		if !path.IsAbs(m.Source) || !path.IsAbs(m.Target) {
			return fmt.Errorf("mount %s at %s: want absolute paths", m.Source, m.Target)
		}
		if slices.ContainsFunc(mounts[:i], func(earlier executor.Mount) bool {
			_, ok := below(earlier.Target, m.Target)
			return ok
		}) {
			return fmt.Errorf("the mount at %s comes after one inside it", m.Target)
		}
		outer, rest := innermost(mounts[:i], m.Target)
		if outer.Target == "" {
			continue
		}
		if err := findDirectory(outer.Source, rest); err != nil {
			return fmt.Errorf("mount at %s: %w", m.Target, err)
		}
	}
	return nil
}

// below returns the path of name relative to dir, if name lies inside dir or
// is dir.
func below(name, dir string) (rest string, ok bool) {
	name, dir = path.Clean(name), path.Clean(dir)
	if name == dir {
		return ".", true
	}
	return strings.CutPrefix(name, strings.TrimSuffix(dir, "/")+"/")
}

// innermost returns the mount that target lies in, and where in it. It has no
// Target if there is none.
func innermost(mounts []executor.Mount, target string) (outer executor.Mount, rest string) {
	for _, m := range mounts {
		if r, ok := below(target, m.Target); ok && len(path.Clean(m.Target)) > len(outer.Target) {
			outer, rest = m, r
			outer.Target = path.Clean(m.Target)
		}
	}
	return outer, rest
}

// findDirectory looks for the directory name in dir, whose content is hostile.
func findDirectory(dir, name string) error {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	switch {
	case err == nil:
		return unix.Close(fd)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return fmt.Errorf("%w: %s in %s: %w", executor.ErrMount, name, dir, err)
	}
	return fmt.Errorf("look for %s in %s: %w", name, dir, err)
}
