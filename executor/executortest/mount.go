package executortest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/monochromegane/cargo/executor"
)

func testMountReadOnly(r *run) {
	dir := r.writableDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("from the host\n"), 0o644); err != nil {
		r.Fatal(err)
	}
	step := r.step("cat /go/file; for c in 'touch /go/new' 'rm -f /go/file' 'mkdir /go/dir' 'chmod 600 /go/file'; do $c && echo $c works; done; exit 0")
	step.Mounts = []executor.Mount{{Source: dir, Target: "/go"}} // the zero value of Writable
	if out := r.output(step); out != "from the host\n" {
		r.Errorf("stdout %q", out)
	}
}

func testMountWritable(r *run) {
	dir, other := r.writableDir(), r.writableDir()
	for _, d := range []string{dir, other} {
		if err := os.WriteFile(filepath.Join(d, "file"), []byte(filepath.Base(d)+"\n"), 0o644); err != nil {
			r.Fatal(err)
		}
	}
	step := r.step("echo from the step >/go/new; mkdir /go/dir; mv /go/file /go/dir/; cat /cache/file; stat -c %u /go/new /go; id -u")
	step.Mounts = append(mountAt("/go", dir, false), mountAt("/cache", other, true)...)
	out := strings.Fields(r.output(step))
	if len(out) != 4 || out[0] != filepath.Base(other) || out[1] != out[3] || out[2] != out[3] {
		r.Errorf("stdout %q: want the name of the other directory and three times the step's own user", out)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "new")); err != nil || string(b) != "from the step\n" {
		r.Errorf("on the host: %q, %v", b, err)
	}
	for _, name := range []string{"new", "dir"} {
		fi, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			r.Fatal(err)
		}
		if st := fi.Sys().(*syscall.Stat_t); st.Uid != executor.HostUID || st.Gid != executor.HostUID {
			r.Errorf("%s belongs to %d:%d on the host, want %d", name, st.Uid, st.Gid, executor.HostUID)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "dir", "file")); err != nil {
		r.Error(err)
	}
}

// What belongs to another user of the host stays out of reach.
func testMountForeignFiles(r *run) {
	dir := r.writableDir()
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("secret\n"), 0o600); err != nil {
		r.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "closed"), 0o755); err != nil {
		r.Fatal(err)
	}
	step := r.step("cat /go/secret; touch /go/closed/new && echo works; exit 0")
	step.Mounts = mountAt("/go", dir, false)
	if out := r.output(step); out != "" {
		r.Errorf("stdout %q", out)
	}
}

func testMountFlags(r *run) {
	step := r.step("grep -E ' /(go|cache) ' /proc/self/mountinfo")
	step.Mounts = append(mountAt("/go", r.writableDir(), false), mountAt("/cache", r.writableDir(), true)...)
	lines := strings.Split(strings.TrimSpace(r.output(step)), "\n")
	if len(lines) != 2 {
		r.Fatalf("mounts %q, want two", lines)
	}
	for _, line := range lines {
		f := strings.Fields(line) // proc(5): the fifth field is the mount point, the sixth its options
		options := "," + f[5] + ","
		mode := ",rw,"
		if f[4] == "/cache" {
			mode = ",ro,"
		}
		for _, want := range []string{",nosuid,", ",nodev,", mode} {
			if !strings.Contains(options, want) {
				r.Errorf("%s is mounted %s, want %s", f[4], f[5], strings.Trim(want, ","))
			}
		}
	}
}

func testMountMissing(r *run) {
	step := r.step("exit 0")
	step.Mounts = mountAt("/go", filepath.Join(r.TempDir(), "missing"), true)
	_, _, err := r.run(r.Context(), step)
	r.fault(err)
}

// The inner mounts hide what the outer has in their places, and only there.
func testMountNested(r *run) {
	outer, cache, modules := r.writableDir(), r.writableDir(), r.writableDir()
	for _, d := range []string{"cache", "pkg", "pkg/mod"} {
		if err := os.Mkdir(filepath.Join(outer, d), 0o755); err != nil {
			r.Fatal(err)
		}
	}
	for file, dir := range map[string]string{"cache/hidden": outer, "pkg/seen": outer, "inner": modules} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(file+"\n"), 0o644); err != nil {
			r.Fatal(err)
		}
	}
	step := r.step("cat /go/pkg/seen /go/pkg/mod/inner; cat /go/cache/hidden; touch /go/cache/new; touch /go/pkg/mod/new && echo works; exit 0")
	step.Mounts = slices.Concat(mountAt("/go", outer, false), mountAt("/go/cache", cache, false), mountAt("/go/pkg/mod", modules, true))
	if out := r.output(step); out != "pkg/seen\ninner\n" {
		r.Errorf("stdout %q", out)
	}
	if _, err := os.Stat(filepath.Join(cache, "new")); err != nil {
		r.Error(err)
	}
}

func testMountNestedOrder(r *run) {
	dir := r.writableDir()
	if err := os.Mkdir(filepath.Join(dir, "cache"), 0o755); err != nil {
		r.Fatal(err)
	}
	for _, target := range []string{"/go", "/go/cache", "/go/cache/"} {
		step := r.step("exit 0")
		step.Mounts = append(mountAt("/go/cache", dir, false), mountAt(target, dir, false)...)
		_, _, err := r.run(r.Context(), step)
		r.fault(err)
	}
}

// An earlier step has replaced the place of a mount: by a way out of the tree,
// which nothing may be mounted at the end of, or by nothing to mount on.
func testMountNestedLink(r *run) {
	for name, replace := range map[string]func(place string) error{
		"root":    func(p string) error { return os.Symlink("/", p) },
		"above":   func(p string) error { return os.Symlink("../../../../../../../../..", p) },
		"proc":    func(p string) error { return os.Symlink("/proc", p) },
		"inside":  func(p string) error { return os.Symlink("other", p) },
		"itself":  func(p string) error { return os.Symlink("mod", p) },
		"file":    func(p string) error { return os.WriteFile(p, nil, 0o644) },
		"pipe":    func(p string) error { return syscall.Mkfifo(p, 0o644) },
		"nothing": func(string) error { return nil },
		"linked above": func(p string) error {
			return errors.Join(os.Remove(filepath.Dir(p)), os.Symlink("other", filepath.Dir(p)))
		},
	} {
		outer := r.writableDir()
		for _, d := range []string{"pkg", "pkg/other", "other", "other/mod"} {
			if d == "pkg/other" && name == "linked above" {
				continue
			}
			if err := os.Mkdir(filepath.Join(outer, d), 0o777); err != nil {
				r.Fatal(err)
			}
		}
		if err := replace(filepath.Join(outer, "pkg/mod")); err != nil {
			r.Fatal(err)
		}
		step := r.step("echo ran")
		step.Mounts = append(mountAt("/go", outer, false), mountAt("/go/pkg/mod", r.writableDir(), false)...)
		out, _, err := r.run(r.Context(), step)
		if !errors.Is(err, executor.ErrMount) || out != "" {
			r.Errorf("%s: Run = %v, stdout %q, want %v", name, err, out, executor.ErrMount)
		}
	}
}

// A build's tree and its cache are overlays on a file system in a file, mounted
// after the runtime was started; Run leaves nothing that keeps them.
func testMountOverlay(r *run) {
	disk := r.disk()
	layer := r.writableDir()
	if err := os.WriteFile(filepath.Join(layer, "layer"), []byte("shared\n"), 0o444); err != nil {
		r.Fatal(err)
	}
	tree, cache := r.overlay(disk, "tree", layer), r.overlay(disk, "cache", layer)
	if err := os.Mkdir(filepath.Join(tree, "cache"), 0o755); err != nil {
		r.Fatal(err)
	}
	step := r.step("cat /go/layer /go/cache/layer; echo own >/go/cache/new; rm -f /go/cache/layer; mv /go/layer /go/moved; ls /go /go/cache; stat -c %u /go /go/cache/new; id -u")
	step.Mounts = append(mountAt("/go", tree, false), mountAt("/go/cache", cache, false)...)
	out := r.output(step)
	const want = "shared\nshared\n/go:\ncache\nmoved\n\n/go/cache:\nnew\n"
	users, ok := strings.CutPrefix(out, want)
	if f := strings.Fields(users); !ok || len(f) != 3 || f[0] != f[2] || f[1] != f[2] {
		r.Errorf("stdout %q, want %q and three times the step's own user", out, want)
	}
	if b, err := os.ReadFile(filepath.Join(cache, "new")); err != nil || string(b) != "own\n" {
		r.Errorf("on the host: %q, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(layer, "layer")); err != nil || string(b) != "shared\n" {
		r.Errorf("the layer: %q, %v", b, err)
	}
	for _, dir := range []string{tree, cache, disk} {
		if err := unix.Unmount(dir, 0); err != nil {
			r.Errorf("unmount %s: %v", dir, err)
		}
	}
}

// disk mounts a small file system of its own.
func (r *run) disk() string {
	r.Helper()
	if os.Getuid() != 0 {
		r.Skip("needs root to mount")
	}
	dir := r.writableDir()
	image := filepath.Join(r.TempDir(), "image")
	for _, args := range [][]string{
		{"truncate", "-s", "16M", image},
		{"mkfs.ext4", "-q", "-F", image},
		{"mount", "-o", "loop,nosuid,nodev,noatime", image, dir},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			r.Fatalf("%q: %v: %s", args, err, out)
		}
	}
	r.unmountAtEnd(dir)
	return dir
}

// overlay mounts an overlay on layer whose upper directory is on disk.
func (r *run) overlay(disk, name, layer string) string {
	r.Helper()
	var dirs []string
	for _, part := range []string{"upper", "work"} {
		dir := filepath.Join(disk, name+"-"+part)
		if err := errors.Join(os.Mkdir(dir, 0o755), os.Chown(dir, executor.HostUID, executor.HostUID)); err != nil {
			r.Fatal(err)
		}
		dirs = append(dirs, dir)
	}
	merged := r.writableDir()
	options := "lowerdir=" + layer + ",upperdir=" + dirs[0] + ",workdir=" + dirs[1]
	if err := unix.Mount("overlay", merged, "overlay", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOATIME, options); err != nil {
		r.Fatal(err)
	}
	r.unmountAtEnd(merged)
	return merged
}

func (r *run) unmountAtEnd(dir string) {
	r.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // where the test has failed
}
