package modrepo_test

import (
	"archive/zip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/monochromegane/cargo/scripts/modrepo"
)

func TestWork(t *testing.T) {
	proxy(t)
	dir, bare := t.TempDir(), filepath.Join(t.TempDir(), "owner", "app.git")
	w, err := modrepo.New(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := w.Unpack(t.Context(), "example.com/owner/app@v1.0.0")
	if err != nil || m.Path != "example.com/owner/app" || m.Version != "v1.0.0" {
		t.Fatalf("Unpack = %v, %v", m, err)
	}
	if err := w.Commit(t.Context(), "v1.0.0"); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "main.go")
	if err := os.WriteFile(file, []byte("changed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context(), "v2.0.0"); err != nil {
		t.Fatal(err)
	}
	if err := w.Checkout(t.Context(), "v1.0.0"); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "package main\n" {
		t.Errorf("main.go at v1.0.0 = %q, %v", got, err)
	}
	if err := w.Publish(t.Context(), bare); err != nil {
		t.Fatal(err)
	}
	for spec, want := range map[string]string{"v1.0.0:main.go": "package main\n", "v2.0.0:main.go": "changed", "main:main.go": "changed"} {
		got, err := exec.CommandContext(t.Context(), "git", "-C", bare, "show", spec).Output()
		if err != nil || string(got) != want {
			t.Errorf("%s in the bare repository = %q, %v, want %q", spec, got, err, want)
		}
	}
	if _, err := w.Unpack(t.Context(), "example.com/owner/app@v1.0.1"); err == nil {
		t.Error("a version that does not exist was unpacked")
	}
}

// proxy has the go command know one module at one version, and nothing else.
func proxy(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	at := filepath.Join(dir, "example.com", "owner", "app", "@v")
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(at, "v1.0.0.zip"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	archive := zip.NewWriter(f)
	for name, content := range map[string]string{"go.mod": "module example.com/owner/app\n", "main.go": "package main\n"} {
		w, err := archive.Create("example.com/owner/app@v1.0.0/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"v1.0.0.mod": "module example.com/owner/app\n", "v1.0.0.info": `{"Version":"v1.0.0"}`} {
		if err := os.WriteFile(filepath.Join(at, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("GOPROXY", "file://"+filepath.ToSlash(dir))
	t.Setenv("GOSUMDB", "off")
	t.Setenv("GOMODCACHE", t.TempDir())
	t.Setenv("GOFLAGS", "-modcacherw")
}
