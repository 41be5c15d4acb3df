// Package docker runs steps on a Docker daemon, version 20.10 (API 1.41) or
// newer.
//
// It keeps the contract of [executor.Executor] with these differences from
// executor/containerd, which the Docker API leaves no way around:
//
//   - A command starts behind a gate, so that its door is open and its cgroup
//     watched before it runs: the container's first process is the image's
//     /bin/sh, which waits for a line on standard input and then becomes the
//     command. The image must have /bin/sh, an executable that does not exist is
//     that shell's exit status 127, and one that cannot be executed its 126. A
//     variable whose name is no shell identifier may not reach the command.
//   - There is no user namespace for a single container. The command runs as
//     [executor.HostUID] on the host itself.
//   - A bind mount cannot be made nosuid and nodev. Set-user-ID files have no
//     effect all the same (no_new_privs), and the step can neither make device
//     files (no capabilities) nor open any but the harmless ones (device cgroup).
//     A source that is mounted nosuid and nodev itself passes that on.
//   - A directory that a step names as Dir or as the Target of a mount, and that
//     the image has not, is made.
//
// The daemon must run on this machine, see its files and share its process ids:
// [Executor.ProbeFiles] finds out.
package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"regexp"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/sandbox"
)

// Options are what New needs. Only Owner has no default.
type Options struct {
	Host       string // as DOCKER_HOST, such as tcp://127.0.0.1:2376; "" means the socket in /var/run
	CertPath   string // directory of ca.pem, cert.pem and key.pem, for a TLS host; the daemon is always verified
	APIVersion string // as DOCKER_API_VERSION; "" means to negotiate one

	// Owner tells the containers of this server from those of others. It must
	// match [a-z0-9][a-z0-9_.-]{0,63}.
	Owner string

	Limits executor.Limits // of a step that says nothing itself; zero means executor.DefaultLimits
	Log    *slog.Logger    // nil discards
}

// An Executor implements [executor.Executor] on a Docker daemon.
type Executor struct {
	client  *client.Client
	owner   string
	limits  executor.Limits
	seccomp string
	log     *slog.Logger
}

var _ executor.Executor = (*Executor)(nil)

// The labels of every container, and of nothing else.
const (
	labelOwner = "io.github.monochromegane.cargo.owner"
	labelStep  = "io.github.monochromegane.cargo.step"
)

const (
	pingTimeout    = 5 * time.Second
	callTimeout    = time.Minute // what takes milliseconds, on a machine that is very busy
	cleanupTimeout = time.Minute // includes the restart of a daemon
	retryInterval  = 200 * time.Millisecond
)

var ownerPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{0,63}$`)

// New returns an Executor without asking the daemon anything. The caller
// closes it.
func New(o Options) (*Executor, error) {
	if !ownerPattern.MatchString(o.Owner) {
		return nil, fmt.Errorf("docker: owner %q does not match %s", o.Owner, ownerPattern)
	}
	opts := []client.Opt{client.WithAPIVersion(o.APIVersion)}
	if o.Host != "" {
		opts = append(opts, client.WithHost(o.Host))
	}
	if o.CertPath != "" {
		opts = append(opts, client.WithTLSClientConfig(
			filepath.Join(o.CertPath, "ca.pem"),
			filepath.Join(o.CertPath, "cert.pem"),
			filepath.Join(o.CertPath, "key.pem"),
		))
	}
	c, err := client.New(opts...)
	if err != nil {
		return nil, fmt.Errorf("docker client for %s: %w", cmp.Or(o.Host, client.DefaultDockerHost), err)
	}
	profile, err := sandbox.SeccompJSON()
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	return &Executor{
		client:  c,
		owner:   o.Owner,
		limits:  o.Limits.Or(executor.DefaultLimits),
		seccomp: profile,
		log:     cmp.Or(o.Log, slog.New(slog.DiscardHandler)),
	}, nil
}

// Close closes the connections to the daemon. No Run may be under way.
func (e *Executor) Close() error { return e.client.Close() }

// Ping implements [executor.Executor].
func (e *Executor) Ping(ctx context.Context) (executor.Info, error) {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	v, err := e.client.ServerVersion(ctx, client.ServerVersionOptions{})
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return executor.Info{}, e.unavailable("ask for the version", err)
		}
		return executor.Info{}, e.fault("ask for the version", err)
	}
	return executor.Info{Name: "docker", Version: v.Version}, nil
}

// Reap implements [executor.Executor].
func (e *Executor) Reap(ctx context.Context) (int, error) {
	list, err := e.client.ContainerList(ctx, client.ContainerListOptions{
		All:     true,
		Filters: client.Filters{}.Add("label", labelOwner+"="+e.owner),
	})
	if err != nil {
		return 0, e.fault("list containers", err)
	}
	n := 0
	var errs []error
	for _, c := range list.Items {
		if err := e.remove(ctx, c.ID); err != nil {
			errs = append(errs, err)
			continue
		}
		n++
	}
	return n, errors.Join(errs...)
}

// remove kills the container if it runs and removes it with its anonymous
// volumes. It tries again while the daemon restarts, for cleanupTimeout.
func (e *Executor) remove(ctx context.Context, container string) error {
	ctx, cancel := context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	for {
		_, err := e.client.ContainerRemove(ctx, container, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		if err == nil || errdefs.IsNotFound(err) {
			return nil
		}
		select {
		case <-ctx.Done():
			return e.fault("remove container "+container+" (`docker rm -fv` it by hand)", err)
		case <-time.After(retryInterval): // a removal that is under way already is a conflict
		}
	}
}

// fault wraps an error of the daemon or of the way to it.
func (e *Executor) fault(doing string, err error) error {
	_, broken := errors.AsType[*net.OpError](err) // attaching dials by itself
	if broken || client.IsErrConnectionFailed(err) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return e.unavailable(doing, err)
	}
	return fmt.Errorf("docker: %s: %w", doing, err)
}

func (e *Executor) unavailable(doing string, err error) error {
	return fmt.Errorf("%s: %w: docker at %s (%w): see that it runs, that this is its address and that this user may open it",
		doing, executor.ErrUnavailable, e.client.DaemonHost(), err)
}
