package executortest

import (
	"bufio"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// orphanEnv tells the test binary that it is a server about to be killed, and
// of which owner; orphanDirEnv is a directory that its step has mounted.
const (
	orphanEnv    = "CARGO_EXECUTORTEST_ORPHAN"
	orphanDirEnv = "CARGO_EXECUTORTEST_ORPHAN_DIR"
)

func orphan() (owner string, ok bool) { return os.LookupEnv(orphanEnv) }

// orphanRuns is what the orphan's step writes when it runs.
const orphanRuns = "orphan running"

// runOrphan runs a step that does not end by itself.
func runOrphan(t *testing.T, h Harness) {
	r := &run{T: t, Harness: h}
	step := r.step(getDoor + "; echo; echo " + orphanRuns + "; exec sleep 3600")
	step.Door = newDoor("welcome")
	step.Mounts = mountAt("/go", os.Getenv(orphanDirEnv), false)
	step.Stdout = os.Stdout
	t.Fatalf("the orphan's step ended: %v", h.Executor.Run(t.Context(), step))
}

// testReapAfterKill lets a server die without a chance to clean up, and starts
// it again. Another owner's step on the same host must not notice.
func testReapAfterKill(r *run) {
	other := r.newHarness(r.T, newOwner())
	otherRun := &run{T: r.T, Harness: other}
	otherDir := r.writableDir()
	step := otherRun.step("echo ready; while ! test -e /go/go-on; do sleep 0.05; done; echo done")
	step.Mounts = mountAt("/go", otherDir, false)
	otherWait := otherRun.start(r.Context(), step, "ready\n")

	r.leaveOrphan()
	if len(r.Leftovers(r.T)) == 0 {
		r.Error("a killed server leaves nothing behind: Leftovers does not see it")
	}
	again := r.newHarness(r.T, r.owner)
	if n, err := again.Executor.Reap(r.Context()); n != 1 || err != nil {
		r.Errorf("Reap = %d, %v, want 1", n, err)
	}
	if left := r.Leftovers(r.T); len(left) > 0 {
		r.Errorf("left behind by Reap: %q", left)
	}
	if n, err := again.Executor.Reap(r.Context()); n != 0 || err != nil {
		r.Errorf("the second Reap = %d, %v, want 0", n, err)
	}

	if err := os.WriteFile(otherDir+"/go-on", nil, 0o644); err != nil {
		r.Fatal(err)
	}
	if out, err := otherWait(); err != nil || out != "ready\ndone\n" {
		r.Errorf("the other owner's step: %v, stdout %q", err, out)
	}
	if left := other.Leftovers(r.T); len(left) > 0 {
		r.Errorf("left behind by the other owner: %q", left)
	}
}

// leaveOrphan runs this test binary as a server of the same owner, and kills
// it while its step runs.
func (r *run) leaveOrphan() {
	r.Helper()
	test, _, _ := strings.Cut(r.Name(), "/")
	cmd := exec.Command(os.Args[0], "-test.run=^"+regexp.QuoteMeta(test)+"$", "-test.count=1")
	cmd.Env = append(os.Environ(), orphanEnv+"="+r.owner, orphanDirEnv+"="+r.writableDir())
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		r.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		r.Fatal(err)
	}
	var said []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		said = append(said, lines.Text())
		if lines.Text() == orphanRuns {
			break
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		r.Error(err)
	}
	_ = cmd.Wait() // killed
	if len(said) == 0 || said[len(said)-1] != orphanRuns {
		r.Fatalf("the orphan's step did not come to run: %q", said)
	}
}
