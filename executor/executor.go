// Package executor is the contract between a build and the container runtime
// that runs its commands. Its implementations are executor/containerd and
// executor/docker; executor/executortest is the suite that both must pass.
package executor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// An Executor runs steps in fresh containers.
// Its methods are safe for concurrent use.
//
// A step's container has a user id other than 0, no capabilities, no way to
// gain privileges, a read-only root, a bounded /tmp, no /sys where the runtime
// allows that, and a network namespace with nothing but a loopback.
type Executor interface {
	// Run runs step to completion and removes everything it created,
	// whatever the outcome, before it returns.
	//
	// It returns nil if the command exited with status 0. If ctx ended
	// first, the command gets SIGTERM, after [Grace] SIGKILL, and the error
	// wraps [context.Cause] of ctx. Else, if the command exited with any
	// other status, it is ErrOutOfMemory or ErrTooManyProcesses where the
	// kernel counted such an event, and an *ExitError where not; the first
	// two wrap an *ExitError as well. An image that is not there is
	// ErrNoImage. A mount whose place inside an earlier mount is no directory
	// is ErrMount: who wrote that tree did it. Any other error is the fault of
	// the runtime, not of the command. Stdout and Stderr receive no write after Run returns, and
	// all that the command wrote before.
	Run(ctx context.Context, step Step) error

	// Reap removes what earlier processes of this owner left behind, running
	// or not, and says how many containers that were. It must not be called
	// while a Run of this owner is under way.
	Reap(ctx context.Context) (n int, err error)

	// Ping reports whether the runtime can accept a step now, and its name
	// and version. ErrUnavailable if it does not answer.
	Ping(ctx context.Context) (Info, error)
}

// A Step is one command to run. The zero value of an optional field is the
// safest choice: no network, no mounts, the executor's default limits.
type Step struct {
	ID     string   // unique among running steps of this owner; [A-Za-z0-9-], at most 64
	Image  string   // the Ref of an Image that EnsureImage of the implementation returned
	Args   []string // command and arguments; never passed through a shell
	Env    []string // "KEY=value"; the image's own environment comes before it
	Dir    string   // absolute working directory inside the container; "" means /
	Mounts []Mount  // one inside another comes after it
	Door   Door     // optional: what listens on DoorAddr inside the step's network namespace
	Limits Limits
	Stdout io.Writer // nil discards
	Stderr io.Writer // nil discards

	// Background makes the step give way to all other steps: it gets a
	// processor that they leave idle, and the disk last, where the kernel's
	// scheduler for the disk knows such an order.
	Background bool

	// Limited, if not nil, is called before Run returns, with ErrOutOfMemory,
	// ErrTooManyProcesses or both one after the other, if the kernel counted
	// such an event in a command that exited with status 0 all the same.
	Limited func(limit error)

	// Exited, if not nil, is called before Run removes what it created, with
	// what Run will return if the removal succeeds, if that is nil or wraps an
	// *ExitError. No process of the step runs any more, its door is closed, and
	// Stdout and Stderr receive no further write: the mounts may be read while
	// the removal, which waits for Exited, goes on.
	Exited func(err error)
}

// DoorAddr is where a step finds its Door.
const DoorAddr = "127.0.0.1:3128"

// A Door is a server that is a step's only way out; *http.Server is one.
// The executor calls Serve with a listener on DoorAddr before the command
// starts, and Close, once, after it ended; Serve must then return.
type Door interface {
	Serve(net.Listener) error
	Close() error
}

// A Mount makes a directory of the host visible to the step, nosuid and nodev.
//
// Source may itself be a mount point, but nothing may be mounted below it. A
// Target inside that of an earlier mount must be a directory of the earlier
// one's Source, reached through no symbolic link: what is there may be the work
// of an earlier step.
type Mount struct {
	Source   string // absolute path on the host
	Target   string // absolute path in the container; must exist in the image or in an earlier mount
	Writable bool
}

// Limits bound what a step may use. Zero means the executor's default.
type Limits struct {
	Memory int64   // bytes, swap included
	CPUs   float64 // cores
	Pids   int64   // processes and threads
	Tmp    int64   // bytes of /tmp, which count as memory too
}

// DefaultLimits are in force where neither a Step nor the executor's own options say otherwise.
var DefaultLimits = Limits{Memory: 4 << 30, CPUs: 0, Pids: 1024, Tmp: 512 << 20}

// Or returns l with every zero replaced by what d says.
func (l Limits) Or(d Limits) Limits {
	if l.Memory == 0 {
		l.Memory = d.Memory
	}
	if l.CPUs == 0 {
		l.CPUs = d.CPUs
	}
	if l.Pids == 0 {
		l.Pids = d.Pids
	}
	if l.Tmp == 0 {
		l.Tmp = d.Tmp
	}
	return l
}

// Grace is the time between SIGTERM and SIGKILL.
const Grace = 3 * time.Second

// The user id of a step, inside the container and on the host. Files that a
// step shall write must belong to HostUID; on containerd a user namespace maps
// one to the other, on Docker the command runs as HostUID itself, so that both
// own the same files.
const (
	UID     = 1000
	UIDBase = 0x70000000 // first id after those that systemd gives to containers
	HostUID = UIDBase + UID
)

// Info is what a runtime says of itself.
type Info struct {
	Name    string // containerd or docker
	Version string
}

// An Image is a builder image that the runtime holds.
type Image struct {
	Ref    string // what to put into Step.Image
	Digest string // of the image's configuration: the same on every runtime
}

// An ExitError is a command that exited with a status other than 0: its own
// fault, never the runtime's.
type ExitError struct {
	Code int // 128+n when signal n ended it
}

func (e *ExitError) Error() string { return fmt.Sprintf("exit status %d", e.Code) }

// Errors that Run and Ping return, wrapped.
var (
	ErrOutOfMemory      = errors.New("out of memory")
	ErrTooManyProcesses = errors.New("too many processes")
	ErrNoImage          = errors.New("no such image")
	ErrMount            = errors.New("the place of a mount is no directory")
	ErrUnavailable      = errors.New("the container runtime does not answer")
)

// A LimitError is a limit that the kernel enforced. It wraps the limit's
// sentinel and the *ExitError of the command.
type LimitError struct {
	Limit error // ErrOutOfMemory or ErrTooManyProcesses
	Exit  *ExitError
}

func (e *LimitError) Error() string   { return fmt.Sprintf("%v (%v)", e.Limit, e.Exit) }
func (e *LimitError) Unwrap() []error { return []error{e.Limit, e.Exit} }
