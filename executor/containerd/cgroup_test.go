package containerd_test

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/containerd"
)

// What a step may use, as the kernel has it: a busy machine cannot hide it.
func TestCgroup(t *testing.T) {
	address := daemon(t)
	e, img := ready(t, containerd.Options{
		Address: address,
		Owner:   "cgroup-" + rand.Text(),
		Limits:  executor.Limits{CPUs: 1.5, Pids: 77},
	})
	dir := t.TempDir()
	var out lines
	id := strings.ToLower(rand.Text())
	step := executor.Step{
		ID: id, Image: img.Ref, Args: []string{"sh", "-c", "echo up; while ! test -e /go/end; do sleep 0.02; done"},
		Mounts: []executor.Mount{{Source: dir, Target: "/go"}},
		Limits: executor.Limits{Memory: 123 << 20},
		Stdout: &out,
	}
	done := make(chan error, 1)
	go func() { done <- e.Run(t.Context(), step) }()
	eventually(t, func() bool { return out.String() == "up\n" })

	want := map[string]string{ // cgroup v1
		"memory/cargo/*-" + id + "/memory.limit_in_bytes":       "128974848",
		"memory/cargo/*-" + id + "/memory.memsw.limit_in_bytes": "128974848",
		"pids/cargo/*-" + id + "/pids.max":                      "77",
		"cpu*/cargo/*-" + id + "/cpu.cfs_quota_us":              "150000",
		"cpu*/cargo/*-" + id + "/cpu.cfs_period_us":             "100000",
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		want = map[string]string{
			"cargo/*-" + id + "/memory.max":      "128974848",
			"cargo/*-" + id + "/memory.swap.max": "0",
			"cargo/*-" + id + "/pids.max":        "77",
			"cargo/*-" + id + "/cpu.max":         "150000 100000",
		}
	}
	for pattern, value := range want {
		files, err := filepath.Glob("/sys/fs/cgroup/" + pattern)
		if err != nil || len(files) == 0 {
			t.Errorf("%s: %q, %v", pattern, files, err)
			continue
		}
		if b, err := os.ReadFile(files[0]); err != nil || strings.TrimSpace(string(b)) != value {
			t.Errorf("%s = %q, %v, want %s", files[0], b, err, value)
		}
	}

	if err := os.WriteFile(filepath.Join(dir, "end"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
