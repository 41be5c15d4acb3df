// Package artifacttest is the specification of a store of artifacts as a test
// suite.
package artifacttest

import (
	"context"
	"io"
	"iter"
	"testing"
	"time"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
)

// A Store keeps artifacts and the logs of ended builds.
type Store interface {
	Put(ctx context.Context, m artifact.Meta, o artifact.PutOptions, write func(io.Writer) error) (artifact.Meta, error)
	Lookup(ctx context.Context, slot string) (artifact.Meta, error)
	Open(ctx context.Context, m artifact.Meta) (io.ReadSeekCloser, error)
	Metas(ctx context.Context) iter.Seq2[artifact.Meta, error]
	Verify(ctx context.Context, m artifact.Meta) error
	Unused(ctx context.Context) iter.Seq2[build.Artifact, error]
	PutLog(ctx context.Context, id build.ID, attempt int, r io.ReaderAt, size int64) error
	OpenLog(ctx context.Context, id build.ID) (io.ReadSeekCloser, int64, error)
	PruneLogs(ctx context.Context, before time.Time) error
	Bytes() int64
}

var _ Store = (*artifact.Store)(nil)

// A Harness is one empty store under test.
type Harness struct {
	Store Store

	// Again opens the same store once more, as another process would.
	Again func(t *testing.T) Store

	// Blob and Record let the suite damage what is stored: they replace the
	// archive of a SHA-256 or the record of a slot, or remove it where content
	// is nil.
	Blob   func(t *testing.T, sum string, content []byte)
	Record func(t *testing.T, slot string, content []byte)
	// Text returns the record of a slot.
	Text func(t *testing.T, slot string) []byte

	// Leftovers names what a Put leaves behind that has failed: temporary
	// files, unfinished uploads. The suite calls it at the end of each subtest.
	Leftovers func(t *testing.T) []string
}

// Test runs the suite. It calls newHarness for each subtest.
func Test(t *testing.T, newHarness func(t *testing.T) Harness) {
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			h := newHarness(t)
			tc.run(&run{T: t, Harness: h})
			if left := h.Leftovers(t); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

// A testCase holds one sentence of the contract, or a few that belong together.
type testCase struct {
	name string
	run  func(*run)
}

var cases = []testCase{
	{"Keeps", testKeeps},
	{"Empty", testEmpty},
	{"Large", testLarge},
	{"Seek", testSeek},
	{"ReplacesASlot", testReplaces},
	{"SharesContent", testShares},
	{"NotThere", testNotThere},
	{"ContextEnded", testContextEnded},

	{"PutFails", testPutFails},
	{"ConfirmIsLast", testConfirmIsLast},
	{"Superseded", testSuperseded},
	{"SupersededMeanwhile", testSupersededMeanwhile},
	{"ReplacedMeanwhile", testReplacedMeanwhile},
	{"Race", testRace},

	{"Corrupt", testCorrupt},
	{"CorruptContent", testCorruptContent},
	{"OldRecord", testOldRecord},
	{"UnknownFields", testUnknownFields},
	{"Metas", testMetas},

	{"Log", testLog},
	{"LogLarge", testLogLarge},
	{"LogSuperseded", testLogSuperseded},
	{"LogFails", testLogFails},
	{"LogRace", testLogRace},
	{"LogPruned", testLogPruned},
}
