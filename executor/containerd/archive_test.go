package containerd_test

import (
	"bytes"
	"os"
	"testing"

	"github.com/monochromegane/cargo/executor/containerd"
	"github.com/monochromegane/cargo/executor/executortest"
)

// FuzzConfigDigest feeds archives that somebody else made.
func FuzzConfigDigest(f *testing.F) {
	f.Add([]byte("not a tar"))
	f.Add(bytes.Repeat([]byte{0}, 1024))
	if b, err := os.ReadFile(executortest.Archive(f)); err == nil {
		f.Add(b[:4096])
		f.Add(b[len(b)-8192:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := containerd.ConfigDigest(bytes.NewReader(b))
		if err == nil && d.Validate() != nil {
			t.Errorf("digest %q", d)
		}
	})
}
