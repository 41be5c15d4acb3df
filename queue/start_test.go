package queue_test

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/monochromegane/cargo/queue"
)

// An operator who looks while most servers are away is told so; a process that
// starts then says what it waits for, and goes on when they are back.
func TestStartWithoutQuorum(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	c := ownCluster(t)
	open(t, queue.Options{Cluster: c.options("")})
	c.nodes[0].kill()
	c.nodes[1].kill()

	var err error
	for ctx := within(t); !errors.Is(err, queue.ErrUnavailable); { // the last one may not know yet
		var q *queue.Queue
		if q, err = queue.Open(ctx, queue.Options{Cluster: c.options(""), Worker: "guest", Guest: true}); err == nil {
			_ = q.Close()
		}
		if ctx.Err() != nil {
			t.Fatalf("Open of a guest = %v", err)
		}
	}
	said, started := make(lines, 100), make(chan error, 1)
	go func() {
		q, err := queue.Open(t.Context(), queue.Options{Cluster: c.options(""), Worker: "late", Log: slog.New(slog.NewTextHandler(said, nil))})
		if err == nil {
			err = q.Close()
		}
		started <- err
	}()
	said.wait(t, "the start waits for the queue")
	c.nodes[0].start(t)
	c.nodes[1].start(t)
	if err := <-started; err != nil {
		t.Errorf("Open before the servers are back = %v", err)
	}
}

// lines is a log as it is written.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

func (l lines) wait(t *testing.T, what string) {
	t.Helper()
	for late := time.After(time.Minute); ; {
		select {
		case line := <-l:
			if strings.Contains(line, what) {
				return
			}
		case <-late:
			t.Fatalf("nothing says %q", what)
		}
	}
}
