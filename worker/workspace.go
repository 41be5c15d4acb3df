package worker

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/monochromegane/cargo/disk"
	"github.com/monochromegane/cargo/executor"
)

// The workspace is a disk that only the server can enter. On it is goDir,
// which belongs to the build and which a container sees as goPath.
const (
	goDir    = "go"
	goPath   = "/go"
	binDir   = goPath + "/bin"
	outDir   = goPath + "/out"
	tmpDir   = goPath + "/tmp"
	cacheDir = goPath + "/cache"
	modDir   = goPath + "/pkg/mod"
)

// treeDir is where the source lies in the container.
func (j *job) treeDir() string { return goPath + "/src/" + j.build.Repository.String() }

// inside is a path of the container below goPath as one of the workspace.
func inside(path string) string { return path[1:] }

func inDisk(d *disk.Disk, name string) string { return filepath.Join(d.Dir(), name) }

// lay makes the workspace and the directories of the build user in it.
func (j *job) lay(ctx context.Context) (err error) {
	// The next attempt may begin before this one's disk is gone.
	if j.disk, err = j.Disks.Make(ctx, fmt.Sprintf("%s-%d", j.build.ID, j.build.Attempt)); err != nil {
		return err
	}
	if j.root, err = os.OpenRoot(j.disk.Dir()); err != nil {
		return err
	}
	if j.top, err = j.root.Open("."); err != nil {
		return err
	}
	for _, d := range []string{binDir, cacheDir, goPath + "/home", outDir, modDir, tmpDir, j.treeDir()} {
		if err := j.root.MkdirAll(inside(d), 0o755); err != nil {
			return err
		}
		for p := inside(d); p != "."; p = filepath.Dir(p) {
			if err := j.root.Chown(p, executor.HostUID, executor.HostUID); err != nil {
				return err
			}
		}
	}
	return nil
}

// clear removes the workspace and all that was mounted on it, after the
// containers that see it.
func (j *job) clear() {
	j.removing.Wait()
	if j.top != nil {
		_ = j.top.Close()
		j.top = nil
	}
	if j.root != nil {
		_ = j.root.Close()
		j.root = nil
	}
	if j.disk != nil {
		if err := j.disk.Close(); err != nil { // no news of the build, which may have ended well
			j.Log.Error("cannot remove a workspace", "build", j.build.ID, "err", err)
		}
		j.disk = nil
	}
	j.mounted.release()
}
