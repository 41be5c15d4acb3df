package containerd_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
)

// leftovers looks for everything that carries the label or the name of owner:
// in containerd's own books and behind its back. state is containerd's
// directory of running things.
func leftovers(t *testing.T, address, state, owner string) (left []string) {
	t.Helper()
	sum := sha256.Sum256([]byte(owner))
	key := hex.EncodeToString(sum[:4])
	note := func(kind, name string) { left = append(left, kind+" "+name) }

	c, err := client.New(address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := namespaces.WithNamespace(t.Context(), testNamespace)
	label := fmt.Sprintf("labels.%q==%q", "cargo.owner", owner)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	cs, err := c.ContainerService().List(ctx, label)
	must(err)
	for _, c := range cs {
		note("container", c.ID)
	}
	ls, err := c.LeasesService().List(ctx, label)
	must(err)
	for _, l := range ls {
		note("lease", l.ID)
	}
	ts, err := c.TaskService().List(ctx, &tasks.ListTasksRequest{})
	must(err)
	for _, task := range ts.Tasks {
		if strings.HasPrefix(task.ID, key+"-") {
			note("task", task.ID)
		}
	}
	must(c.SnapshotService("overlayfs").Walk(ctx, func(_ context.Context, s snapshots.Info) error {
		if strings.HasPrefix(s.Name, key+"-") {
			note("snapshot", s.Name)
		}
		return nil
	}))
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(err)
	for line := range bytes.Lines(mounts) {
		if bytes.Contains(line, []byte("/"+key+"-")) {
			note("mount", string(line))
		}
	}
	for _, pattern := range []string{
		"/run/cargo/fifo/" + key + "/*",
		"/sys/fs/cgroup/cargo/" + key + "-*",
		"/sys/fs/cgroup/*/cargo/" + key + "-*",
		"/sys/fs/cgroup/cargo-" + key + "-*",
		"/sys/fs/cgroup/*/cargo-" + key + "-*",
		filepath.Join("/run/containerd/runc", testNamespace, key+"-*"), // runc's own books; the place does not depend on state
		filepath.Join(state, "io.containerd.runtime.v2.task", testNamespace, key+"-*"),
	} {
		found, err := filepath.Glob(pattern)
		must(err)
		for _, f := range found {
			note("file", f)
		}
	}
	return left
}
