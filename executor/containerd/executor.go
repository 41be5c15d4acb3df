// Package containerd runs steps on containerd, in a user namespace of their
// own.
package containerd

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/dialer"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/monochromegane/cargo/executor"
)

// What an Options leaves empty.
const (
	DefaultAddress   = "/run/containerd/containerd.sock"
	DefaultNamespace = "cargo"
)

const (
	runtimeName = "io.containerd.runc.v2"
	snapshotter = "overlayfs"
	fifoRoot    = "/run/cargo/fifo" // one directory per owner: the shim opens the FIFOs by their path
	ownerLabel  = "cargo.owner"
	stepLabel   = "cargo.step"
)

// How long containerd may take. The machine may be busy: these bounds tell
// slow from broken.
const (
	answerTimeout = 5 * time.Second
	createTimeout = 2 * time.Minute
	removeTimeout = 2 * time.Minute
	outageTimeout = 2 * time.Minute // a restart of containerd under a running step
	retryPeriod   = 200 * time.Millisecond
)

// Options say which containerd to use, and how.
type Options struct {
	Address   string          // socket; "" means DefaultAddress
	Namespace string          // containerd's; "" means DefaultNamespace
	Owner     string          // whose containers these are: one owner's Reap leaves those of others alone
	Limits    executor.Limits // for steps that do not say; zero means executor.DefaultLimits
	Log       *slog.Logger    // nil discards
}

// An Executor runs steps on one containerd. It needs root, and must see the
// same files as containerd does.
type Executor struct {
	client    *client.Client
	address   string
	namespace string
	owner     string
	ownerKey  string // stands for owner in names
	limits    executor.Limits
	log       *slog.Logger
	quiet     *log.Entry

	ensuring  sync.Mutex                // one import or pull at a time
	lastImage atomic.Pointer[imageInfo] // of the last step, mostly that of the next, too
}

var _ executor.Executor = (*Executor)(nil)

// New returns an executor without asking whether containerd answers: Ping does.
// The caller must call Close when no Run is under way any more.
func New(o Options) (*Executor, error) {
	address := cmp.Or(o.Address, DefaultAddress)
	// Back at work soon after containerd is: gRPC would wait ever longer.
	reconnect := backoff.DefaultConfig
	reconnect.BaseDelay, reconnect.MaxDelay = 100*time.Millisecond, time.Second
	c, err := client.New(address,
		client.WithDefaultRuntime(runtimeName),
		client.WithDialOpts([]grpc.DialOption{
			grpc.WithTransportCredentials(insecure.NewCredentials()), // a unix socket
			grpc.WithContextDialer(dialer.ContextDialer),
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: answerTimeout}),
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("containerd at %s: %w", address, err)
	}
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	sum := sha256.Sum256([]byte(o.Owner))
	return &Executor{
		client:    c,
		address:   address,
		namespace: cmp.Or(o.Namespace, DefaultNamespace),
		owner:     o.Owner,
		ownerKey:  hex.EncodeToString(sum[:4]),
		limits:    o.Limits.Or(executor.DefaultLimits),
		log:       cmp.Or(o.Log, slog.New(slog.DiscardHandler)),
		quiet:     logrus.NewEntry(quiet),
	}, nil
}

// Close ends the connection to containerd.
func (e *Executor) Close() error {
	_ = os.Remove(e.fifoDir()) // stays where it is not empty, for Reap
	return e.client.Close()
}

// Ping implements [executor.Executor].
func (e *Executor) Ping(ctx context.Context) (executor.Info, error) {
	ctx, cancel := context.WithTimeout(e.in(ctx), answerTimeout)
	defer cancel()
	v, err := e.client.Version(ctx)
	if err != nil {
		return executor.Info{}, e.unavailable(err)
	}
	return executor.Info{Name: "containerd", Version: strings.TrimPrefix(v.Version, "v")}, nil
}

// in is ctx with the namespace in which e works, and without the client's own
// logger, which would write to standard error what the errors say anyway.
func (e *Executor) in(ctx context.Context) context.Context {
	return log.WithLogger(namespaces.WithNamespace(ctx, e.namespace), e.quiet)
}

func (e *Executor) fifoDir() string { return filepath.Join(fifoRoot, e.ownerKey) }

// fault is the runtime's error err, recognised as ErrUnavailable if it is that
// containerd does not answer.
func (e *Executor) fault(doing string, err error) error {
	if errdefs.IsUnavailable(err) {
		err = e.unavailable(err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

func (e *Executor) unavailable(err error) error {
	return fmt.Errorf("%w: containerd at %s (%w): see that it runs, that this is its socket and that this user may open it",
		executor.ErrUnavailable, e.address, err)
}

// canceled is the error of a step whose ctx has ended.
func canceled(ctx context.Context) error {
	return fmt.Errorf("canceled: %w", context.Cause(ctx))
}

// retry calls f until it does anything but find containerd away, or ctx ends.
func retry(ctx context.Context, f func() error) error {
	for {
		err := f()
		if !errdefs.IsUnavailable(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(retryPeriod):
		}
	}
}

// unlessMissing is err unless that says that there is no such thing.
func unlessMissing(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
