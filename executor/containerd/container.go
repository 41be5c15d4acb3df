package containerd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"regexp"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"

	"github.com/monochromegane/cargo/executor"
)

var (
	stepPattern      = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)
	containerPattern = regexp.MustCompile(`^[A-Za-z0-9]+(-[A-Za-z0-9]+)*$`) // containerd allows no empty part
)

// containerID names the container of a step: two owners may have steps of one id.
func (e *Executor) containerID(step string) string {
	if !containerPattern.MatchString(step) {
		sum := sha256.Sum256([]byte(step))
		step = hex.EncodeToString(sum[:16])
	}
	return e.ownerKey + "-" + step
}

// create makes the container id. Where it returns an error, nothing is left.
//
// The record comes first: it keeps the snapshot, which it names, from
// containerd's garbage collector, and Reap finds it. A lease would do the same
// for more writes.
func (e *Executor) create(ctx context.Context, id string, step executor.Step) (client.Container, error) {
	img, err := e.lookup(ctx, step.Image)
	if err != nil {
		return nil, err
	}
	record := containers.Container{
		ID:          id,
		Labels:      map[string]string{ownerLabel: e.owner, stepLabel: step.ID},
		Image:       step.Image,
		Runtime:     containers.RuntimeInfo{Name: runtimeName},
		Snapshotter: snapshotter,
		SnapshotKey: id,
	}
	record.Spec, err = typeurl.MarshalAnyToProto(spec(id, step, step.Limits.Or(e.limits), img.env))
	if err != nil {
		return nil, err
	}
	_, err = e.client.ContainerService().Create(ctx, record)
	switch {
	case errdefs.IsAlreadyExists(err):
		return nil, fmt.Errorf("a step %s of this owner is there already: %w", step.ID, err)
	case err != nil:
		return nil, errors.Join(err, e.remove(ctx, id)) // it may have been made all the same
	}
	_, err = e.client.SnapshotService(snapshotter).View(ctx, id, img.snapshot)
	if errdefs.IsNotFound(err) {
		err = noImage(step.Image, err)
	}
	if err != nil {
		return nil, errors.Join(err, e.remove(ctx, id))
	}
	c, err := e.client.LoadContainer(ctx, id)
	if err != nil {
		return nil, errors.Join(err, e.remove(ctx, id))
	}
	return c, nil
}

// remove removes all there is of container id, running or not. What is not
// there is no error. It waits for a containerd that is away.
func (e *Executor) remove(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	err := retry(ctx, func() error {
		if err := e.removeTask(ctx, id); err != nil {
			return err
		}
		// The record goes last, as it came first.
		if err := e.client.SnapshotService(snapshotter).Remove(ctx, id); unlessMissing(err) != nil {
			return err
		}
		return unlessMissing(e.client.ContainerService().Delete(ctx, id))
	})
	if err != nil {
		return e.fault("remove container "+id, err)
	}
	return nil
}

// removeTask removes the task of container id, which has ended as a rule.
func (e *Executor) removeTask(ctx context.Context, id string) error {
	if _, err := e.client.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: id}); err == nil {
		return nil
	}
	c, err := e.client.LoadContainer(ctx, id)
	if err != nil {
		return unlessMissing(err)
	}
	task, err := c.Task(ctx, nil)
	if err != nil {
		return unlessMissing(err)
	}
	status, err := task.Status(ctx)
	if err != nil {
		return unlessMissing(err)
	}
	var kill []client.ProcessDeleteOpts
	if status.Status != client.Stopped {
		kill = append(kill, client.WithProcessKill)
	}
	_, err = task.Delete(ctx, kill...)
	return unlessMissing(err)
}

// Reap implements [executor.Executor].
func (e *Executor) Reap(ctx context.Context) (n int, err error) {
	ctx = e.in(ctx)
	cs, err := e.client.ContainerService().List(ctx, ownedBy(e.owner))
	if err != nil {
		return 0, e.fault("list containers", err)
	}
	var errs []error
	for _, c := range cs {
		if err := e.remove(ctx, c.ID); err != nil {
			errs = append(errs, err)
			continue
		}
		e.log.Info("container of an earlier process removed", "step", c.Labels[stepLabel], "container", c.ID)
		n++
	}
	errs = append(errs, e.reapLeases(ctx), e.reapShims(), os.RemoveAll(e.fifoDir()))
	return n, errors.Join(errs...)
}

// reapLeases ends the leases of imports and pulls that were cut off.
func (e *Executor) reapLeases(ctx context.Context) error {
	ls, err := e.client.LeasesService().List(ctx, ownedBy(e.owner))
	if err != nil {
		return e.fault("list leases", err)
	}
	var errs []error
	for _, l := range ls {
		errs = append(errs, unlessMissing(e.client.LeasesService().Delete(ctx, l)))
	}
	return errors.Join(errs...)
}

// ownedBy is containerd's filter for what carries the label of owner.
func ownedBy(owner string) string { return fmt.Sprintf("labels.%q==%q", ownerLabel, owner) }
