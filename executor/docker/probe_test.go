package docker_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/docker"
	"github.com/monochromegane/cargo/executor/executortest"
)

// probeEnv makes TestProbeElsewhere probe the directory that it names, and say
// what comes of it.
const probeEnv = "CARGO_DOCKER_TEST_PROBE"

func TestProbeFiles(t *testing.T) {
	requireDocker(t)
	name := owner()
	e := newExecutor(t, docker.Options{Owner: name})
	img, err := e.EnsureImage(t.Context(), executortest.Archive(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := e.ProbeFiles(t.Context(), img, dir); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if left := containers(t, name); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if err := e.ProbeFiles(t.Context(), img, dir+"/none"); err == nil {
		t.Error("no such directory: no error")
	}
}

// A server that sees other files or other processes than the daemon does must
// be told so, and in which words to act.
func TestProbeElsewhere(t *testing.T) {
	requireDocker(t)
	e := newExecutor(t, docker.Options{Owner: owner()})
	img, err := e.EnsureImage(t.Context(), executortest.Archive(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	if dir, ok := os.LookupEnv(probeEnv); ok {
		fmt.Printf("probe: %v\n", e.ProbeFiles(t.Context(), executor.Image{Ref: img.Ref}, dir))
		return
	}
	dir := t.TempDir()
	for _, tc := range []struct {
		name    string
		unshare []string
		script  string
		want    string
	}{
		{"here", []string{"--mount"}, "", "probe: <nil>"},
		{"other files", []string{"--mount"}, "mount -t tmpfs tmpfs " + dir, "does not share the files of this machine under " + dir},
		{"other processes", []string{"--pid", "--fork", "--mount-proc"}, "", "not a process of this machine"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			args := append(tc.unshare, "sh", "-ec", tc.script+"\n"+`exec "$@"`, "sh", os.Args[0], "-test.run=^TestProbeElsewhere$")
			cmd := exec.Command("unshare", args...)
			cmd.Env = append(os.Environ(), probeEnv+"="+dir)
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), tc.want) {
				t.Errorf("%v, want %q in:\n%s", err, tc.want, out)
			}
		})
	}
}
