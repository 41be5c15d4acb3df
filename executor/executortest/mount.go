package executortest

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"

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
