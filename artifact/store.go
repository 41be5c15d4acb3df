package artifact

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/monochromegane/cargo/build"
)

// A Store keeps archives in a directory: blobs/<sha256> holds each content
// once, meta/<slot>.json says which one is the newest of a slot.
//
// Its methods are safe for concurrent use, by several processes too. A process
// that dies leaves at most a temporary file, which the next Open removes, and
// a blob that no slot names.
type Store struct {
	blobs, meta string
}

// Meta is what the store knows of the newest artifact of a slot.
type Meta struct {
	Key        build.Key      `json:"key"`
	Public     bool           `json:"public"`
	CommitTime time.Time      `json:"commit_time"`
	Artifact   build.Artifact `json:"artifact"`
	BuildID    build.ID       `json:"build_id"`
	CreatedAt  time.Time      `json:"created_at"`
}

// record is the form of meta/<slot>.json. Fields that it does not know are
// left alone by a reader; a change that such a reader would misunderstand
// needs another version.
type record struct {
	Version int `json:"version"`
	Meta
}

const (
	recordVersion = 1
	maxRecord     = 64 << 10 // bytes
)

// Open opens the store in dir, which it makes if it is not there, and removes
// the temporary files of processes that died.
func Open(dir string) (*Store, error) {
	s := &Store{blobs: filepath.Join(dir, "blobs"), meta: filepath.Join(dir, "meta")}
	for _, d := range []string{s.blobs, s.meta} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("open artifact store: %w", err)
		}
		if err := sweep(d); err != nil {
			return nil, fmt.Errorf("open artifact store: %w", err)
		}
	}
	if err := errors.Join(syncDir(dir), syncDir(filepath.Dir(dir))); err != nil {
		return nil, fmt.Errorf("open artifact store: %w", err)
	}
	return s, nil
}

// Put stores what write writes as the newest artifact of m's slot, in place of
// what was there, and returns m with Artifact filled in, and CreatedAt where
// it was zero. When it returns, the artifact survives a power failure.
//
// More than limit bytes (0 means DefaultLimit) are ErrTooLarge. After an error
// the slot is what it was. If two Puts of a slot race, the last one wins.
func (s *Store) Put(ctx context.Context, m Meta, limit int64, write func(io.Writer) error) (Meta, error) {
	if limit == 0 {
		limit = DefaultLimit
	}
	if m.CreatedAt.IsZero() {
		m.CreatedAt = time.Now().UTC()
	}
	m, err := s.put(ctx, m, limit, write)
	if err != nil {
		return Meta{}, fmt.Errorf("store artifact of %s for %s: %w", m.Key.Repository, m.Key.Platform(), err)
	}
	return m, nil
}

func (s *Store) put(ctx context.Context, m Meta, limit int64, write func(io.Writer) error) (Meta, error) {
	blob, err := createTemp(s.blobs)
	if err != nil {
		return m, err
	}
	defer blob.discard()
	counted := &limitedWriter{ctx: ctx, w: blob, sum: sha256.New(), limit: limit}
	err = write(counted)
	if counted.err != nil {
		return m, counted.err // whatever write made of it
	}
	if err != nil {
		return m, err
	}
	m.Artifact = build.Artifact{
		Name:   m.Key.ArchiveName(),
		Size:   counted.size,
		SHA256: hex.EncodeToString(counted.sum.Sum(nil)),
	}
	text, err := json.MarshalIndent(record{recordVersion, m}, "", "\t")
	if err != nil {
		return m, err
	}
	if err := context.Cause(ctx); err != nil {
		return m, err // from here on it is a matter of milliseconds
	}
	if err := blob.commit(m.Artifact.SHA256); err != nil {
		return m, err
	}
	meta, err := createTemp(s.meta)
	if err != nil {
		return m, err
	}
	defer meta.discard()
	if _, err := meta.Write(append(text, '\n')); err != nil {
		return m, err
	}
	return m, meta.commit(m.Key.Slot() + ".json")
}

// Lookup returns what the slot, a [build.Key.Slot], holds. The error wraps
// ErrNotFound if that is nothing, and ErrCorrupt as well if what is there
// cannot be served. It does not read the archive: only its size is checked.
func (s *Store) Lookup(slot string) (Meta, error) {
	if !isDigest(slot) {
		return Meta{}, fmt.Errorf("%w: %q is not a slot", ErrNotFound, slot)
	}
	r, err := readRecord(filepath.Join(s.meta, slot+".json"))
	if errors.Is(err, fs.ErrNotExist) {
		return Meta{}, fmt.Errorf("%w: slot %s", ErrNotFound, slot)
	}
	if err != nil {
		return Meta{}, fmt.Errorf("look up artifact in slot %s: %w", slot, err)
	}
	if r.Version != recordVersion || r.Key.Slot() != slot || !isDigest(r.Artifact.SHA256) {
		return Meta{}, corrupt("slot %s holds a record that is not its own", slot)
	}
	f, err := s.File(r.Meta)
	if err != nil {
		return Meta{}, err
	}
	return r.Meta, f.Close()
}

// File opens the archive of a Meta that Lookup or Put returned; the caller
// closes it. It stays readable when the slot is replaced. The errors are those
// of Lookup.
func (s *Store) File(m Meta) (*os.File, error) {
	sum := m.Artifact.SHA256
	if !isDigest(sum) {
		return nil, fmt.Errorf("%w: %q is not a SHA-256", ErrNotFound, sum)
	}
	f, err := os.Open(filepath.Join(s.blobs, sum))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, corrupt("blob %s is missing", sum)
	}
	if err != nil {
		return nil, fmt.Errorf("open artifact: %w", err)
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		err = fmt.Errorf("open artifact: %w", err)
	case !info.Mode().IsRegular() || info.Size() != m.Artifact.Size:
		err = corrupt("blob %s has %d bytes instead of %d", sum, info.Size(), m.Artifact.Size)
	default:
		return f, nil
	}
	f.Close()
	return nil, err
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %w: %s", ErrNotFound, ErrCorrupt, fmt.Sprintf(format, args...))
}

func readRecord(name string) (record, error) {
	f, err := os.Open(name)
	if err != nil {
		return record{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxRecord))
	if err != nil {
		return record{}, err
	}
	var r record
	if err := json.Unmarshal(text, &r); err != nil {
		return record{}, corrupt("%s: %v", filepath.Base(name), err)
	}
	return r, nil
}

// isDigest reports whether s is 64 lower-case hex digits, which also makes it
// a safe file name.
func isDigest(s string) bool {
	if len(s) != hex.EncodedLen(sha256.Size) {
		return false
	}
	for _, c := range s {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// A limitedWriter hashes and counts what it passes on; its first error stays.
type limitedWriter struct {
	ctx   context.Context
	w     io.Writer
	sum   hash.Hash
	size  int64
	limit int64
	err   error
}

func (w *limitedWriter) Write(p []byte) (int, error) {
	if w.err == nil {
		w.err = context.Cause(w.ctx)
	}
	if w.err == nil && int64(len(p)) > w.limit-w.size {
		w.err = fmt.Errorf("%w: the archive is over the %d bytes that --artifact-limit allows", ErrTooLarge, w.limit)
	}
	if w.err != nil {
		return 0, w.err
	}
	n, err := w.w.Write(p)
	w.sum.Write(p[:n])
	w.size += int64(n)
	w.err = err
	return n, err
}
