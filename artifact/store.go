package artifact

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/monochromegane/cargo/build"
)

// A Store keeps archives in a directory: blobs/<sha256> holds each content
// once, meta/<slot>.json says which one is the newest of a slot, and when it
// was last used: that is the file's time.
//
// Its methods are safe for concurrent use, by several processes too, which
// take turns by the file lock. A process that dies leaves at most a temporary
// file and a blob that no slot names; the next Open removes both.
type Store struct {
	blobs, meta, lock string
	limit             int64
	log               *slog.Logger
	bytes             atomic.Int64

	mu    sync.Mutex // guards what follows; taken before the lock file
	index index
	word  string // what this process wrote into the lock file last; "" if index is not to be trusted
}

// Options are the settings of a Store. The zero value works.
type Options struct {
	// Limit is how many bytes of the disk the archives and records may take
	// together before the least recently used go; 0 means any number. What is
	// being written does not count yet.
	Limit int64
	// Log is told when what should go cannot be removed; nil discards it.
	Log *slog.Logger
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
	metaSuffix    = ".json"
)

// Open opens the store in dir, which it makes if it is not there, and removes
// what is too much: temporary files of processes that died, blobs that no slot
// names, and the least recently used artifacts beyond the limit.
func Open(dir string, o Options) (*Store, error) {
	s := &Store{
		blobs: filepath.Join(dir, "blobs"),
		meta:  filepath.Join(dir, "meta"),
		lock:  filepath.Join(dir, "lock"),
		limit: o.Limit,
		log:   cmp.Or(o.Log, slog.New(slog.DiscardHandler)),
	}
	for _, d := range []string{s.blobs, s.meta} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("open artifact store: %w", err)
		}
		if err := sweep(d); err != nil {
			return nil, fmt.Errorf("open artifact store: %w", err)
		}
	}
	err := s.exclusively(func() error { return s.trim("") })
	if err := errors.Join(err, syncDir(dir), syncDir(filepath.Dir(dir))); err != nil {
		return nil, fmt.Errorf("open artifact store: %w", err)
	}
	return s, nil
}

// Bytes is how much of the disk the archives and records take together, in
// blocks of 4 KiB, as of the last change that this process made.
func (s *Store) Bytes() int64 { return s.bytes.Load() }

// Put stores what write writes as the newest artifact of m's slot, in place of
// what was there, and returns m with Artifact filled in, and CreatedAt where
// it was zero. When it returns, the artifact survives a power failure.
//
// More than limit bytes (0 means DefaultLimit) are ErrTooLarge. After an error
// the slot is what it was. If two Puts of a slot race, the last one wins.
// What was used least recently goes until the store is within Options.Limit;
// this artifact stays, even if it is larger than that by itself.
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
	meta, err := createTemp(s.meta)
	if err != nil {
		return m, err
	}
	defer meta.discard()
	if _, err := meta.Write(append(text, '\n')); err != nil {
		return m, err
	}
	if err := errors.Join(blob.Sync(), meta.Sync()); err != nil {
		return m, err
	}
	return m, s.enter(ctx, m, blob, meta, int64(len(text)+1))
}

// enter gives both files of an artifact their names, and makes room for it.
func (s *Store) enter(ctx context.Context, m Meta, blob, meta *tempFile, size int64) error {
	slot, full := m.Key.Slot(), false
	err := s.exclusively(func() error { // or the blob could be removed before a record names it
		if err := context.Cause(ctx); err != nil {
			return err // the last chance: syncing and waiting may have taken a while
		}
		if err := blob.place(m.Artifact.SHA256); err != nil {
			return err
		}
		if err := meta.place(slot + metaSuffix); err != nil {
			return err
		}
		s.index.note(holding{slot: slot, sum: m.Artifact.SHA256, size: onDisk(size), used: time.Now()}, onDisk(m.Artifact.Size))
		full = s.excessive() || len(s.index.unused) > 0
		return nil
	})
	if err == nil {
		err = errors.Join(syncDir(s.blobs), syncDir(s.meta))
	}
	if err != nil || !full {
		return err
	}
	// Not before the new artifact is safe.
	if err := s.exclusively(func() error { return s.trim(slot) }); err != nil {
		s.log.Error("the artifact store may stay over --storage-limit", "bytes", s.Bytes(), "limit", s.limit, "err", err)
	}
	return nil
}

// record is the path of a slot's file.
func (s *Store) record(slot string) string { return filepath.Join(s.meta, slot+metaSuffix) }

// Lookup returns what the slot, a [build.Key.Slot], holds. The error wraps
// ErrNotFound if that is nothing, and ErrCorrupt as well if what is there
// cannot be served. It does not read the archive: only its size is checked.
func (s *Store) Lookup(slot string) (Meta, error) {
	if !isDigest(slot) {
		return Meta{}, fmt.Errorf("%w: %q is not a slot", ErrNotFound, slot)
	}
	const attempts = 3 // the slot may be replaced between the record and the blob
	var m Meta
	var err error
	for range attempts {
		if m, err = s.lookup(slot); !errors.Is(err, errGone) {
			break
		}
	}
	return m, err
}

func (s *Store) lookup(slot string) (Meta, error) {
	r, err := readRecord(s.record(slot))
	if errors.Is(err, fs.ErrNotExist) {
		return Meta{}, fmt.Errorf("%w: slot %s", ErrNotFound, slot)
	}
	if err != nil {
		return Meta{}, fmt.Errorf("look up artifact in slot %s: %w", slot, err)
	}
	if r.Version != recordVersion || r.Key.Slot() != slot || !isDigest(r.Artifact.SHA256) {
		return Meta{}, corrupt("slot %s holds a record that is not its own", slot)
	}
	f, err := s.open(r.Meta)
	if err != nil {
		return Meta{}, err
	}
	return r.Meta, f.Close()
}

// errGone is for an artifact that was there a moment ago.
var errGone = fmt.Errorf("%w: it has been replaced or evicted", ErrNotFound)

// File opens the archive of a Meta that Lookup or Put returned; the caller
// closes it. It stays readable when the slot is replaced or evicted; what was
// so before is ErrNotFound. The errors are those of Lookup. It is for those who
// use the artifact: it goes to the end of the queue of what is to be evicted.
func (s *Store) File(m Meta) (*os.File, error) {
	f, err := s.open(m)
	if err == nil {
		s.touch(m.Key.Slot())
	}
	return f, err
}

// touch sets the time of last use, an hour being near enough. If that fails,
// the artifact counts as used before, which is no reason to refuse it.
func (s *Store) touch(slot string) {
	const coarse = time.Hour
	info, err := os.Stat(s.record(slot))
	if now := time.Now(); err == nil && now.Sub(info.ModTime()).Abs() >= coarse {
		_ = os.Chtimes(s.record(slot), now, now)
	}
}

func (s *Store) open(m Meta) (*os.File, error) {
	sum := m.Artifact.SHA256
	if !isDigest(sum) {
		return nil, fmt.Errorf("%w: %q is not a SHA-256", ErrNotFound, sum)
	}
	name := filepath.Join(s.blobs, sum)
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		if r, err := readRecord(s.record(m.Key.Slot())); err != nil || r.Artifact.SHA256 != sum {
			return nil, errGone
		}
		f, err = os.Open(name) // it may have been stored again in between
	}
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
