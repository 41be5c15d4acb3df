package docker_test

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/docker"
	"github.com/monochromegane/cargo/executor/executortest"
)

func TestConformance(t *testing.T) {
	requireDocker(t)
	executortest.Test(t, func(t *testing.T, owner string) executortest.Harness {
		e := newExecutor(t, docker.Options{Owner: owner})
		img, err := e.EnsureImage(t.Context(), executortest.Archive(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		return executortest.Harness{
			Executor:  e,
			Image:     img,
			Leftovers: func(t *testing.T) []string { return containers(t, owner) },
		}
	})
}

// requireDocker skips the test where no daemon answers, and fails it where
// CARGO_TEST_REQUIRE names docker.
func requireDocker(t *testing.T) {
	t.Helper()
	e, err := docker.New(docker.Options{Owner: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if _, err := e.Ping(t.Context()); err != nil {
		if slices.Contains(strings.Split(os.Getenv("CARGO_TEST_REQUIRE"), ","), "docker") {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	if os.Getuid() != 0 {
		t.Skip("needs root to enter network namespaces")
	}
}

func newExecutor(t *testing.T, o docker.Options) *docker.Executor {
	t.Helper()
	e, err := docker.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := e.Reap(ctx); err != nil {
			t.Error(err)
		}
		e.Close()
	})
	return e
}

// rawClient is a client of the daemon itself, to look behind the executor.
func rawClient(t *testing.T) *client.Client {
	t.Helper()
	c, err := client.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// containers names the containers of an owner.
func containers(t *testing.T, owner string) []string {
	t.Helper()
	list, err := rawClient(t).ContainerList(t.Context(), client.ContainerListOptions{
		All:     true,
		Filters: client.Filters{}.Add("label", "io.github.monochromegane.cargo.owner="+owner),
	})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range list.Items {
		names = append(names, strings.Join(c.Names, ",")+" "+string(c.State))
	}
	return names
}

var _ executor.Executor = (*docker.Executor)(nil)
