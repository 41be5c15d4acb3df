package executortest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/executortest"
)

// What a process of the host is not kept from, and why the rest of the suite
// means nothing for it.
const (
	noLimits  = "a Fake enforces no limits"
	noSandbox = "a Fake has no sandbox"
	noMounts  = "a process of the host sees the host's own directories; scripts use Process.Path"
	noOrphans = "a Fake's steps end with the process they run in, or are nobody's"
)

func notApplicable() map[string]string {
	why := make(map[string]string)
	for reason, names := range map[string][]string{
		noLimits: {"OutOfMemory", "OutOfMemoryChild", "OutOfMemorySurvived", "ForkBomb", "TooManyProcesses", "TooManyProcessesChild", "TooManyProcessesSurvived",
			"LimitThenCancel", "Background", "CPUs", "TmpBounded"},
		noSandbox: {"NoNetwork", "NoHostLoopback", "NoAbstractSocket", "Unprivileged", "SetuidPowerless", "RootReadOnly", "TmpUsable", "NoSys",
			"ProcMasked", "Devices", "OwnProcessesOnly", "SyscallsDenied"},
		noMounts:  {"MountReadOnly", "MountWritable", "MountForeignFiles", "MountFlags", "MountMissing", "MountNested", "MountOverlay", "OutputAsItAppears", "CancelBefore"},
		noOrphans: {"ReapAfterKill"},
	} {
		for _, name := range names {
			why[name] = reason
		}
	}
	return why
}

func TestFake(t *testing.T) {
	path := programs(t)
	executortest.Test(t, func(t *testing.T, owner string) executortest.Harness {
		return executortest.Harness{
			Executor:      &executortest.Fake{Images: []string{"image"}, Env: []string{"PATH=" + path, "IMAGE=executortest"}},
			Image:         executor.Image{Ref: "image"},
			Leftovers:     func(*testing.T) []string { return nil },
			NotApplicable: notApplicable(),
		}
	})
}

// programs unpacks /bin of the image.
func programs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	layers, err := executortest.Image(t).Layers()
	if err != nil {
		t.Fatal(err)
	}
	r, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	tar := exec.Command("tar", "-x", "-C", dir, "bin")
	tar.Stdin, tar.Stderr = r, os.Stderr
	if err := tar.Run(); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "bin")
}

func TestArchiveIsReproducible(t *testing.T) {
	file := executortest.Archive(t)
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", t.TempDir()) // where the other one lies
	again := executortest.Archive(t)
	after, err := os.ReadFile(again)
	if err != nil {
		t.Fatal(err)
	}
	if again == file || string(before) != string(after) {
		t.Errorf("%s (%d bytes) and %s (%d bytes) differ", file, len(before), again, len(after))
	}
}

// A script sees the step's mounts as directories of the host, and its door.
func TestFakeScript(t *testing.T) {
	dir := t.TempDir()
	limit := &executor.LimitError{Limit: executor.ErrOutOfMemory, Exit: &executor.ExitError{Code: 2}}
	f := &executortest.Fake{Script: func(ctx context.Context, p executortest.Process) error {
		switch p.Args[0] {
		case "write":
			fmt.Fprintln(p.Stdout, "writing")
			return os.WriteFile(p.Path("/go/src/../file"), []byte("made"), 0o644)
		case "get":
			resp, err := http.Get("http://" + p.DoorAddr)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			_, err = io.Copy(p.Stdout, resp.Body)
			return err
		case "wait":
			<-ctx.Done()
			return nil
		}
		return limit
	}}
	run := func(ctx context.Context, s executor.Step) (string, error) {
		out := new(writer)
		s.Stdout = out
		err := f.Run(ctx, s)
		return string(*out), err
	}

	out, err := run(t.Context(), executor.Step{Args: []string{"write"}, Mounts: []executor.Mount{
		{Source: "/nowhere", Target: "/g"},
		{Source: dir, Target: "/go", Writable: true},
	}})
	if b, _ := os.ReadFile(filepath.Join(dir, "file")); err != nil || out != "writing\n" || string(b) != "made" {
		t.Errorf("Run = %v, stdout %q, file %q", err, out, b)
	}

	door := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "welcome") })}
	if out, err := run(t.Context(), executor.Step{Args: []string{"get"}, Door: door}); err != nil || out != "welcome" {
		t.Errorf("Run = %v, stdout %q", err, out)
	}

	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := run(ctx, executor.Step{Args: []string{"wait"}}); !errors.Is(err, cause) {
		t.Errorf("Run = %v, want %v", err, cause)
	}

	if _, err := run(t.Context(), executor.Step{Args: []string{"fail"}}); !errors.Is(err, executor.ErrOutOfMemory) {
		t.Errorf("Run = %v, want %v", err, limit)
	}

	f.Down.Store(true)
	if _, err := run(t.Context(), executor.Step{Args: []string{"write"}}); !errors.Is(err, executor.ErrUnavailable) {
		t.Errorf("Run = %v, want %v", err, executor.ErrUnavailable)
	}
	if _, err := f.Ping(t.Context()); !errors.Is(err, executor.ErrUnavailable) {
		t.Errorf("Ping = %v, want %v", err, executor.ErrUnavailable)
	}
	if n := len(f.Steps()); n != 5 {
		t.Errorf("%d steps, want 5", n)
	}
}

type writer []byte

func (w *writer) Write(p []byte) (int, error) { *w = append(*w, p...); return len(p), nil }
