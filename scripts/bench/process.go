package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// A process is a program that runs beside a case. It is stopped by SIGTERM,
// also when the context of start ends.
type process struct {
	name string
	log  string // file of what it says
	cmd  *exec.Cmd
	over chan struct{} // closed when it has ended
}

// start starts a program with env on top of this process's environment. What
// it says goes to the file log.
func start(ctx context.Context, log string, env []string, program string, args ...string) (*process, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), env...)
	return startCommand(cmd, log)
}

func startCommand(cmd *exec.Cmd, log string) (*process, error) {
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	if cmd.Stdout == nil {
		cmd.Stdout = out
	}
	cmd.Stderr = out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt from the terminal comes once, from here
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{name: filepath.Base(cmd.Path), log: log, cmd: cmd, over: make(chan struct{})}
	go func() {
		defer close(p.over)
		_ = cmd.Wait() // how it ended is in its state
	}()
	return p, nil
}

// stop ends the process, and returns when it has.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.over:
	case <-time.After(time.Minute):
		_ = p.cmd.Process.Kill()
		<-p.over
	}
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// lastLines is the end of what the process said.
func (p *process) lastLines() string {
	log, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return tail(string(log), 15)
}

// until asks every so often.
func (p *process) until(ctx context.Context, limit, every time.Duration, what string, f func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("after %s it is not yet so that %s", limit, what))
	defer cancel()
	for {
		if ok, err := f(); ok || err != nil {
			return err
		}
		select {
		case <-time.After(every):
		case <-p.over:
			return fmt.Errorf("%s ended by itself", p.name)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// listens waits until the process answers on an address.
func (p *process) listens(ctx context.Context, address string) error {
	var d net.Dialer
	err := p.until(ctx, time.Minute, 20*time.Millisecond, p.name+" listens on "+address, func() (bool, error) {
		conn, err := d.DialContext(ctx, "tcp", address)
		if err != nil {
			return false, nil //nolint:nilerr // it does not listen yet
		}
		return true, conn.Close()
	})
	if err != nil && ctx.Err() == nil {
		progress("the last lines of %s:\n%s", p.name, p.lastLines())
	}
	return err
}

// freeAddress is an address on loopback that nobody listens on at the moment.
func freeAddress() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return ln.Addr().String(), ln.Close()
}

// tool finds a program that is not Cargo's below the directory of tools, else
// on the PATH.
func (o options) tool(name, path string) (string, error) {
	local := filepath.Join(o.tools, path)
	if _, err := os.Stat(local); err == nil {
		return filepath.Abs(local)
	}
	found, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("there is no %s, neither as %s nor on the PATH; make bench gets it", name, local)
	}
	return found, err
}
