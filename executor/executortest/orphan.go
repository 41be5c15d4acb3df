package executortest

import (
	"os"
	"testing"
)

// orphanEnv tells the test binary that it is a server about to be killed, and of which owner.
const orphanEnv = "CARGO_EXECUTORTEST_ORPHAN"

func orphan() (owner string, ok bool) { return os.LookupEnv(orphanEnv) }

// runOrphan runs a step that does not end by itself and says when it runs.
func runOrphan(t *testing.T, h Harness) {
	r := &run{T: t, Harness: h}
	step := r.step("echo running; exec sleep 3600")
	step.Stdout = os.Stdout
	t.Fatalf("the orphan's step ended: %v", h.Executor.Run(t.Context(), step))
}
