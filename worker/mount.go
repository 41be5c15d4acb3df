package worker

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/semver"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/cache"
	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/modproxy"
)

// Modules lay out modules for the go command. A [modproxy.Proxy] does.
type Modules interface {
	// Tree returns a module cache with those of needs that can be had, which
	// nobody can change.
	Tree(ctx context.Context, needs []modproxy.Module) (*modproxy.Tree, error)
}

// A Library prepares standard libraries. A [stdlib.Library] does.
type Library interface {
	// Want asks for the one of p and returns at once.
	Want(p cache.Platform)
}

// mounted is what lies in a build's workspace without belonging to it.
type mounted struct {
	packages *cache.Lease   // nil until mounted
	modules  *modproxy.Tree // nil if there is none
	upper    string         // what the go command has compiled anew; "" until mounted
}

// release gives up what is mounted, after the disk that it is mounted on is gone.
func (m *mounted) release() {
	if m.packages != nil {
		m.packages.Release()
	}
	if m.modules != nil {
		m.modules.Release()
	}
	*m = mounted{}
}

// work is the build as the cache sees it.
func (j *job) work() cache.Work {
	return cache.Work{
		Toolchain:  j.Toolchain.Version,
		Platform:   j.Toolchain.Platform(j.build.GOOS, j.build.GOARCH),
		Repository: j.build.Repository.String(),
		Public:     j.build.Public,
		RunsCode:   j.plan.RunsCode,
		Assembles:  j.plan.Assembles,
	}
}

// mount lays out what the build may read besides its source. What the build
// writes over it stays on its disk.
func (j *job) mount(ctx context.Context) error {
	j.Library.Want(j.work().Platform)
	j.mounts = []executor.Mount{{Source: inDisk(j.disk, goDir), Target: goPath, Writable: true}}
	if err := j.mountPackages(); err != nil {
		// Then GOCACHE is a directory of the build's own: that is slow, not wrong.
		j.Log.Error("a build goes without compiled packages", "build", j.build.ID, "err", err)
	}
	if err := j.mountModules(ctx); err != nil && ctx.Err() == nil {
		// Then all modules come through the door.
		j.Log.Error("a build goes without unpacked modules", "build", j.build.ID, "err", err)
	}
	return context.Cause(ctx)
}

// mountPackages lays out GOCACHE.
func (j *job) mountPackages() error {
	lease, err := j.Cache.Lease(j.work().Reads()...)
	if err != nil {
		return err
	}
	j.mounted.packages = lease
	packages, err := j.disk.Overlay("packages", lease.Layers(), executor.HostUID, executor.HostUID)
	if err != nil {
		return err
	}
	if err := j.Cache.Prime(packages.Upper); err != nil {
		return err
	}
	j.mounted.upper = packages.Upper
	j.mounts = append(j.mounts, executor.Mount{Source: packages.Dir, Target: cacheDir, Writable: true})
	return nil
}

// mountModules lays out the modules that go.mod and go.sum name. What is
// missing or wrong there, the go command says best: it comes to the door for it.
func (j *job) mountModules(ctx context.Context) error {
	needs := j.needs()
	if len(needs) == 0 {
		return nil
	}
	tree, err := j.Modules.Tree(ctx, needs)
	if err != nil {
		return err
	}
	j.mounted.modules = tree
	modules, err := j.disk.Overlay("modules", []string{tree.Dir()}, executor.HostUID, executor.HostUID)
	if err != nil {
		return err
	}
	j.mounts = append(j.mounts, executor.Mount{Source: modules.Dir, Target: modDir, Writable: true})
	j.say("modules are there", build.PhaseMount, slog.Int("named", len(needs)), slog.Int("missing", tree.Missing()))
	return nil
}

// Bounds of the files that name modules, far above those of the largest programs.
const (
	maxGoMod = 1 << 20
	maxGoSum = 4 << 20
)

func (j *job) needs() []modproxy.Module {
	tree, err := j.root.OpenRoot(inside(j.treeDir()))
	if err != nil {
		return nil
	}
	defer tree.Close()
	gomod, err := readSome(tree, "go.mod", maxGoMod)
	if err != nil {
		return nil
	}
	gosum, err := readSome(tree, "go.sum", maxGoSum)
	if err != nil || vendored(tree, gomod) {
		return nil
	}
	needs, err := modproxy.Needs(gomod, gosum)
	if err != nil {
		return nil
	}
	return needs
}

// vendored reports whether the go command takes modules from the directory
// vendor: where there is one, since Go 1.14.
func vendored(tree *os.Root, gomod []byte) bool {
	if fi, err := tree.Lstat("vendor/modules.txt"); err != nil || !fi.Mode().IsRegular() {
		return false
	}
	f, err := modfile.ParseLax("go.mod", gomod, nil)
	return err == nil && f.Go != nil && semver.Compare("v"+f.Go.Version, "v1.14") >= 0
}

// readSome reads a regular file that is no link.
func readSome(tree *os.Root, name string, limit int64) ([]byte, error) {
	fi, err := tree.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > limit {
		return nil, fs.ErrInvalid
	}
	f, err := tree.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// seal keeps what a build whose commands went well has compiled. That it
// cannot be kept is no fault of the build's.
func (j *job) seal(ctx context.Context) {
	if j.mounted.upper == "" {
		return
	}
	ctx, stop := context.WithTimeout(ctx, storeTimeout)
	defer stop()
	sealed, err := j.Cache.Append(ctx, j.work().Appends(), j.mounted.upper)
	switch {
	case err == nil && sealed.Files == 0:
	case err == nil:
		j.say("kept compiled packages", build.PhaseStore, slog.Int("files", sealed.Files), slog.Int64("bytes", sealed.Bytes))
	case errors.Is(err, cache.ErrTooLarge):
		j.say("too much was compiled to be kept", build.PhaseStore)
	case ctx.Err() == nil:
		j.Log.Error("cannot keep compiled packages", "build", j.build.ID, "err", err)
	}
}
