package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

// Somebody removes all images from the engine, as a timer that prunes them does:
// the next build is made all the same.
func TestImagesPruned(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("it takes half a minute")
	}
	for engine, flag := range map[string]string{"containerd": "--containerd-address", "docker": "--docker-host"} {
		t.Run(engine, func(t *testing.T) {
			root, _ := privateEngines(t, engine)
			address := filepath.Join(root, engine+".sock")
			list := []string{"ctr", "--address", address, "--namespace", "cargo", "images", "list", "--quiet"}
			remove := []string{"ctr", "--address", address, "--namespace", "cargo", "images", "remove", "--sync"}
			if engine == "docker" {
				address = "unix://" + address
				list = []string{"docker", "--host", address, "images", "--quiet", "--no-trunc"}
				remove = []string{"docker", "--host", address, "image", "rm", "--force"}
			}
			if _, err := exec.LookPath(list[0]); err != nil {
				require(t, engine, err)
			}
			host := gitsrctest.New(t)
			host.Repository("me/app").Commit("main", gitsrctest.Files(map[string]string{"Makefile": "all:\n\techo x > out.txt\n"}))
			s := newServer(t, engine, t.TempDir(), host, flag, address)
			s.want(s.post("/git.test/me/app/linux/amd64/main", ""), "", build.Succeeded, "")
			images, err := exec.Command(list[0], list[1:]...).Output()
			if err != nil || len(images) == 0 {
				t.Fatalf("images: %q, %v", images, err)
			}
			if out, err := exec.Command(remove[0], append(remove[1:], strings.Fields(string(images))...)...).CombinedOutput(); err != nil {
				t.Fatalf("remove %q: %v\n%s", images, err, out)
			}
			b, _ := s.want(s.post("/git.test/me/app/linux/arm64/main", ""), "", build.Succeeded, "")
			if b.Attempt != 2 {
				t.Errorf("it took %d attempts", b.Attempt)
			}
		})
	}
}
