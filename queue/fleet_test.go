package queue_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/queue"
)

// Two processes on a cluster: what one says, the other knows, also when the
// leader of the workers' bucket is gone.
func TestFleetOnACluster(t *testing.T) {
	c := ownCluster(t)
	a := open(t, queue.Options{Cluster: c.options(""), Worker: "a", Lease: 6 * time.Second})
	b := open(t, queue.Options{Cluster: c.options(""), Worker: "b", Lease: 6 * time.Second})

	secret := []byte(strings.Repeat("s", 32))
	if err := a.CheckSecret(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	if err := b.CheckSecret(t.Context(), append(secret, 's')); !errors.Is(err, queue.ErrSecret) {
		t.Errorf("another secret: %v", err)
	}

	m, err := a.Join(t.Context(), queue.Worker{Name: "a", ImageDigest: "sha256:a"}, a.Running)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Join(t.Context(), queue.Worker{Name: "a"}, nil); !errors.Is(err, queue.ErrNameTaken) {
		t.Errorf("its name again: %v", err)
	}
	c.leader(t, "KV_cargo-workers").kill()
	_, changed := m.Draining()
	answered(t, func() error { return b.Drain(t.Context(), "a", true) })
	select {
	case <-changed:
	case <-within(t).Done():
		t.Fatal("the worker is not told that it is drained")
	}
	answered(t, func() error {
		all, err := b.Workers(t.Context())
		if err == nil && (len(all) != 1 || !all[0].Draining) {
			t.Errorf("workers: %+v", all)
		}
		return err
	})
	answered(t, func() error {
		digest, err := b.Image(t.Context())
		if err == nil && digest != "sha256:a" {
			t.Errorf("Image = %q", digest)
		}
		return err
	})

	wanted := newBuild("v1")
	id := wanted.ID
	answered(t, func() error {
		_, err := b.Submit(t.Context(), queue.Submission{Build: wanted})
		return err
	})
	held := claim(t, a)
	for ctx := within(t); b.Running() != 1; time.Sleep(10 * time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatal("the claim is not seen")
		}
	}
	answered(t, func() error {
		got, err := b.Requeue(t.Context(), id)
		if err == nil && got.State != build.Queued {
			t.Errorf("requeued: %+v", got)
		}
		if errors.Is(err, queue.ErrNotRequeued) && strings.Contains(err.Error(), "queued already") {
			return nil // a call before did it and was not told
		}
		return err
	})
	select {
	case <-held.Context().Done():
	case <-within(t).Done():
		t.Fatal("the worker is not told that its lease is lost")
	}
	finish(t, claim(t, b), build.Succeeded)
	if err := m.Close(); err != nil && !errors.Is(err, queue.ErrUnavailable) {
		t.Error(err)
	}
}

// answered calls again while the cluster is between two leaders.
func answered(t *testing.T, call func() error) {
	t.Helper()
	for ctx := within(t); ; time.Sleep(50 * time.Millisecond) {
		err := call()
		if err == nil {
			return
		}
		if ctx.Err() != nil || !errors.Is(err, queue.ErrUnavailable) {
			t.Fatal(err)
		}
	}
}
