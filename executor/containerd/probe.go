package containerd

import (
	"context"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/sandbox"
)

// ProbeFiles makes sure that containerd sees the files of this machine in dir,
// an absolute path, and what Cargo mounts there: it does if it is in the same
// mount namespace, and else a step with image finds out. It leaves nothing in
// dir.
func (e *Executor) ProbeFiles(ctx context.Context, image executor.Image, dir string) error {
	if same, err := e.sameMounts(ctx); err == nil && same {
		return nil
	}
	if err := sandbox.ProbeFiles(ctx, e, image, dir); err != nil {
		return fmt.Errorf("containerd at %s: %w", e.address, err)
	}
	return nil
}

// sameMounts reports whether containerd is known to have the mounts and the
// root directory of this process.
func (e *Executor) sameMounts(ctx context.Context) (bool, error) {
	pid, err := e.pid(ctx)
	if err != nil {
		return false, err
	}
	for _, link := range []string{"ns/mnt", "root"} {
		own, err := os.Stat("/proc/self/" + link)
		if err != nil {
			return false, err
		}
		theirs, err := os.Stat(fmt.Sprintf("/proc/%d/%s", pid, link))
		if err != nil || !os.SameFile(own, theirs) {
			return false, err
		}
	}
	return true, nil
}

// pid returns the process id of containerd. Its socket has that of whoever
// began to listen, which may have been systemd.
func (e *Executor) pid(ctx context.Context) (int, error) {
	dial := net.Dialer{Timeout: answerTimeout}
	c, err := dial.DialContext(ctx, "unix", e.address)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var peer *unix.Ucred
	var perr error
	if err := raw.Control(func(fd uintptr) {
		peer, perr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if perr != nil {
		return 0, perr
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", peer.Pid))
	if err != nil {
		return 0, err
	}
	if string(name) != "containerd\n" {
		return 0, fmt.Errorf("process %d, which listens, is %q", peer.Pid, name)
	}
	return int(peer.Pid), nil
}
