package queue_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/queue"
)

const pauseLease = 3 * time.Second

// childHold claims a build on a cluster, "urls prefix", and says whether it
// could still confirm and finish it when the claim is lost.
func childHold(where string) error {
	urls, prefix, _ := strings.Cut(where, " ")
	q, err := queue.Open(context.Background(), queue.Options{
		Cluster: &queue.Cluster{URLs: strings.Split(urls, ","), Prefix: prefix}, Worker: "paused", Lease: pauseLease,
	})
	if err != nil {
		return err
	}
	c, err := q.Claim(context.Background())
	if err != nil {
		return err
	}
	b := c.Build()
	began := time.Now()
	say("claimed", b.ID, b.Attempt)
	for {
		now := time.Now()
		if now.Sub(began) > time.Second {
			break // this process stood still
		}
		began = now
		time.Sleep(time.Millisecond)
	}
	say("confirm", b.ID, errors.Is(c.Confirm(context.Background()), queue.ErrLeaseLost))
	b.State = build.Succeeded
	say("finish", b.ID, errors.Is(c.Finish(context.Background(), b), queue.ErrLeaseLost))
	say("requeue", b.ID, errors.Is(c.Requeue(context.Background()), queue.ErrLeaseLost))
	return q.Close()
}

// A worker stands still for longer than its lease. Another takes its build, and
// when it wakes it can finish nothing.
func TestPausedWorker(t *testing.T) {
	cluster := sharedCluster(t)
	q := open(t, queue.Options{Cluster: cluster.options("pause-"), Worker: "other", Lease: pauseLease})
	b := submit(t, q, newBuild("v1"), []byte("sealed"))
	cmd := childCommand(within(t), "hold", strings.Join(cluster.urls, ",")+" pause-")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != fmt.Sprintf("claimed %s 1", b.ID) {
		t.Fatalf("the worker said %q", lines.Text())
	}
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	c, err := q.Claim(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < pauseLease/2 || took > pauseLease+10*time.Second {
		t.Errorf("taken after %s with a lease of %s", took, pauseLease)
	}
	if c.Build().ID != b.ID || c.Build().Attempt != 2 {
		t.Errorf("claimed %+v", c.Build())
	}
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	said := 0
	for ; lines.Scan(); said++ {
		if !strings.HasSuffix(lines.Text(), " true") {
			t.Errorf("the worker that woke up was not refused: %s", lines.Text())
		}
	}
	if err := cmd.Wait(); err != nil || said != 3 {
		t.Errorf("the worker said %d things, %v", said, err)
	}
	if err := c.Confirm(t.Context()); err != nil {
		t.Errorf("Confirm of who has it now = %v", err)
	}
	finish(t, c, build.Failed)
	if got := get(t, q, b.ID); got.State != build.Failed || got.Attempt != 2 {
		t.Errorf("the build is %s at attempt %d", got.State, got.Attempt)
	}
}
