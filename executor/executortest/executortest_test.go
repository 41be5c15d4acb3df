package executortest_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/executortest"
)

func TestFake(t *testing.T) {
	executortest.Test(t, func(t *testing.T, owner string) executortest.Harness {
		return executortest.Harness{
			Executor:  &executortest.Fake{Images: []string{"image"}, Env: []string{"PATH=" + programs(t), "IMAGE=executortest"}},
			Image:     executor.Image{Ref: "image"},
			Leftovers: func(*testing.T) []string { return nil },
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
