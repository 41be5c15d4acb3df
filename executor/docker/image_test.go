package docker_test

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/moby/moby/client"

	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/docker"
	"github.com/monochromegane/cargo/executor/executortest"
)

func TestPull(t *testing.T) {
	requireDocker(t)
	e := newExecutor(t, docker.Options{Owner: owner()})
	img := uniqueImage(t)
	other, err := mutate.ConfigFile(img, platform(t, img, "s390x"))
	if err != nil {
		t.Fatal(err)
	}
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
		mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}})
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	host := strings.TrimPrefix(server.URL, "http://")
	ref := host + "/builder:1"
	tag, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(tag, index); err != nil {
		t.Fatal(err)
	}
	want, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}

	var said []string
	got, err := e.EnsureImage(t.Context(), ref, func(msg string, _ ...any) { said = append(said, msg) })
	forget(t, ref, got)
	if err != nil {
		t.Fatal(err)
	}
	if got.Digest != want.String() {
		t.Errorf("Digest = %s, want that of the configuration for this platform, %s", got.Digest, want)
	}
	if !slices.Contains(said, "pulled image") {
		t.Errorf("progress = %q", said)
	}
	if err := e.Run(t.Context(), executor.Step{ID: "pulled", Image: got.Ref, Args: []string{"true"}}); err != nil {
		t.Errorf("Run of the pulled image: %v", err)
	}

	server.Close() // what is there is not pulled again
	said = nil
	again, err := e.EnsureImage(t.Context(), ref, func(msg string, _ ...any) { said = append(said, msg) })
	if err != nil || again != got || len(said) > 0 {
		t.Errorf("EnsureImage again = %v, %v, said %q, want %v and silence", again, err, said, got)
	}
}

func TestPullErrors(t *testing.T) {
	requireDocker(t)
	e := newExecutor(t, docker.Options{Owner: owner()})
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	host := strings.TrimPrefix(server.URL, "http://")
	if _, err := e.EnsureImage(t.Context(), host+"/none:1", nil); !errors.Is(err, executor.ErrNoImage) {
		t.Errorf("not in the registry: %v, want ErrNoImage", err)
	}
	server.Close()
	if _, err := e.EnsureImage(t.Context(), host+"/none:1", nil); err == nil || !strings.Contains(err.Error(), host) {
		t.Errorf("no registry: %v, want an error that names it", err)
	}
	if _, err := e.EnsureImage(t.Context(), "not a reference", nil); err == nil {
		t.Error("not a reference: no error")
	}
}

func TestLoad(t *testing.T) {
	requireDocker(t)
	for _, tc := range []struct {
		name  string
		write func(t *testing.T, file string, img v1.Image)
	}{
		{"docker-save", writeDockerArchive},
		{"OCI", writeOCIArchive},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newExecutor(t, docker.Options{Owner: owner()})
			img := uniqueImage(t)
			file := filepath.Join(t.TempDir(), "image.tar")
			tc.write(t, file, img)
			want, err := img.ConfigName()
			if err != nil {
				t.Fatal(err)
			}
			var said []string
			progress := func(msg string, _ ...any) { said = append(said, msg) }
			got, err := e.EnsureImage(t.Context(), file, progress)
			forget(t, "", got)
			if err != nil {
				t.Fatal(err)
			}
			if got.Digest != want.String() {
				t.Errorf("Digest = %s, want %s", got.Digest, want)
			}
			if !slices.Contains(said, "loaded image") {
				t.Errorf("progress = %q", said)
			}
			if err := e.Run(t.Context(), executor.Step{ID: "loaded", Image: got.Ref, Args: []string{"true"}}); err != nil {
				t.Errorf("Run of the loaded image: %v", err)
			}
			said = nil
			again, err := e.EnsureImage(t.Context(), file, progress)
			if err != nil || again != got || len(said) > 0 {
				t.Errorf("EnsureImage again = %v, %v, said %q, want %v and silence", again, err, said, got)
			}
		})
	}
}

// An image that is in use here but that nobody has named is what `docker image
// prune` removes.
func TestLoadedImageIsHeld(t *testing.T) {
	requireDocker(t)
	e := newExecutor(t, docker.Options{Owner: owner()})
	file := filepath.Join(t.TempDir(), "image.tar")
	writeDockerArchive(t, file, uniqueImage(t))
	img, err := e.EnsureImage(t.Context(), file, nil)
	if err != nil {
		t.Fatal(err)
	}
	in, err := rawClient(t).ImageInspect(t.Context(), img.Ref)
	if err != nil {
		t.Fatal(err)
	}
	want := "localhost/cargo/image:" + strings.ReplaceAll(img.Digest, ":", "-")
	if !slices.Equal(in.RepoTags, []string{want}) {
		t.Errorf("RepoTags = %q, want %q", in.RepoTags, want)
	}
	remove(t, img.Ref)
	err = e.Run(t.Context(), executor.Step{ID: "removed", Image: img.Ref, Args: []string{"true"}})
	if !errors.Is(err, executor.ErrNoImage) {
		t.Errorf("Run of a removed image = %v, want ErrNoImage", err)
	}
}

func TestLoadErrors(t *testing.T) {
	e, err := docker.New(docker.Options{Owner: owner(), Host: "unix://" + filepath.Join(t.TempDir(), "none.sock")})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	dir := t.TempDir()
	config := `{"os":"linux","architecture":"` + runtime.GOARCH + `"}`
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"empty", nil, "neither a docker-save nor an OCI archive"},
		{"other-platform", map[string]string{"manifest.json": `[{"Config":"c.json"}]`, "c.json": `{"os":"linux","architecture":"pdp11"}`}, "pdp11"},
		{"two-images", map[string]string{"manifest.json": `[{"Config":"c.json"},{"Config":"c.json"}]`, "c.json": config}, "holds 2 images"},
		{"no-config", map[string]string{"manifest.json": `[{"Config":"c.json"}]`}, "c.json"},
		{"not-json", map[string]string{"manifest.json": `[`}, "manifest.json"},
		{"oci-other-platform", map[string]string{"index.json": `{"manifests":[{"digest":"sha256:00","platform":{"os":"linux","architecture":"pdp11"}}]}`}, "no image for linux/"},
		{"oci-bad-digest", map[string]string{"index.json": `{"manifests":[{"digest":"sha256:../../x"}]}`}, "digest"},
		{"oci-wrong-content", map[string]string{
			"index.json": `{"manifests":[{"digest":"sha256:` + strings.Repeat("0", 64) + `"}]}`,
			"blobs/sha256/" + strings.Repeat("0", 64): `{}`,
		}, "has the digest"},
		{"large", map[string]string{"manifest.json": strings.Repeat(" ", 5<<20)}, "larger"},
	} {
		file := filepath.Join(dir, tc.name+".tar")
		writeTar(t, file, tc.files)
		if _, err := e.EnsureImage(t.Context(), file, nil); err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v, want an error with %q and the path", tc.name, err, tc.want)
		}
	}
	if _, err := e.EnsureImage(t.Context(), filepath.Join(dir, "none.tar"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such file: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "text"), []byte("no tar"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := e.EnsureImage(t.Context(), filepath.Join(dir, "text"), nil); err == nil {
		t.Error("not a tar: no error")
	}
}

func FuzzReadManifest(f *testing.F) {
	f.Add(`[{"Config":"c"}]`, "", `{"os":"linux","architecture":"amd64"}`)
	f.Add("", `{"manifests":[{"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}]}`, "")
	f.Fuzz(func(t *testing.T, manifest, index, config string) {
		files := map[string]string{"c": config}
		if manifest != "" {
			files["manifest.json"] = manifest
		}
		if index != "" {
			files["index.json"] = index
		}
		file := filepath.Join(t.TempDir(), "image.tar")
		writeTar(t, file, files)
		digest, err := docker.ArchiveDigest(file)
		if (err == nil) != strings.HasPrefix(digest, "sha256:") {
			t.Errorf("digest %q, error %v", digest, err)
		}
	})
}

// owner is one that no other test has.
func owner() string { return "test-" + strings.ToLower(rand.Text()) }

// uniqueImage is the image of the suite with a configuration that the daemon
// has not seen yet.
func uniqueImage(t *testing.T) v1.Image {
	t.Helper()
	img := executortest.Image(t)
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.Author = rand.Text()
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	return img
}

func platform(t *testing.T, img v1.Image, arch string) *v1.ConfigFile {
	t.Helper()
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.Architecture = arch
	return cf
}

func writeDockerArchive(t *testing.T, file string, img v1.Image) {
	t.Helper()
	tag, err := name.ParseReference("example.test/not-to-be-taken:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(file, tag, img); err != nil {
		t.Fatal(err)
	}
}

func writeOCIArchive(t *testing.T, file string, img v1.Image) {
	t.Helper()
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func writeTar(t *testing.T, file string, files map[string]string) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// forget removes an image and its tags when the test has ended.
func forget(t *testing.T, tag string, img executor.Image) {
	t.Cleanup(func() {
		if tag != "" {
			remove(t, tag)
		}
		if img.Ref != "" {
			remove(t, img.Ref)
		}
	})
}

func remove(t *testing.T, image string) {
	t.Helper()
	c, err := client.New()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.ImageRemove(context.WithoutCancel(t.Context()), image, client.ImageRemoveOptions{Force: true}); err != nil {
		t.Errorf("remove image %s: %v", image, err)
	}
}
