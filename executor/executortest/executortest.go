// Package executortest is the specification of [executor.Executor] as a test
// suite, the small image that the suite runs, and an executor without a
// container runtime for the tests of the layers above.
package executortest

import (
	"testing"

	"github.com/monochromegane/cargo/executor"
)

// A Harness is one executor under test.
type Harness struct {
	Executor executor.Executor

	// Image is the image of Archive as the executor holds it.
	Image executor.Image

	// Leftovers names everything that the executor made for the owner and did
	// not remove: containers, snapshots, leases, mounts, FIFOs, cgroups. The
	// suite calls it at the end of each subtest.
	Leftovers func(t *testing.T) []string

	// NotApplicable says why a subtest, by its name, means nothing for this
	// executor; it is skipped with that reason.
	NotApplicable map[string]string
}

// Test runs the suite. It calls newHarness for each subtest with an owner that
// no other test has: what the harness makes must be told apart by it. A second
// call with the same owner is the same server started again.
//
// One subtest runs the test binary again, as a server that is about to be
// killed, with nothing but the calling test selected. Test must therefore be
// called on all paths, and newHarness must not depend on what other tests did.
func Test(t *testing.T, newHarness func(t *testing.T, owner string) Harness) {
	if owner, ok := orphan(); ok {
		runOrphan(t, newHarness(t, owner))
		return
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			owner := newOwner()
			h := newHarness(t, owner)
			if why, ok := h.NotApplicable[tc.name]; ok {
				t.Skip(why)
			}
			tc.run(&run{T: t, Harness: h, owner: owner, newHarness: newHarness})
			if left := h.Leftovers(t); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}
