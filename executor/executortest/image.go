package executortest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// ImageTag is the name under which Archive holds its image.
const ImageTag = "localhost/cargo-executortest:1"

//go:embed probe/*.go
var probeSource embed.FS

// Archive returns the path of a docker-save archive of a small image, and
// skips the test where the host has no static busybox. The image has busybox
// and its applets, such as sh, in /bin, and beside them probe, a program of the
// suite; the empty directories /go, /cache, /mnt, /tmp, /proc, /dev and /sys;
// and the environment PATH=/bin and IMAGE=executortest. The file is made once
// and shared by all tests of the machine: it must not be changed.
func Archive(t testing.TB) string {
	t.Helper()
	layer, digest := contents(t)
	file := filepath.Join(cacheDir(t), digest+".tar")
	if _, err := os.Stat(file); err == nil {
		return file
	}
	img, err := image(layer(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := writeFile(file, func(f *os.File) error {
		return tarball.Write(name.MustParseReference(ImageTag), img, f)
	}); err != nil {
		t.Fatal(err)
	}
	return file
}

// Image is the image of Archive, for a test that pushes it to a registry.
func Image(t testing.TB) v1.Image {
	t.Helper()
	img, err := tarball.ImageFromPath(Archive(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// contents returns what makes the layer and a digest of what goes into it,
// which is cheap.
func contents(t testing.TB) (layer func(testing.TB) []byte, digest string) {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		const why = "needs a static /bin/busybox: install the package busybox-static"
		if slices.Contains(strings.Split(os.Getenv("CARGO_TEST_REQUIRE"), ","), "busybox") {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	h := sha256.New()
	io.WriteString(h, "layout 1 "+runtime.Version()+" "+runtime.GOARCH+"\n")
	h.Write(busybox)
	sources, err := fs.Glob(probeSource, "probe/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sources {
		b, err := probeSource.ReadFile(s)
		if err != nil {
			t.Fatal(err)
		}
		h.Write(b)
	}
	return func(t testing.TB) []byte { return rootfs(t, busybox) }, hex.EncodeToString(h.Sum(nil))[:32]
}

// rootfs is the tar of the image's only layer.
func rootfs(t testing.TB, busybox []byte) []byte {
	t.Helper()
	list, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		t.Fatalf("busybox --list: %v", err)
	}
	probe := buildProbe(t)
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	add := func(h tar.Header, content []byte) {
		h.Size, h.ModTime, h.Format = int64(len(content)), time.Unix(0, 0), tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"bin", "cache", "dev", "etc", "go", "mnt", "proc", "sys"} {
		add(tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755}, nil)
	}
	add(tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, nil)
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/secret", Mode: 0o600}, []byte("only root reads this\n"))
	add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, busybox)
	add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/probe", Mode: 0o755}, probe)
	add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/setuid-probe", Mode: 0o4755}, probe)
	for applet := range strings.FieldsSeq(string(list)) {
		if applet != "busybox" {
			add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox", Mode: 0o777}, nil)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// buildProbe compiles the probe, statically, to the same bytes wherever the
// module lies.
func buildProbe(t testing.TB) []byte {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, probeSource); err != nil {
		t.Fatal(err)
	}
	sources, err := filepath.Glob(filepath.Join(dir, "probe", "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "probe.bin")
	cmd := exec.Command("go", append([]string{"build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", bin}, sources...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH, "GOFLAGS=", "GO111MODULE=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build of the probe: %v\n%s", err, out)
	}
	b, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func image(layer []byte) (v1.Image, error) {
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer)), nil })
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return nil, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", runtime.GOARCH
	cf.Config = v1.Config{
		Env:        []string{"PATH=/bin", "IMAGE=executortest"},
		User:       "0:0", // a step must not become root by it
		WorkingDir: "/mnt",
	}
	return mutate.ConfigFile(img, cf)
}

func cacheDir(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("cargo-executortest-%d", os.Getuid()))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// writeFile makes file appear whole or not at all: tests of several packages
// may come here at once.
func writeFile(file string, write func(*os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err := write(f); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}
