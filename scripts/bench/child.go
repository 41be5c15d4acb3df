package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// children are what this program does in processes of their own, by the
// argument that asks for it. Each reads JSON values and answers with some.
var children = map[string]func(ctx context.Context, in *json.Decoder, out *json.Encoder) error{
	noopWorkers: runNoopWorker,
	s3Puts:      runS3Put,
}

// runChild is the whole of a child.
func runChild(what string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return children[what](ctx, json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout))
}

// A child is a process of this program.
type child struct {
	*process
	to, from *os.File
	in       *json.Encoder
	out      *json.Decoder
}

// startChild starts a child and tells it the first value.
func startChild(ctx context.Context, log string, env []string, what string, first any) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	hisIn, to, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer hisIn.Close()
	from, hisOut, err := os.Pipe()
	if err != nil {
		_ = to.Close()
		return nil, err
	}
	defer hisOut.Close()
	c := &child{to: to, from: from, in: json.NewEncoder(to), out: json.NewDecoder(from)}
	cmd := exec.CommandContext(ctx, self, what)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin, cmd.Stdout = hisIn, hisOut
	if c.process, err = startCommand(cmd, log); err != nil {
		_, _ = to.Close(), from.Close()
		return nil, err
	}
	return c, c.tell(first)
}

func (c *child) tell(v any) error { return c.explain(c.in.Encode(v)) }

// hear waits for the next value from the child.
func (c *child) hear(v any) error { return c.explain(c.out.Decode(v)) }

func (c *child) explain(err error) error {
	if err == nil {
		return nil
	}
	c.stop()
	return fmt.Errorf("%s ended with %s: %w\n%s", c.cmd.Args[1], c.cmd.ProcessState, err, c.lastLines())
}

// end stops the child, which must end well.
func (c *child) end() error {
	c.stop()
	err := errors.Join(c.to.Close(), c.from.Close())
	if !c.cmd.ProcessState.Success() {
		err = errors.Join(err, fmt.Errorf("%s ended with %s\n%s", c.cmd.Args[1], c.cmd.ProcessState, c.lastLines()))
	}
	return err
}
