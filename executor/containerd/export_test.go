package containerd

import (
	"bytes"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
)

// ConfigDigest is configDigest of an archive in memory.
func ConfigDigest(r *bytes.Reader) (digest.Digest, error) {
	a, err := openArchive(r)
	if err != nil {
		return "", err
	}
	return a.config(platforms.Default())
}
