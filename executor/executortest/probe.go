package executortest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/monochromegane/cargo/executor"
)

// probeEnv makes TestProbeFiles probe the directory that it names, and say what
// comes of it.
const probeEnv = "CARGO_EXECUTORTEST_PROBE"

// TestProbeFiles tests the method ProbeFiles of an executor that has it: a
// server that sees other files or other processes than the runtime does must
// be told so, and in which words to act. It needs root, runs the test binary
// again in other namespaces, and is to be called as Test is.
func TestProbeFiles(t *testing.T, newHarness func(t *testing.T, owner string) Harness) {
	h := newHarness(t, newOwner())
	e, ok := h.Executor.(interface {
		ProbeFiles(ctx context.Context, image executor.Image, dir string) error
	})
	if !ok {
		t.Fatal("no method ProbeFiles")
	}
	if dir, ok := os.LookupEnv(probeEnv); ok {
		fmt.Printf("probe: %v\n", e.ProbeFiles(t.Context(), h.Image, dir))
		return
	}
	shared := t.TempDir() // what is mounted there is mounted in its copies, too
	r := &run{T: t, Harness: h}
	for _, args := range [][]string{{"--bind", shared, shared}, {"--make-shared", shared}} {
		if out, err := exec.Command("mount", args...).CombinedOutput(); err != nil {
			t.Fatalf("mount %q: %v: %s", args, err, out)
		}
		r.unmountAtEnd(shared)
	}
	private := t.TempDir()
	for _, tc := range []struct {
		name, dir string
		unshare   []string
		script    string
		want      string
	}{
		{"here", private, nil, "", "probe: <nil>"},
		{"below a mount", r.disk(), nil, "", "probe: <nil>"},
		{"own mounts", private, []string{"--mount"}, "", "Cargo must run on its machine and in its mount namespace"},
		{"mounts that propagate", shared, []string{"--mount", "--propagation", "unchanged"}, "", "probe: <nil>"},
		{"other files", private, []string{"--mount"}, "mount -t tmpfs tmpfs " + private, "does not share the files of this machine under " + private},
		{"other processes", shared, []string{"--pid", "--fork", "--mount-proc", "--propagation", "unchanged"}, "", "Cargo must run on its machine"},
		{"no such directory", private + "/none", []string{"--mount"}, "", "no such file or directory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			test, _, _ := strings.Cut(t.Name(), "/")
			args := append([]string{"--uts"}, tc.unshare...) // a namespace that does not matter, if no other is wanted
			args = append(args, "sh", "-ec", tc.script+"\n"+`exec "$@"`, "sh", os.Args[0], "-test.run=^"+regexp.QuoteMeta(test)+"$")
			cmd := exec.Command("unshare", args...)
			cmd.Env = append(os.Environ(), probeEnv+"="+tc.dir)
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), tc.want) {
				t.Errorf("%v, want %q in:\n%s", err, tc.want, out)
			}
			if left, err := os.ReadDir(tc.dir); err == nil && len(left) > 0 && left[0].Name() != "lost+found" {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	if left := h.Leftovers(t); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
