package docker

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxJSON bounds each JSON document of an archive, in bytes.
const maxJSON = 4 << 20

// maxIndexDepth bounds how deep indexes of an OCI archive may be nested.
const maxIndexDepth = 4

// The documents of an archive that say what it holds. manifest.json and
// repositories are those of docker save, the others those of the OCI image
// layout, and an archive may have both.
const (
	fileManifest     = "manifest.json"
	fileRepositories = "repositories"
	fileIndex        = ocispec.ImageIndexFile
	fileLayout       = ocispec.ImageLayoutFile
)

// A manifest is one image of a manifest.json; the paths are those of the archive.
type manifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// An archive is an image in a file: a docker-save archive or a tar of an OCI
// image layout. Its owner closes it.
type archive struct {
	*os.File
	path     string
	size     int64  // bytes
	digest   string // of the image's configuration
	manifest manifest
}

func openArchive(name string) (_ *archive, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	a := &archive{File: f, path: name, size: info.Size()}
	a.manifest, a.digest, err = readManifest(f)
	if err != nil {
		return nil, err
	}
	return a, nil
}

// writeTo writes the archive as docker load of every version takes it, with
// tag as its only name. It tells progress the bytes written so far.
func (a *archive) writeTo(w io.Writer, tag string, progress func(int64)) error {
	if _, err := a.Seek(0, io.SeekStart); err != nil {
		return err
	}
	m := a.manifest
	m.RepoTags = []string{tag}
	doc, err := json.Marshal([]manifest{m})
	if err != nil {
		return err
	}
	counted := &counter{w: w, progress: progress}
	tw := tar.NewWriter(counted)
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fileManifest, Mode: 0o644, Size: int64(len(doc))}); err != nil {
		return err
	}
	if _, err := tw.Write(doc); err != nil {
		return err
	}
	for tr := tar.NewReader(a.File); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return tw.Close()
		}
		if err != nil {
			return err
		}
		if slices.Contains([]string{fileManifest, fileRepositories, fileIndex, fileLayout}, path.Clean(h.Name)) {
			continue
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(tw, tr); err != nil { //nolint:gosec // the operator's own archive, and it is not unpacked
			return err
		}
	}
}

type counter struct {
	w        io.Writer
	n        int64
	progress func(int64)
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	c.progress(c.n)
	return n, err
}

// readManifest finds the only image for this machine's platform in a tar.
func readManifest(r io.ReadSeeker) (manifest, string, error) {
	m, err := dockerManifest(r)
	if errors.Is(err, errNoEntry) {
		m, err = ociManifest(r)
	}
	if errors.Is(err, errNoEntry) || errors.Is(err, tar.ErrHeader) {
		return manifest{}, "", fmt.Errorf("neither a docker-save nor an OCI archive: %w", err)
	}
	if err != nil {
		return manifest{}, "", err
	}
	config, err := entry(r, m.Config)
	if err != nil {
		return manifest{}, "", err
	}
	var platform ocispec.Platform
	if err := json.Unmarshal(config, &platform); err != nil {
		return manifest{}, "", fmt.Errorf("%s: %w", m.Config, err)
	}
	if !matches(platform) {
		return manifest{}, "", fmt.Errorf("the image is for %s/%s, not for linux/%s", platform.OS, platform.Architecture, runtime.GOARCH)
	}
	return m, digestOf(config), nil
}

func dockerManifest(r io.ReadSeeker) (manifest, error) {
	doc, err := entry(r, fileManifest)
	if err != nil {
		return manifest{}, err
	}
	var images []manifest
	if err := json.Unmarshal(doc, &images); err != nil {
		return manifest{}, fmt.Errorf("%s: %w", fileManifest, err)
	}
	if len(images) != 1 {
		return manifest{}, fmt.Errorf("the archive holds %d images, want one", len(images))
	}
	return images[0], nil
}

func ociManifest(r io.ReadSeeker) (manifest, error) {
	doc, err := entry(r, fileIndex)
	if err != nil {
		return manifest{}, err
	}
	for range maxIndexDepth {
		var index ocispec.Index
		if err := json.Unmarshal(doc, &index); err != nil {
			return manifest{}, fmt.Errorf("image index: %w", err)
		}
		d, err := choose(index.Manifests)
		if err != nil {
			return manifest{}, err
		}
		name, err := blobPath(d)
		if err != nil {
			return manifest{}, err
		}
		if doc, err = entry(r, name); err != nil {
			return manifest{}, err
		}
		if got := digestOf(doc); got != d.Digest.String() {
			return manifest{}, fmt.Errorf("%s has the digest %s", name, got)
		}
		if d.MediaType != ocispec.MediaTypeImageIndex && d.MediaType != mediaTypeDockerList {
			return fromOCI(doc)
		}
	}
	return manifest{}, fmt.Errorf("image indexes are nested deeper than %d levels", maxIndexDepth)
}

const mediaTypeDockerList = "application/vnd.docker.distribution.manifest.list.v2+json"

// choose returns the descriptor for this machine's platform. One without a
// platform is for any.
func choose(list []ocispec.Descriptor) (ocispec.Descriptor, error) {
	i := slices.IndexFunc(list, func(d ocispec.Descriptor) bool { return d.Platform != nil && matches(*d.Platform) })
	if i < 0 {
		i = slices.IndexFunc(list, func(d ocispec.Descriptor) bool { return d.Platform == nil })
	}
	if i < 0 {
		return ocispec.Descriptor{}, fmt.Errorf("the archive holds no image for linux/%s", runtime.GOARCH)
	}
	return list[i], nil
}

func matches(p ocispec.Platform) bool { return p.OS == "linux" && p.Architecture == runtime.GOARCH }

func fromOCI(doc []byte) (manifest, error) {
	var oci ocispec.Manifest
	if err := json.Unmarshal(doc, &oci); err != nil {
		return manifest{}, fmt.Errorf("image manifest: %w", err)
	}
	var m manifest
	var err error
	if m.Config, err = blobPath(oci.Config); err != nil {
		return manifest{}, err
	}
	for _, l := range oci.Layers {
		name, err := blobPath(l)
		if err != nil {
			return manifest{}, err
		}
		m.Layers = append(m.Layers, name)
	}
	return m, nil
}

func blobPath(d ocispec.Descriptor) (string, error) {
	if err := d.Digest.Validate(); err != nil {
		return "", fmt.Errorf("digest %q: %w", d.Digest, err)
	}
	return path.Join(ocispec.ImageBlobsDir, d.Digest.Algorithm().String(), d.Digest.Encoded()), nil
}

var errNoEntry = errors.New("no such entry in the archive")

// entry returns the content of the file name of a tar.
func entry(r io.ReadSeeker, name string) ([]byte, error) {
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%w: %s", errNoEntry, name)
		}
		if err != nil {
			return nil, err
		}
		if path.Clean(h.Name) != name || h.Typeflag != tar.TypeReg {
			continue
		}
		if h.Size > maxJSON {
			return nil, fmt.Errorf("%s is larger than %d bytes", name, maxJSON)
		}
		return io.ReadAll(tr)
	}
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}
