package artifacttest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
)

// A run is one subtest at work.
type run struct {
	*testing.T
	Harness
}

// Key is the key of a build of a version.
func Key(version string) build.Key {
	return build.Key{
		Target: build.Target{
			Repository: build.Repository{Remote: "git.local", Owner: "o", Name: "app"},
			GOOS:       "linux", GOARCH: "amd64", Version: version,
		},
		Commit: strings.Repeat("c", 40), Image: "sha256:1",
	}
}

// Content writes text as an archive.
func Content(text string) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	}
}

// Random is the content of an archive that no compressor and no luck makes again.
func Random(seed uint64, size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b) // never fails
	return b
}

// meta is that of an attempt of a build of version, with everything in it.
func meta(version string, id build.ID, attempt int) artifact.Meta {
	at := func(s int64) time.Time { return time.Unix(1_700_000_000+s, 5_000).UTC() }
	return artifact.Meta{
		Key: Key(version), Public: true, CommitTime: at(0), BuildID: id, CreatedAt: at(4),
		RefName: "refs/tags/" + version, AcceptedAt: at(1), StartedAt: at(2), Executor: "docker", Attempt: attempt,
	}
}

func (r *run) put(m artifact.Meta, text string) artifact.Meta {
	r.Helper()
	m, err := r.Store.Put(r.Context(), m, artifact.PutOptions{}, Content(text))
	if err != nil {
		r.Fatal(err)
	}
	return m
}

func (r *run) lookup(version string) artifact.Meta {
	r.Helper()
	m, err := r.Store.Lookup(r.Context(), Key(version).Slot())
	if err != nil {
		r.Fatal(err)
	}
	return m
}

// holds checks that the slot of version holds text whole.
func (r *run) holds(version, text string) {
	r.Helper()
	m := r.lookup(version)
	if got := r.read(m); got != text {
		r.Errorf("the slot of %s holds %q, want %q", version, clip(got), clip(text))
	}
	if err := r.Store.Verify(r.Context(), m); err != nil {
		r.Error(err)
	}
}

func (r *run) read(m artifact.Meta) string {
	r.Helper()
	f, err := r.Store.Open(r.Context(), m)
	if err != nil {
		r.Fatal(err)
	}
	return r.drain(f)
}

func (r *run) drain(f io.ReadCloser) string {
	r.Helper()
	b, err := io.ReadAll(f)
	if err := errors.Join(err, f.Close()); err != nil {
		r.Fatal(err)
	}
	return string(b)
}

// missing checks that err is ErrNotFound, and whether it is ErrCorrupt, whose text
// does not say that there is nothing.
func (r *run) missing(what string, err error, corrupt bool) {
	r.Helper()
	if !errors.Is(err, artifact.ErrNotFound) || errors.Is(err, artifact.ErrCorrupt) != corrupt || errors.Is(err, artifact.ErrUnavailable) {
		r.Errorf("%s = %v, want ErrNotFound, with ErrCorrupt: %v", what, err, corrupt)
	}
	if corrupt && strings.Contains(err.Error(), artifact.ErrNotFound.Error()) {
		r.Errorf("%s says two things at once: %v", what, err)
	}
}

func (r *run) equal(what string, want, got any) {
	r.Helper()
	if d := cmp.Diff(want, got); d != "" {
		r.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func (r *run) putLog(id build.ID, attempt int, text string) error {
	return r.Store.PutLog(r.Context(), id, attempt, strings.NewReader(text), int64(len(text)))
}

// log is what is stored of the log of a build, "-" for nothing.
func (r *run) log(id build.ID) string {
	r.Helper()
	f, size, err := r.Store.OpenLog(r.Context(), id)
	if errors.Is(err, artifact.ErrNotFound) && !errors.Is(err, artifact.ErrCorrupt) {
		return "-"
	}
	if err != nil {
		r.Fatal(err)
	}
	text := r.drain(f)
	if size != int64(len(text)) {
		r.Errorf("OpenLog says %d bytes, and there are %d", size, len(text))
	}
	return text
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

func clip(s string) string {
	const most = 60
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// A torn reader ends after its text with an error.
type torn struct {
	*bytes.Reader
	err error
}

func (r torn) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.Reader.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		err = r.err
	}
	return n, err
}
