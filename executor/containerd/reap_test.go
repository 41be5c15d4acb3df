package containerd_test

import (
	"crypto/rand"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/monochromegane/cargo/executor/containerd"
)

// A server that was killed while it pulled an image leaves a lease.
func TestReapLeases(t *testing.T) {
	address := daemon(t)
	state := filepath.Dir(address)
	c, err := client.New(address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := namespaces.WithNamespace(t.Context(), testNamespace)
	owner, other := "reap-"+rand.Text(), "reap-"+rand.Text()
	for _, o := range []string{owner, other} {
		if _, err := c.LeasesService().Create(ctx, leases.WithRandomID(), leases.WithLabel("cargo.owner", o)); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := open(t, containerd.Options{Owner: owner}).Reap(t.Context()); n != 0 || err != nil {
		t.Errorf("Reap = %d, %v", n, err)
	}
	if left := leftovers(t, address, state, owner); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if left := leftovers(t, address, state, other); len(left) != 1 || !strings.HasPrefix(left[0], "lease") {
		t.Errorf("of the other owner: %q, want one lease", left)
	}
	if _, err := open(t, containerd.Options{Owner: other}).Reap(t.Context()); err != nil {
		t.Error(err)
	}
}
