package containerd_test

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/containerd"
	"github.com/monochromegane/cargo/executor/executortest"
)

// freshImage is the test image with a configuration that containerd has never
// seen, and the value of FRESH in it.
func freshImage(t *testing.T) (v1.Image, string) {
	t.Helper()
	img := executortest.Image(t)
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	value := rand.Text()
	cf = cf.DeepCopy()
	cf.Config.Env = append(cf.Config.Env, "FRESH="+value)
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	return img, value
}

// foreignImage is an image for a platform that this host does not run.
func foreignImage(t *testing.T) (v1.Image, v1.Platform) {
	t.Helper()
	img, _ := freshImage(t)
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.Architecture = "s390x"
	if runtime.GOARCH == cf.Architecture {
		cf.Architecture = "riscv64"
	}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	return img, v1.Platform{OS: "linux", Architecture: cf.Architecture}
}

func reference(t *testing.T, s string) name.Reference {
	t.Helper()
	ref, err := name.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func configOf(t *testing.T, img v1.Image) string {
	t.Helper()
	h, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

// checkImage makes sure of got, that steps run from it, and that it is not
// fetched twice; then it removes it.
func checkImage(t *testing.T, e *containerd.Executor, ref string, got executor.Image, digest, fresh string) {
	t.Helper()
	t.Cleanup(func() { forget(t, got.Ref) })
	if got.Digest != digest {
		t.Errorf("digest %s, want that of the configuration, %s", got.Digest, digest)
	}
	var out lines
	step := executor.Step{ID: "fresh", Image: got.Ref, Args: []string{"sh", "-c", "echo $FRESH"}, Stdout: &out}
	if err := e.Run(t.Context(), step); err != nil || out.String() != fresh+"\n" {
		t.Errorf("Run = %v, output %q, want %q", err, &out, fresh)
	}
	again, err := e.EnsureImage(t.Context(), ref, func(msg string, args ...any) { t.Errorf("work on an image that is there: %s %v", msg, args) })
	if err != nil || again != got {
		t.Errorf("EnsureImage = %v, %v, want %v", again, err, got)
	}
}

// forget removes an image with what nothing else needs of it.
func forget(t *testing.T, ref string) {
	t.Helper()
	c, err := client.New(containerd.DefaultAddress)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := namespaces.WithNamespace(context.WithoutCancel(t.Context()), testNamespace)
	if err := c.ImageService().Delete(ctx, ref, images.SynchronousDelete()); err != nil {
		t.Error(err)
	}
}

func TestEnsureImageArchive(t *testing.T) {
	address := daemon(t)
	for _, tc := range []struct {
		name  string
		write func(t *testing.T, file string, img v1.Image)
	}{
		{"docker save", writeDockerArchive},
		{"OCI layout", writeLayout},
		{"OCI layout of several platforms", writeManyPlatforms},
	} {
		t.Run(tc.name, func(t *testing.T) {
			owner := "image-" + rand.Text()
			e := open(t, containerd.Options{Address: address, Owner: owner})
			img, fresh := freshImage(t)
			file := filepath.Join(t.TempDir(), "image.tar")
			tc.write(t, file, img)
			var told []string
			got, err := e.EnsureImage(t.Context(), file, func(msg string, _ ...any) { told = append(told, msg) })
			if err != nil {
				t.Fatal(err)
			}
			if len(told) == 0 {
				t.Error("no progress was told")
			}
			checkImage(t, e, file, got, configOf(t, img), fresh)
			if left := leftovers(t, address, filepath.Dir(address), owner); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

func writeDockerArchive(t *testing.T, file string, img v1.Image) {
	t.Helper()
	if err := tarball.WriteToFile(file, name.MustParseReference(executortest.ImageTag), img); err != nil {
		t.Fatal(err)
	}
}

func writeLayout(t *testing.T, file string, img v1.Image) {
	t.Helper()
	writeIndex(t, file, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img}))
}

func writeManyPlatforms(t *testing.T, file string, img v1.Image) {
	t.Helper()
	writeIndex(t, file, manyPlatforms(t, img))
}

// manyPlatforms is an index in which img is one of two.
func manyPlatforms(t *testing.T, img v1.Image) v1.ImageIndex {
	t.Helper()
	foreign, platform := foreignImage(t)
	return mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: foreign, Descriptor: v1.Descriptor{Platform: &platform}},
		mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}})
}

func writeIndex(t *testing.T, file string, index v1.ImageIndex) {
	t.Helper()
	dir := t.TempDir()
	if _, err := layout.Write(dir, index); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "-c", "-f", file, "-C", dir, ".").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
}

func TestEnsureImageRegistry(t *testing.T) {
	address := daemon(t)
	var down bool
	reg := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if down {
			t.Errorf("%s %s asked although the image is there", r.Method, r.URL)
		}
		reg.ServeHTTP(w, r)
	}))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	owner := "image-" + rand.Text()
	e := open(t, containerd.Options{Address: address, Owner: owner})

	for _, tc := range []struct {
		name string
		push func(t *testing.T, ref name.Reference, img v1.Image) error
	}{
		{"one platform", func(_ *testing.T, ref name.Reference, img v1.Image) error { return remote.Write(ref, img) }},
		{"several platforms", func(t *testing.T, ref name.Reference, img v1.Image) error {
			return remote.WriteIndex(ref, manyPlatforms(t, img))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			img, fresh := freshImage(t)
			ref := host + "/cargo/" + strings.ToLower(rand.Text()) + ":1"
			if err := tc.push(t, reference(t, ref), img); err != nil {
				t.Fatal(err)
			}
			got, err := e.EnsureImage(t.Context(), ref, nil)
			if err != nil {
				t.Fatal(err)
			}
			down = true
			defer func() { down = false }()
			checkImage(t, e, ref, got, configOf(t, img), fresh)
		})
	}

	t.Run("missing", func(t *testing.T) {
		if _, err := e.EnsureImage(t.Context(), host+"/cargo/missing:1", nil); !errors.Is(err, executor.ErrNoImage) {
			t.Errorf("EnsureImage = %v, want %v", err, executor.ErrNoImage)
		}
	})
	t.Run("for another platform", func(t *testing.T) {
		img, _ := foreignImage(t)
		ref := host + "/cargo/foreign:1"
		if err := remote.Write(reference(t, ref), img); err != nil {
			t.Fatal(err)
		}
		if _, err := e.EnsureImage(t.Context(), ref, nil); err == nil || !strings.Contains(err.Error(), "not for this host") {
			t.Errorf("EnsureImage = %v", err)
		}
		forget(t, ref)
	})
	t.Run("registry away", func(t *testing.T) {
		gone := httptest.NewServer(nil)
		gone.Close()
		busy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "busy", http.StatusServiceUnavailable)
		}))
		defer busy.Close()
		for _, url := range []string{gone.URL, busy.URL} {
			ref := strings.TrimPrefix(url, "http://") + "/cargo/builder:1"
			if _, err := e.EnsureImage(t.Context(), ref, nil); err == nil || errors.Is(err, executor.ErrUnavailable) || !strings.Contains(err.Error(), ref) {
				t.Errorf("EnsureImage = %v, want an error about %s", err, ref)
			}
		}
	})
	if left := leftovers(t, address, filepath.Dir(address), owner); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestEnsureImageRefused(t *testing.T) {
	e := open(t, containerd.Options{})
	dir := t.TempDir()
	file := func(name string, entries ...string) string {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		w := tar.NewWriter(f)
		for i := 0; i < len(entries); i += 2 {
			if err := w.WriteHeader(&tar.Header{Name: entries[i], Size: int64(len(entries[i+1])), Mode: 0o644}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte(entries[i+1])); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return f.Name()
	}
	text := filepath.Join(dir, "text.tar")
	if err := os.WriteFile(text, []byte("not a tar"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, ref, want string }{
		{"no such file", filepath.Join(dir, "missing.tar"), "no such file"},
		{"not a reference", "Not A Reference", "neither a file nor a reference"},
		{"not a tar", text, text},
		{"empty", file("empty.tar"), "neither manifest.json"},
		{"two images", file("two.tar", "manifest.json", `[{"Config":"a"},{"Config":"b"}]`), "2 images"},
		{"no configuration", file("none.tar", "manifest.json", `[{"Config":"a"}]`), "a is missing"},
		{"nested for ever", file("deep.tar", "index.json", loop, "blobs/sha256/x", loop), "nested too deeply"},
		{"not JSON", file("bad.tar", "index.json", "{"), "index.json"},
		{"no image for us", file("foreign.tar", "index.json", `{"manifests":[{"digest":"sha256:x","platform":{"os":"plan9","architecture":"amd64"}}]}`), "0 images for this platform"},
	} {
		if _, err := e.EnsureImage(t.Context(), tc.ref, nil); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: EnsureImage = %v, want %q", tc.name, err, tc.want)
		}
	}
}

const loop = `{"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:x"}]}`
