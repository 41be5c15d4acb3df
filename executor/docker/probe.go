package docker

import (
	"context"
	"fmt"

	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/sandbox"
)

// ProbeFiles makes sure that the daemon sees the files of this machine in dir,
// an absolute path, and what Cargo mounts there, by a step with image. It
// leaves nothing in dir.
func (e *Executor) ProbeFiles(ctx context.Context, image executor.Image, dir string) error {
	if err := sandbox.ProbeFiles(ctx, e, image, dir); err != nil {
		return fmt.Errorf("docker at %s: %w", e.client.DaemonHost(), err)
	}
	return nil
}
