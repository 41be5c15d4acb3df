package containerd

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Bounds of what an archive may make us read.
const (
	maxArchiveEntries = 100_000
	maxArchiveJSON    = 4 << 20 // bytes of one index, manifest or configuration
	maxIndexDepth     = 4
)

// configDigest returns the digest of the configuration of the only image for
// the platform in a docker-save archive or an OCI layout in a tar. It reads
// headers and JSON, and skips the layers.
func configDigest(file string, platform platforms.MatchComparer) (digest.Digest, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	a, err := openArchive(f)
	if err != nil {
		return "", err
	}
	return a.config(platform)
}

// An archive finds the files of a tar by their names.
type archive struct {
	file  io.ReaderAt
	files map[string]span
}

type span struct{ offset, size int64 }

// openArchive reads the headers of a tar. f must stay open.
func openArchive(f interface {
	io.ReadSeeker
	io.ReaderAt
}) (*archive, error) {
	a := &archive{file: f, files: make(map[string]span)}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return a, nil
		}
		if err != nil {
			return nil, err
		}
		if len(a.files) == maxArchiveEntries {
			return nil, fmt.Errorf("more than %d files", maxArchiveEntries)
		}
		// The tar reader reads no further than the header, and seeks past the content.
		offset, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeReg {
			a.files[path.Clean(h.Name)] = span{offset, h.Size}
		}
	}
}

func (a *archive) config(platform platforms.MatchComparer) (digest.Digest, error) {
	if a.has("index.json") { // newer Dockers write both: containerd takes the layout, too
		return a.fromIndex("index.json", platform, maxIndexDepth)
	}
	if a.has("manifest.json") {
		return a.fromDockerManifest()
	}
	return "", errors.New("neither manifest.json (docker save) nor index.json (OCI layout) is in it")
}

func (a *archive) has(name string) bool {
	_, ok := a.files[name]
	return ok
}

func (a *archive) read(name string) ([]byte, error) {
	s, ok := a.files[path.Clean(name)]
	if !ok {
		return nil, fmt.Errorf("%s is missing", name)
	}
	if s.size > maxArchiveJSON {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", name, s.size, maxArchiveJSON)
	}
	b := make([]byte, s.size)
	_, err := io.ReadFull(io.NewSectionReader(a.file, s.offset, s.size), b)
	return b, err
}

func (a *archive) decode(name string, v any) error {
	b, err := a.read(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (a *archive) fromDockerManifest() (digest.Digest, error) {
	var images []struct{ Config string }
	if err := a.decode("manifest.json", &images); err != nil {
		return "", err
	}
	if len(images) != 1 {
		return "", fmt.Errorf("%d images are in it, want one", len(images))
	}
	config, err := a.read(images[0].Config)
	if err != nil {
		return "", err
	}
	return digest.FromBytes(config), nil
}

func (a *archive) fromIndex(name string, platform platforms.MatchComparer, depth int) (digest.Digest, error) {
	if depth == 0 {
		return "", errors.New("indexes are nested too deeply")
	}
	var index ocispec.Index
	if err := a.decode(name, &index); err != nil {
		return "", err
	}
	fits := slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool {
		return d.Platform != nil && !platform.Match(*d.Platform)
	})
	better := func(a, b ocispec.Descriptor) bool {
		return a.Platform != nil && b.Platform != nil && platform.Less(*a.Platform, *b.Platform)
	}
	slices.SortStableFunc(fits, func(a, b ocispec.Descriptor) int {
		switch {
		case better(a, b):
			return -1
		case better(b, a):
			return 1
		}
		return 0
	})
	if len(fits) == 0 || len(fits) > 1 && !better(fits[0], fits[1]) {
		return "", fmt.Errorf("%d images for this platform are in it, want one", len(fits))
	}
	best := fits[0]
	if images.IsIndexType(best.MediaType) {
		return a.fromIndex(blob(best.Digest), platform, depth-1)
	}
	var manifest ocispec.Manifest
	if err := a.decode(blob(best.Digest), &manifest); err != nil {
		return "", err
	}
	config, err := a.read(blob(manifest.Config.Digest))
	if err != nil {
		return "", err
	}
	return digest.FromBytes(config), nil
}

// blob is where an OCI layout keeps what has digest d.
func blob(d digest.Digest) string {
	algorithm, hex, _ := strings.Cut(d.String(), ":")
	return path.Join("blobs", algorithm, hex)
}
