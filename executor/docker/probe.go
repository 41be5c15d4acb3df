package docker

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/monochromegane/cargo/executor"
)

// ProbeFiles runs a step with image that reads a file in dir, an absolute path,
// and writes another: that shows that the daemon sees the files of this
// machine under the same names, that its processes are this machine's, and that
// a step owns what it must own. It leaves nothing in dir.
func (e *Executor) ProbeFiles(ctx context.Context, image executor.Image, dir string) (err error) {
	probe, err := os.MkdirTemp(dir, ".docker-probe-")
	if err != nil {
		return fmt.Errorf("docker: probe %s: %w", dir, err)
	}
	defer func() {
		if rerr := os.RemoveAll(probe); rerr != nil {
			err = errors.Join(err, fmt.Errorf("docker: probe %s: %w", dir, rerr))
		}
	}()
	want := rand.Text()
	if err := prepare(probe, want); err != nil {
		return fmt.Errorf("docker: probe %s: %w", dir, err)
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
	return fmt.Errorf("docker: the daemon at %s does not share the files of this machine under %s: %w %s; "+
		"Cargo must run on the machine of the daemon, and a daemon that is rootless or in a virtual machine will not do",
		e.client.DaemonHost(), dir, err, bytes.TrimSpace(problem.Bytes()))
}

// prepare makes dir one that a step can write to, with the file in.
func prepare(dir, content string) error {
	if err := os.WriteFile(filepath.Join(dir, "in"), []byte(content+"\n"), 0o644); err != nil {
		return err
	}
	return os.Chown(dir, executor.HostUID, executor.HostUID)
}
