package artifact

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
)

// A Store keeps archives in a directory: blobs/<sha256> holds each content
// once, meta/<slot>.json says which one is the newest of a slot, and when it
// was last used: that is the file's time. logs/ has the logs of builds that have
// ended.
//
// Its methods are safe for concurrent use, by several processes too, which
// take turns by the file lock. A process that dies leaves at most a temporary
// file and a blob that no slot names; the next Open removes both.
type Store struct {
	blobs, meta, logs, lock string
	limit                   int64
	log                     *slog.Logger
	bytes                   atomic.Int64

	turn  chan struct{} // has room for one, who may use what follows; taken before the lock file
	index index
	word  string // what this process wrote into the lock file last; "" if index is not to be trusted
}

// Options are the settings of a Store. The zero value works.
type Options struct {
	// Limit is how many bytes of the disk the archives and records may take
	// together before the least recently used go; 0 means any number. What is
	// being written does not count yet.
	Limit int64
	// Keep has Open remove nothing, and no limit enforced: for a look at the
	// store of another process.
	Keep bool
	// Log is told when what should go cannot be removed; nil discards it.
	Log *slog.Logger
}

const metaSuffix = ".json"

// Open opens the store in dir, which it makes if it is not there, and removes
// what is too much: temporary files of processes that died, blobs that no slot
// names, and the least recently used artifacts beyond the limit.
func Open(dir string, o Options) (*Store, error) {
	s := &Store{
		blobs: filepath.Join(dir, "blobs"),
		meta:  filepath.Join(dir, "meta"),
		logs:  filepath.Join(dir, "logs"),
		lock:  filepath.Join(dir, "lock"),
		limit: o.Limit,
		log:   cmp.Or(o.Log, slog.New(slog.DiscardHandler)),
		turn:  make(chan struct{}, 1),
	}
	err := errors.Join(os.MkdirAll(s.blobs, 0o700), os.MkdirAll(s.meta, 0o700), os.MkdirAll(s.logs, 0o700))
	if o.Keep {
		s.limit = 0
	} else if err == nil {
		err = s.exclusively(context.Background(), func() error { return errors.Join(s.trim(""), sweep(s.logs)) })
	}
	if err := errors.Join(err, syncDir(dir), syncDir(filepath.Dir(dir))); err != nil {
		return nil, Unavailable(fmt.Errorf("open artifact store: %w", err))
	}
	return s, nil
}

// Bytes is how much of the disk the archives and records take together, in
// blocks of 4 KiB, as of the last change that this process made.
func (s *Store) Bytes() int64 { return s.bytes.Load() }

// record is the path of a slot's file.
func (s *Store) record(slot string) string { return filepath.Join(s.meta, slot+metaSuffix) }

// read returns the record of a slot, whatever it says. Without one, or where it
// makes no sense, the error is ErrNotFound.
func (s *Store) read(slot string) (record, error) {
	text, err := readBounded(s.record(slot))
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, fmt.Errorf("%w: slot %s", ErrNotFound, slot)
	}
	if err != nil {
		return record{}, Unavailable(fmt.Errorf("look up artifact in slot %s: %w", slot, err))
	}
	return parseRecord(slot, text)
}

func readBounded(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxRecord))
}

// Lookup returns what the slot, a [build.Key.Slot], holds. The error wraps
// ErrNotFound if that is nothing, and also ErrCorrupt if what is there
// cannot be served. It does not read the archive: only its size is checked.
func (s *Store) Lookup(ctx context.Context, slot string) (Meta, error) {
	if !IsDigest(slot) {
		return Meta{}, fmt.Errorf("%w: %q is not a slot", ErrNotFound, slot)
	}
	const attempts = 3 // the slot may be replaced between the record and the blob
	var m Meta
	var err error
	for range attempts {
		if err := context.Cause(ctx); err != nil {
			return Meta{}, err
		}
		if m, err = s.lookup(slot); !errors.Is(err, errGone) {
			break
		}
	}
	return m, err
}

func (s *Store) lookup(slot string) (Meta, error) {
	r, err := s.read(slot)
	if err != nil {
		return Meta{}, err
	}
	m, err := r.of(slot)
	if err != nil {
		return Meta{}, err
	}
	f, err := s.open(m)
	if err != nil {
		return Meta{}, err
	}
	return m, f.Close()
}

// errGone is for an artifact that was there a moment ago.
var errGone = fmt.Errorf("%w: it has been replaced or evicted", ErrNotFound)

// Open opens the archive of a Meta that Lookup or Put returned; the caller
// closes it. It is an [*os.File]. It stays readable when the slot is replaced or
// evicted; what was so before is ErrNotFound. The errors are those of Lookup. It
// is for those who use the artifact: it goes to the end of the queue of what is
// to be evicted.
func (s *Store) Open(ctx context.Context, m Meta) (io.ReadSeekCloser, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	f, err := s.open(m)
	if err != nil {
		return nil, err
	}
	s.touch(m.Key.Slot())
	return f, nil
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
	if !IsDigest(sum) {
		return nil, fmt.Errorf("%w: %q is not a SHA-256", ErrNotFound, sum)
	}
	name := filepath.Join(s.blobs, sum)
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		r, readErr := s.read(m.Key.Slot())
		if readErr != nil && !errors.Is(readErr, ErrNotFound) {
			return nil, readErr
		}
		if r.Artifact.SHA256 != sum {
			return nil, errGone
		}
		f, err = os.Open(name) // it may have been stored again in between
		if errors.Is(err, fs.ErrNotExist) {
			return nil, corrupt("blob %s is missing", sum)
		}
	}
	if err != nil {
		return nil, Unavailable(fmt.Errorf("open artifact: %w", err))
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		err = Unavailable(fmt.Errorf("open artifact: %w", err))
	case !info.Mode().IsRegular() || info.Size() != m.Artifact.Size:
		err = corrupt("blob %s has %d bytes instead of %d", sum, info.Size(), m.Artifact.Size)
	default:
		return f, nil
	}
	f.Close()
	return nil, err
}

// Verify reads the whole archive of a Meta that Lookup or Metas returned. The
// error is ErrCorrupt if it is not what was stored, and ErrNotFound alone if it has
// been replaced or evicted since.
func (s *Store) Verify(ctx context.Context, m Meta) error {
	f, err := s.open(m)
	if err != nil {
		return err
	}
	defer f.Close()
	return Unavailable(VerifyContent(ctx, f, m))
}
