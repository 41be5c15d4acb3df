package docker_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/docker"
	"github.com/monochromegane/cargo/executor/executortest"
)

func TestConformance(t *testing.T) {
	requireDocker(t)
	executortest.Test(t, harness)
}

func harness(t *testing.T, owner string) executortest.Harness {
	t.Helper()
	e := newExecutor(t, docker.Options{Owner: owner})
	img, err := e.EnsureImage(t.Context(), executortest.Archive(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	return executortest.Harness{
		Executor:  e,
		Image:     img,
		Leftovers: func(t *testing.T) []string { return containers(t, owner) },
		NotApplicable: map[string]string{
			"MountFlags": "the Docker API has no nosuid and nodev for a bind mount; see the package's comment",
		},
	}
}

// BenchmarkRun is what a container costs: its command does nothing.
func BenchmarkRun(b *testing.B) {
	requireDocker(b)
	e := newExecutor(b, docker.Options{Owner: "benchmark"})
	img, err := e.EnsureImage(b.Context(), executortest.Archive(b), nil)
	if err != nil {
		b.Fatal(err)
	}
	step := executor.Step{ID: "true", Image: img.Ref, Args: []string{"true"}}
	for b.Loop() {
		if err := e.Run(b.Context(), step); err != nil {
			b.Fatal(err)
		}
	}
}

// requireDocker skips the test where no daemon answers, and fails it where
// CARGO_TEST_REQUIRE names docker.
func requireDocker(t testing.TB) {
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

func newExecutor(t testing.TB, o docker.Options) *docker.Executor {
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

func TestNewErrors(t *testing.T) {
	for _, o := range []docker.Options{
		{},
		{Owner: "Upper"},
		{Owner: "a b"},
		{Owner: "x", Host: "nonsense"},
		{Owner: "x", APIVersion: "new"},
		{Owner: "x", Host: "tcp://127.0.0.1:2376", CertPath: t.TempDir()},
	} {
		if e, err := docker.New(o); err == nil {
			e.Close()
			t.Errorf("New(%+v): no error", o)
		}
	}
}

func TestUnavailable(t *testing.T) {
	host := "unix://" + filepath.Join(t.TempDir(), "none.sock")
	e, err := docker.New(docker.Options{Owner: owner(), Host: host})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	_, pingErr := e.Ping(t.Context())
	_, reapErr := e.Reap(t.Context())
	_, imageErr := e.EnsureImage(t.Context(), "golang:1", nil)
	runErr := e.Run(t.Context(), executor.Step{ID: "x", Image: "x", Args: []string{"true"}})
	for doing, err := range map[string]error{"Ping": pingErr, "Reap": reapErr, "EnsureImage": imageErr, "Run": runErr} {
		if !errors.Is(err, executor.ErrUnavailable) || !strings.Contains(err.Error(), host) {
			t.Errorf("%s = %v, want ErrUnavailable and the host", doing, err)
		}
	}
}

// A daemon that accepts connections and never answers.
func TestPingHangs(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "mute.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	e, err := docker.New(docker.Options{Owner: owner(), Host: "unix://" + socket})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if _, err := e.Ping(t.Context()); !errors.Is(err, executor.ErrUnavailable) {
		t.Errorf("Ping = %v, want ErrUnavailable", err)
	}
}

// An image cannot open what the executor shuts: its volumes would be writable
// and without a bound, its health check would run beside the command.
func TestImageSettings(t *testing.T) {
	requireDocker(t)
	e := newExecutor(t, docker.Options{Owner: owner()})
	img := uniqueImage(t)
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.Config.Entrypoint = []string{"/bin/false"}
	cf.Config.Cmd = []string{"nonsense"}
	cf.Config.Volumes = map[string]struct{}{"/cache": {}, "/go": {}}
	cf.Config.Healthcheck = &v1.HealthConfig{Test: []string{"CMD-SHELL", "echo x >/go/health"}, Interval: 10 * time.Millisecond}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "image.tar")
	writeDockerArchive(t, file, img)
	held, err := e.EnsureImage(t.Context(), file, nil)
	forget(t, "", held)
	if err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	if err := os.Chown(work, executor.HostUID, executor.HostUID); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	err = e.Run(t.Context(), executor.Step{
		ID:     "volumes",
		Image:  held.Ref,
		Args:   []string{"sh", "-c", "pwd; grep -c ' /cache ro,' /proc/self/mountinfo; echo x >/go/x && echo written; sleep 0.5"},
		Mounts: []executor.Mount{{Source: work, Target: "/go", Writable: true}},
		Stdout: &out, Stderr: &errs,
	})
	if err != nil || out.String() != "/\n1\nwritten\n" {
		t.Errorf("Run = %v, stdout %q, stderr %q", err, out.String(), errs.String())
	}
	if _, err := os.Stat(filepath.Join(work, "health")); err == nil {
		t.Error("the image's health check has run")
	}
}

func TestNoShell(t *testing.T) {
	requireDocker(t)
	e := newExecutor(t, docker.Options{Owner: owner()})
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, Author: rand.Text()})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "image.tar")
	writeDockerArchive(t, file, img)
	held, err := e.EnsureImage(t.Context(), file, nil)
	forget(t, "", held)
	if err != nil {
		t.Fatal(err)
	}
	err = e.Run(t.Context(), executor.Step{ID: "x", Image: held.Ref, Args: []string{"true"}})
	if _, ok := errors.AsType[*executor.ExitError](err); err == nil || ok || !strings.Contains(err.Error(), "the image needs a /bin/sh") {
		t.Errorf("Run = %v", err)
	}
}

// What is mounted below the source of a mount would stay writable.
func TestMountBelowMount(t *testing.T) {
	requireDocker(t)
	e := newExecutor(t, docker.Options{Owner: owner()})
	img, err := e.EnsureImage(t.Context(), executortest.Archive(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	below := filepath.Join(dir, "below")
	if err := os.Mkdir(below, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", below, "tmpfs", 0, "mode=777"); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { unix.Unmount(below, 0) })
	var out bytes.Buffer
	err = e.Run(t.Context(), executor.Step{
		ID: "below", Image: img.Ref, Stdout: &out,
		Args:   []string{"sh", "-c", "touch /go/below/x && echo written; exit 0"},
		Mounts: []executor.Mount{{Source: dir, Target: "/go"}},
	})
	if err != nil || out.Len() > 0 {
		t.Errorf("Run = %v, stdout %q", err, out.String())
	}
}

// The command sees the variables of the image and of the step, and HOME, which
// every runtime adds.
func TestEnvironment(t *testing.T) {
	requireDocker(t)
	e := newExecutor(t, docker.Options{Owner: owner()})
	img, err := e.EnsureImage(t.Context(), executortest.Archive(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ env, want []string }{
		{nil, []string{"HOME=/", "IMAGE=executortest", "PATH=/bin"}},
		{
			[]string{"HOSTNAME=h", "IMAGE=", "PWD=/"},
			[]string{"HOME=/", "HOSTNAME=h", "IMAGE=", "PATH=/bin", "PWD=/"},
		},
	} {
		var out bytes.Buffer
		if err := e.Run(t.Context(), executor.Step{ID: "env", Image: img.Ref, Env: tc.env, Args: []string{"env"}, Stdout: &out}); err != nil {
			t.Fatal(err)
		}
		if got := slices.Sorted(strings.Lines(out.String())); strings.Join(got, "") != strings.Join(tc.want, "\n")+"\n" {
			t.Errorf("with %q: environment %q, want %q", tc.env, got, tc.want)
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
