package executortest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/sandbox"
)

// A Fake is an executor without a container runtime, for the tests of the
// layers above. It keeps the contract's promises on results, cancellation,
// output, doors and images, and passes those subtests of Test; it has no
// sandbox, no limits and nothing to reap. Its zero value is ready, holds every
// image and runs commands as processes of the host.
//
// It cannot listen on executor.DoorAddr, which the whole host shares: a door
// gets another port of the loopback, and in Args and Env of a process that
// runs on the host executor.DoorAddr is replaced by it.
type Fake struct {
	// Script plays the command of a step, if it is not nil. Its error is what
	// Run returns unless ctx has ended: nil, an *executor.ExitError, an
	// *executor.LimitError or what stands for a broken runtime. It must
	// return soon after ctx has ended, which stands for SIGTERM.
	Script func(ctx context.Context, p Process) error

	Images []string // references that the runtime holds; nil means all
	Env    []string // the image's own environment

	// Down makes Run and Ping return executor.ErrUnavailable.
	Down atomic.Bool

	mu    sync.Mutex
	steps []executor.Step
}

var _ executor.Executor = (*Fake)(nil)

// A Process is what a Script sees of a step.
type Process struct {
	executor.Step        // Stdout, Stderr and Limited are never nil
	DoorAddr      string // where the step's Door listens; "" if it has none
}

// Path is where the container's path name lies on the host, "" if no mount of
// the step has it.
func (p Process) Path(name string) string { return hostPath(p.Mounts, name) }

// Steps returns the steps that Run was called with, in order of the calls.
func (f *Fake) Steps() []executor.Step {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.steps)
}

// Run implements [executor.Executor].
func (f *Fake) Run(ctx context.Context, step executor.Step) error {
	f.mu.Lock()
	f.steps = append(f.steps, step)
	f.mu.Unlock()
	switch {
	case f.Down.Load():
		return executor.ErrUnavailable
	case f.Images != nil && !slices.Contains(f.Images, step.Image):
		return fmt.Errorf("%w: %s", executor.ErrNoImage, step.Image)
	case ctx.Err() != nil:
		return canceled(ctx)
	}
	if err := sandbox.CheckMounts(step.Mounts); err != nil {
		return err
	}
	err := f.play(ctx, step)
	sandbox.TellExited(step, err)
	return err
}

// play runs a step that may run.
func (f *Fake) play(ctx context.Context, step executor.Step) error {
	p := Process{Step: step}
	if p.Limited == nil {
		p.Limited = func(error) {}
	}
	var writing sync.Mutex // the writers may be one
	p.Stdout, p.Stderr = &lockedWriter{&writing, step.Stdout}, &lockedWriter{&writing, step.Stderr}
	if step.Door != nil {
		addr, shut, err := openDoor(step.Door)
		if err != nil {
			return err
		}
		defer shut()
		p.DoorAddr = addr
	}
	play := f.Script
	if play == nil {
		play = f.host
	}
	if err := play(ctx, p); ctx.Err() != nil {
		return canceled(ctx)
	} else {
		return err
	}
}

// Reap implements [executor.Executor]: a Fake leaves nothing behind.
func (f *Fake) Reap(context.Context) (int, error) { return 0, nil }

// Ping implements [executor.Executor].
func (f *Fake) Ping(context.Context) (executor.Info, error) {
	if f.Down.Load() {
		return executor.Info{}, executor.ErrUnavailable
	}
	return executor.Info{Name: "fake", Version: "1"}, nil
}

// host runs the command as a process group of the host.
func (f *Fake) host(ctx context.Context, p Process) error {
	env, args := slices.Concat(f.Env, p.Env), slices.Clone(p.Args)
	if p.DoorAddr != "" {
		for _, list := range [][]string{env, args} {
			for i, s := range list {
				list[i] = strings.ReplaceAll(s, executor.DoorAddr, p.DoorAddr)
			}
		}
	}
	file, err := lookPath(args[0], env)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, file, args[1:]...)
	cmd.Args[0] = args[0]
	cmd.Env = append([]string{}, env...) // not nil, which would mean ours
	cmd.Dir = cmp.Or(p.Path(cmp.Or(p.Dir, "/")), p.Dir, "/")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = executor.Grace

	var copies sync.WaitGroup
	defer copies.Wait()
	for _, out := range []struct {
		file *io.Writer
		to   io.Writer
	}{{&cmd.Stdout, p.Stdout}, {&cmd.Stderr, p.Stderr}} {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		defer w.Close()
		*out.file = w
		copies.Go(func() {
			defer r.Close()
			_, _ = io.Copy(out.to, r)
			_, _ = io.Copy(io.Discard, r) // the command must not stall when out.to is broken
		})
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	// What the command leaves running ends with it, as in a container.
	err = cmd.Wait()
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		status := exit.Sys().(syscall.WaitStatus)
		if status.Signaled() {
			return &executor.ExitError{Code: 128 + int(status.Signal())}
		}
		return &executor.ExitError{Code: status.ExitStatus()}
	}
	return err
}

// lookPath finds a command by the PATH of env.
func lookPath(command string, env []string) (string, error) {
	if strings.Contains(command, "/") {
		return command, nil
	}
	var dirs []string
	for _, e := range env {
		if list, ok := strings.CutPrefix(e, "PATH="); ok {
			dirs = filepath.SplitList(list)
		}
	}
	for _, d := range dirs {
		file := filepath.Join(d, command)
		if fi, err := os.Stat(file); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return file, nil
		}
	}
	return "", fmt.Errorf("%w: %s in %q", exec.ErrNotFound, command, dirs)
}

// openDoor lets the door serve a port of the loopback, and returns what closes
// it and waits until Serve has returned.
func openDoor(d executor.Door) (addr string, shut func(), err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = d.Serve(ln) })
	return ln.Addr().String(), func() {
		_ = d.Close()
		_ = ln.Close() // in case Close came before Serve knew the listener
		serving.Wait()
	}, nil
}

// hostPath maps a path of the container through the mount with the longest
// matching target.
func hostPath(mounts []executor.Mount, name string) string {
	name = path.Clean(name)
	var best executor.Mount
	for _, m := range mounts {
		if (name == m.Target || strings.HasPrefix(name, m.Target+"/")) && len(m.Target) > len(best.Target) {
			best = m
		}
	}
	if best.Target == "" {
		return ""
	}
	return filepath.Join(best.Source, strings.TrimPrefix(name, best.Target))
}

func canceled(ctx context.Context) error { return fmt.Errorf("canceled: %w", context.Cause(ctx)) }

// A lockedWriter lets one Write through at a time.
type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer // nil discards
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.w == nil {
		return len(p), nil
	}
	return l.w.Write(p)
}
