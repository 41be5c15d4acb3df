package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"

	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/sandbox"
)

// killTimeout is how long a killed process may take to be gone.
const killTimeout = 30 * time.Second

// Run implements [executor.Executor].
func (e *Executor) Run(ctx context.Context, step executor.Step) (err error) {
	if err := check(step); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ended(ctx, step)
	}
	// What makes or removes something on the daemon is never cut short by ctx:
	// the daemon would go on with it unobserved.
	clean := context.WithoutCancel(ctx)
	id, err := e.create(clean, step)
	if err != nil {
		return err
	}
	defer func() {
		if rerr := e.remove(clean, id); rerr != nil {
			err = errors.Join(err, rerr)
		}
	}()
	err = e.attend(ctx, id, step)
	sandbox.TellExited(step, err)
	return err
}

// ended is the error of a step whose ctx ended before its command did.
func ended(ctx context.Context, step executor.Step) error {
	return fmt.Errorf("step %s: %w", step.ID, context.Cause(ctx))
}

func (e *Executor) create(ctx context.Context, step executor.Step) (id string, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	img, err := e.client.ImageInspect(ctx, step.Image)
	if errdefs.IsNotFound(err) {
		return "", fmt.Errorf("%w: %s", executor.ErrNoImage, step.Image)
	}
	if err != nil {
		return "", e.fault("inspect image "+step.Image, err)
	}
	var volumes []string
	if img.Config != nil {
		for v := range img.Config.Volumes {
			volumes = append(volumes, v)
		}
	}
	created, err := e.client.ContainerCreate(ctx, e.createOptions(step, img.ID, volumes))
	switch {
	case err == nil:
		for _, w := range created.Warnings {
			e.log.Debug("docker warns", "step", step.ID, "warning", w)
		}
		return created.ID, nil
	case errdefs.IsConflict(err):
		return "", e.fault("create container: step "+step.ID+" is there already", err)
	}
	err = e.fault("create container", err)
	if rerr := e.remove(context.WithoutCancel(ctx), e.name(step)); rerr != nil {
		err = errors.Join(err, rerr)
	}
	return "", err
}

// attend starts the container and stays with it until its command has ended.
func (e *Executor) attend(ctx context.Context, id string, step executor.Step) error {
	clean := context.WithoutCancel(ctx)
	setup, cancel := context.WithTimeout(clean, callTimeout)
	defer cancel()
	stream, err := e.client.ContainerAttach(setup, id, client.ContainerAttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		return e.fault("attach", err)
	}
	out := copyOutput(stream, step.Stdout, step.Stderr)
	defer out.close()

	began := time.Now()
	exits, stop := e.wait(clean, id)
	defer stop()
	pid, err := e.start(setup, id)
	if err != nil {
		return err
	}
	counters, err := sandbox.Watch(pid)
	if err != nil {
		return fmt.Errorf("docker: watch the step's cgroup: %w", err)
	}
	defer counters.Close()
	if step.Background {
		if err := sandbox.IdleIO(pid); err != nil {
			e.log.Warn("a step in the background does not give way on the disk", "step", step.ID, "err", err)
		}
	}
	closeDoor, err := e.openDoor(step, pid)
	if err != nil {
		return err
	}
	defer closeDoor()
	if ctx.Err() != nil {
		return ended(ctx, step)
	}
	if err := openGate(stream); err != nil {
		return e.fault("start the command", err)
	}

	code, err := e.await(ctx, id, step, exits)
	if oerr := out.drain(); oerr != nil {
		err = errors.Join(err, e.fault("read output", oerr))
	}
	if err != nil {
		return err
	}
	counters.Close()
	return e.verdict(clean, id, step, code, began, counters)
}

// start starts the container and returns the process id of its first process,
// which waits at the gate. It makes sure that the id is one of this machine.
func (e *Executor) start(ctx context.Context, id string) (pid int, err error) {
	if _, err := e.client.ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
		if strings.Contains(err.Error(), `"/bin/sh"`) {
			return 0, fmt.Errorf("docker: the image needs a /bin/sh: %w", err)
		}
		return 0, e.fault("start container", err)
	}
	in, err := e.client.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	if err != nil {
		return 0, e.fault("inspect container", err)
	}
	state := in.Container.State
	if state == nil || state.Pid == 0 {
		return 0, errors.New("docker: the container ended before its command was started")
	}
	cgroup, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", state.Pid))
	if err != nil || !bytes.Contains(cgroup, []byte(id)) {
		return 0, fmt.Errorf("docker: process %d of the container is not a process of this machine: "+
			"Cargo must run on the machine of the daemon at %s, and in its process namespace", state.Pid, e.client.DaemonHost())
	}
	return state.Pid, nil
}

// openDoor serves the step's door, if it has one, until the returned function
// is called.
func (e *Executor) openDoor(step executor.Step, pid int) (closeDoor func(), err error) {
	if step.Door == nil {
		return func() {}, nil
	}
	ln, err := sandbox.Listen(fmt.Sprintf("/proc/%d/ns/net", pid), executor.DoorAddr)
	if err != nil {
		return nil, fmt.Errorf("docker: open the door: %w", err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = step.Door.Serve(ln) }) // its error is that of Close, or the command's to notice
	return func() {
		if err := step.Door.Close(); err != nil {
			e.log.Warn("close the door of a step", "step", step.ID, "err", err)
		}
		ln.Close()
		serving.Wait()
	}, nil
}

// openGate lets the command start, with an empty standard input.
func openGate(stream client.ContainerAttachResult) error {
	if _, err := io.WriteString(stream.Conn, "\n"); err != nil {
		return err
	}
	return stream.CloseWrite()
}

// An exit is how a container ended, or why that will never be known.
type exit struct {
	code int
	err  error
}

// wait follows the container, which must not have been started yet. The caller
// calls stop.
func (e *Executor) wait(ctx context.Context, id string) (exits <-chan exit, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	slow := time.AfterFunc(callTimeout, cancel)
	w := e.client.ContainerWait(ctx, id, client.ContainerWaitOptions{Condition: container.WaitConditionNextExit})
	slow.Stop() // the daemon has taken note; the answer is the exit
	c := make(chan exit, 1)
	var waiting sync.WaitGroup
	waiting.Go(func() {
		select {
		case r := <-w.Result:
			x := exit{code: int(r.StatusCode)}
			if r.Error != nil && r.Error.Message != "" {
				x.err = errors.New(r.Error.Message)
			}
			c <- x
		case err := <-w.Error:
			c <- exit{err: err}
		}
	})
	return c, func() { cancel(); waiting.Wait() }
}

// await returns the status of the command, having ended it if ctx ends first.
func (e *Executor) await(ctx context.Context, id string, step executor.Step, exits <-chan exit) (int, error) {
	var x exit
	select {
	case x = <-exits:
	case <-ctx.Done():
		select {
		case x = <-exits: // after all, the command ended first
		default:
			return 0, errors.Join(ended(ctx, step), e.end(context.WithoutCancel(ctx), id, exits))
		}
	}
	if x.err != nil {
		return 0, e.fault("wait for the command", x.err)
	}
	return x.code, nil
}

// end terminates the container: first by SIGTERM, then by SIGKILL.
func (e *Executor) end(ctx context.Context, id string, exits <-chan exit) error {
	exited, err := e.signal(ctx, id, "TERM", executor.Grace, exits)
	if !exited {
		exited, err = e.signal(ctx, id, "KILL", killTimeout, exits)
	}
	if !exited && err == nil {
		err = fmt.Errorf("docker: container %s still runs %v after SIGKILL", id, killTimeout)
	}
	return err
}

// signal sends a signal and waits for the exit, both together for no longer
// than patience.
func (e *Executor) signal(ctx context.Context, id, name string, patience time.Duration, exits <-chan exit) (exited bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err = e.client.ContainerKill(ctx, id, client.ContainerKillOptions{Signal: name})
	if errdefs.IsConflict(err) || errdefs.IsNotFound(err) {
		err = nil // it has ended
	}
	if err != nil {
		err = e.fault("send SIG"+name, err)
	}
	select {
	case x := <-exits:
		if x.err != nil {
			return true, e.fault("wait for the end of the command", x.err)
		}
		return true, nil
	case <-ctx.Done():
		return false, err
	}
}

// verdict says what the status of a command means.
func (e *Executor) verdict(ctx context.Context, id string, step executor.Step, code int, began time.Time, counters *sandbox.Counters) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := e.undisturbed(ctx, id, began); err != nil {
		return err
	}
	if code != 0 || step.Limited != nil {
		in, err := e.client.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
		if err != nil {
			return e.fault("inspect container", err)
		}
		if in.Container.State != nil && in.Container.State.OOMKilled {
			counters.NoteOutOfMemory()
		}
	}
	return counters.Verdict(code, step.Limited)
}

// undisturbed fails if somebody else has sent a signal to the container: a
// daemon that goes down terminates its containers while it still answers.
func (e *Executor) undisturbed(ctx context.Context, id string, since time.Time) error {
	ctx, cancel := context.WithCancel(ctx) // ends what Events has begun
	defer cancel()
	list := e.client.Events(ctx, client.EventsListOptions{
		Since:   timestamp(since),
		Until:   timestamp(time.Now()),
		Filters: client.Filters{}.Add("container", id).Add("event", string(events.ActionKill)),
	})
	select {
	case <-list.Messages:
		return fmt.Errorf("docker: the daemon or somebody through it has ended container %s", id)
	case err := <-list.Err:
		if !errors.Is(err, io.EOF) {
			return e.fault("ask for events", err)
		}
		return nil
	}
}

// timestamp is the form in which the daemon takes a time: seconds and
// nanoseconds since 1970.
func timestamp(t time.Time) string { return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()) }
