package queue_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/queue"
)

// An account of NATS that has used up its room takes nothing more for now, as a
// full disk, and goes on once there is room.
func TestAccountIsFull(t *testing.T) {
	t.Parallel()
	c := newCluster(t, t.TempDir(), 1, "accounts { A: { jetstream: { max_file: 60KB }, users: [{ user: a, password: b }] } }", "no_auth_user: a")
	t.Cleanup(c.kill)
	var nc *nats.Conn
	for ctx := within(t); nc == nil; time.Sleep(20 * time.Millisecond) {
		nc, _ = nats.Connect(c.urls[0])
		if ctx.Err() != nil {
			t.Fatal("the server does not come up")
		}
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []jetstream.StreamConfig{{Name: "cargo-ended", Subjects: []string{"cargo-ended.*"}, MaxMsgsPerSubject: 1, MaxBytes: 10 << 10}, {Name: "others"}} {
		if _, err := js.CreateStream(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := js.Publish(t.Context(), "others", make([]byte, 50<<10)); err != nil {
		t.Fatal(err)
	}
	one := c.options("")
	one.Replicas = 1
	q := open(t, queue.Options{Cluster: one})
	for i := range 100 {
		if _, err = q.Submit(t.Context(), queue.Submission{Build: newBuild(fmt.Sprint("v", i))}); err != nil {
			break
		}
	}
	if !errors.Is(err, queue.ErrUnavailable) {
		t.Errorf("Submit = %v, want ErrUnavailable", err)
	}
	if err := js.DeleteStream(t.Context(), "others"); err != nil {
		t.Fatal(err)
	}
	finish(t, claim(t, q), build.Succeeded)
}
