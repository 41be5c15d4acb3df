package containerd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"

	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/sandbox"
)

// Run implements [executor.Executor]. A restart of containerd does not end the
// step.
func (e *Executor) Run(ctx context.Context, step executor.Step) (err error) {
	if !stepPattern.MatchString(step.ID) || len(step.Args) == 0 {
		return fmt.Errorf("step %q with %d arguments: want an id of %s and a command", step.ID, len(step.Args), stepPattern)
	}
	if ctx.Err() != nil {
		return canceled(ctx)
	}
	if err := sandbox.CheckMounts(step.Mounts); err != nil {
		return fmt.Errorf("step %s: %w", step.ID, err)
	}
	id := e.containerID(step.ID)
	stdout, stderr := outputs(step.Stdout, step.Stderr)
	streams, err := cio.NewCreator(cio.WithFIFODir(e.fifoDir()), cio.WithStreams(nil, stdout, stderr))(id)
	if err != nil {
		return fmt.Errorf("make the FIFOs of step %s: %w", step.ID, err)
	}
	defer func() {
		streams.Cancel() // what the command wrote has been read by now
		streams.Wait()
		_ = streams.Close()
	}()
	// containerd leaves pieces behind when a request is cut short. Creation
	// is quick: it is seen through, and the command is then not started.
	creating, cancel := context.WithTimeout(e.in(context.WithoutCancel(ctx)), createTimeout)
	defer cancel()
	c, err := e.create(creating, id, step)
	if err != nil {
		return e.fault("create container of step "+step.ID, err)
	}
	defer func() {
		if removal := e.remove(creating, id); removal != nil {
			err = errors.Join(err, removal)
		}
	}()
	task, err := c.NewTask(creating, func(string) (cio.IO, error) { return kept{streams}, nil })
	if err != nil {
		return e.fault("create task of step "+step.ID, err)
	}
	err = e.runTask(ctx, creating, task, step)
	sandbox.TellExited(step, err)
	return err
}

// runTask runs a task whose process exists and has its namespaces, but is not
// yet the command. creating bounds what comes before the command.
func (e *Executor) runTask(ctx, creating context.Context, task client.Task, step executor.Step) error {
	counters, err := sandbox.Watch(int(task.Pid()))
	if err != nil {
		return fmt.Errorf("watch the limits of step %s: %w", step.ID, err)
	}
	defer counters.Close()
	if step.Background {
		if err := sandbox.IdleIO(int(task.Pid())); err != nil {
			e.log.Warn("a step in the background does not give way on the disk", "step", step.ID, "err", err)
		}
	}
	if step.Door != nil {
		shut, err := openDoor(task.Pid(), step.Door)
		if err != nil {
			return fmt.Errorf("open the door of step %s: %w", step.ID, err)
		}
		defer shut()
	}
	life := e.in(context.WithoutCancel(ctx))
	exited, err := task.Wait(life)
	if err != nil {
		return e.fault("wait for step "+step.ID, err)
	}
	if ctx.Err() != nil {
		return canceled(ctx)
	}
	if err := start(creating, task); err != nil {
		return e.fault("start step "+step.ID, err)
	}
	code, stopped, err := e.await(ctx, life, task, exited)
	if err != nil {
		return e.fault("wait for step "+step.ID, err)
	}
	task.IO().Wait()
	_ = counters.Close()
	if stopped {
		return canceled(ctx)
	}
	return counters.Verdict(int(code), step.Limited)
}

// kept are streams that a task uses and Run closes: the client would give them
// up when an answer of containerd is lost.
type kept struct{ cio.IO }

func (kept) Cancel()      {}
func (kept) Close() error { return nil }

// start starts the command, once, even if containerd goes away before it says so.
func start(ctx context.Context, task client.Task) error {
	err := task.Start(ctx)
	for errdefs.IsUnavailable(err) {
		var s client.Status
		if err := retry(ctx, func() (err error) { s, err = task.Status(ctx); return err }); err != nil {
			return err
		}
		if s.Status != client.Created {
			return nil
		}
		err = task.Start(ctx)
	}
	return err
}

// await waits for the command to end, and ends it when ctx ends. It stays with
// the command while containerd is away: process, shim and FIFOs live on.
func (e *Executor) await(ctx, life context.Context, task client.Task, exited <-chan client.ExitStatus) (code uint32, stopped bool, err error) {
	var (
		stop                        = ctx.Done()
		signal                      syscall.Signal
		deliver, kill, wait, giveUp <-chan time.Time
		asked                       = time.Now() // when the last wait began
		away                        time.Time    // when containerd went
	)
	for {
		select {
		case s := <-exited:
			if s.Error() == nil {
				return s.ExitCode(), stopped, nil
			}
			exited = nil // closed: it would yield a status of 0
			if errdefs.IsNotFound(s.Error()) {
				return 0, stopped, fmt.Errorf("the task was removed by somebody else: %w", s.Error())
			}
			if away.IsZero() || time.Since(asked) > answerTimeout {
				away = time.Now()
				e.log.Warn("containerd went away under a step", "container", task.ID(), "err", s.Error())
			}
			if time.Since(away) > outageTimeout {
				return 0, stopped, e.unavailable(s.Error())
			}
			wait = time.After(retryPeriod)
		case asked = <-wait:
			if exited, err = task.Wait(life); err != nil {
				return 0, stopped, err
			}
		case <-stop:
			stop, stopped = nil, true
			signal, deliver = syscall.SIGTERM, time.After(0)
			kill = time.After(executor.Grace)
		case <-kill:
			signal, deliver = syscall.SIGKILL, time.After(0)
			giveUp = time.After(outageTimeout)
		case <-deliver:
			deliver = nil
			if err := e.signal(life, task, signal); err != nil {
				deliver = time.After(retryPeriod)
			}
		case <-giveUp:
			return 0, stopped, errors.Join(canceled(ctx), errors.New("the command survives SIGKILL"))
		}
	}
}

// signal signals the command; that it has ended already is no error. The
// command is the init process of its namespace: SIGKILL takes all others along.
func (e *Executor) signal(ctx context.Context, task client.Task, s syscall.Signal) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	err := task.Kill(ctx, s)
	if errdefs.IsFailedPrecondition(err) {
		return nil
	}
	return unlessMissing(err)
}

// openDoor lets d serve executor.DoorAddr in the network namespace of process
// pid. shut closes the door and returns when Serve has.
func openDoor(pid uint32, d executor.Door) (shut func(), err error) {
	ln, err := sandbox.Listen(fmt.Sprintf("/proc/%d/ns/net", pid), executor.DoorAddr)
	if err != nil {
		return nil, err
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = d.Serve(ln) }) // ends with Close, which it reports as an error
	return func() {
		_ = d.Close()
		_ = ln.Close() // should Close have come before Serve knew the listener
		serving.Wait()
	}, nil
}
