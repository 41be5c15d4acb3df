package sandbox

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/monochromegane/cargo/executor"
)

// probePrefix begins the names of what ProbeFiles makes.
const probePrefix = ".cargo-probe-"

// ProbeFiles mounts a small file system in dir, an absolute path, and runs a
// step with image that reads a file there and writes another: that shows that
// the runtime sees the files of this machine under the same names, also those
// of a later mount, that its processes are this machine's, and that a step owns
// what it must own. Where this program may not mount, it probes dir alone. It
// leaves nothing in dir, and removes what a killed one has left there.
func ProbeFiles(ctx context.Context, e executor.Executor, image executor.Image, dir string) (err error) {
	if err := sweepProbes(dir); err != nil {
		return fmt.Errorf("probe %s: %w", dir, err)
	}
	probe, want, err := prepareProbe(dir)
	defer func() {
		if serr := sweepProbes(dir); serr != nil {
			err = errors.Join(err, fmt.Errorf("probe %s: %w", dir, serr))
		}
	}()
	if err != nil {
		return fmt.Errorf("probe %s: %w", dir, err)
	}
	var out, problem bytes.Buffer
	err = e.Run(ctx, executor.Step{
		ID:     "probe-" + rand.Text(),
		Image:  image.Ref,
		Args:   []string{"/bin/sh", "-c", `read -r x <in && echo "$x" && echo "$x" >out`},
		Dir:    "/mnt",
		Mounts: []executor.Mount{{Source: probe, Target: "/mnt", Writable: true}},
		Stdout: &out,
		Stderr: &problem,
	})
	written, rerr := os.ReadFile(filepath.Join(probe, "out"))
	if err == nil && rerr == nil && strings.TrimSpace(out.String()) == want && strings.TrimSpace(string(written)) == want {
		return nil
	}
	if ctx.Err() != nil || errors.Is(err, executor.ErrUnavailable) || errors.Is(err, executor.ErrNoImage) {
		return err
	}
	if err == nil {
		err = errors.New("it sees other files")
	}
	return fmt.Errorf("it does not share the files of this machine under %s, with what Cargo mounts there: %w %s; "+
		"Cargo must run on its machine and in its mount namespace (as a systemd unit without PrivateTmp, PrivateMounts, ProtectSystem, "+
		"ProtectHome, ReadWritePaths and the like), and a runtime that is rootless or in a virtual machine will not do",
		dir, err, bytes.TrimSpace(problem.Bytes()))
}

// prepareProbe makes a directory in dir that a step can write to, with the file
// in and its content in it.
func prepareProbe(dir string) (probe, content string, err error) {
	if probe, err = os.MkdirTemp(dir, probePrefix); err != nil {
		return "", "", err
	}
	if err := unix.Mount("cargo-probe", probe, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=64k,mode=700"); err != nil && !errors.Is(err, unix.EPERM) {
		return "", "", fmt.Errorf("mount %s: %w", probe, err)
	}
	content = rand.Text()
	if err := os.WriteFile(filepath.Join(probe, "in"), []byte(content+"\n"), 0o644); err != nil { // the step is another user
		return "", "", err
	}
	return probe, content, os.Chown(probe, executor.HostUID, executor.HostUID)
}

// sweepProbes removes all probes from dir.
func sweepProbes(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), probePrefix) {
			continue
		}
		probe := filepath.Join(dir, entry.Name())
		_ = unix.Unmount(probe, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) // if it is mounted
		errs = append(errs, os.RemoveAll(probe))
	}
	return errors.Join(errs...)
}
