package artifact

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/monochromegane/cargo/build"
)

const logSuffix = ".jsonl"

// logHead is the first line of a log's file; the log is what follows it. They
// are one file because no crash can come between the two then.
type logHead struct {
	Version int `json:"version"`
	Attempt int `json:"attempt"`
}

const maxLogHead = 128 // bytes

// PutLog keeps the log of an ended build: the first size bytes of r, which the
// caller bounds. It takes the place of the log of an earlier attempt, or of the
// same; where there is one of a later attempt the error is ErrSuperseded. After
// an error the log is what it was. Logs do not count towards Options.Limit.
func (s *Store) PutLog(ctx context.Context, id build.ID, attempt int, r io.ReaderAt, size int64) error {
	if !id.Valid() {
		return fmt.Errorf("store the log of a build: %q is no build id", id)
	}
	if err := s.putLog(ctx, id, attempt, r, size); err != nil {
		return Unavailable(fmt.Errorf("store the log of build %s: %w", id, err))
	}
	return nil
}

func (s *Store) putLog(ctx context.Context, id build.ID, attempt int, r io.ReaderAt, size int64) error {
	f, err := createTemp(s.logs) // where sweep finds it; all of it is one file system
	if err != nil {
		return err
	}
	defer f.discard()
	if err := json.NewEncoder(f).Encode(logHead{recordVersion, attempt}); err != nil {
		return err
	}
	if err := ReceiveLog(ctx, f, r, size); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	dir := filepath.Dir(s.logFile(id))
	err = s.locked(ctx, func(*os.File) error {
		if err := s.fenceLog(id, attempt); err != nil {
			return err
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
		switch err := os.Mkdir(dir, 0o700); {
		case err == nil:
			if err := syncDir(s.logs); err != nil {
				return err
			}
		case !errors.Is(err, fs.ErrExist):
			return err
		}
		return f.place(filepath.Join(filepath.Base(dir), filepath.Base(s.logFile(id))))
	})
	if err != nil {
		return err
	}
	return syncDir(dir)
}

func (s *Store) logFile(id build.ID) string {
	return filepath.Join(s.logs, string(id[:2]), string(id)+logSuffix)
}

// fenceLog refuses an attempt where the log of a later one is stored.
func (s *Store) fenceLog(id build.ID, attempt int) error {
	l, head, err := s.openLog(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer l.Close()
	if head.Attempt > attempt {
		return fmt.Errorf("%w: attempt %d", ErrSuperseded, head.Attempt)
	}
	return nil
}

// OpenLog opens the log that PutLog has stored, and says how many bytes it has;
// the caller closes it. It stays readable when it is replaced.
func (s *Store) OpenLog(ctx context.Context, id build.ID) (io.ReadSeekCloser, int64, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, 0, err
	}
	if !id.Valid() {
		return nil, 0, fmt.Errorf("%w: %q is no build id", ErrNotFound, id)
	}
	l, _, err := s.openLog(id)
	if err != nil {
		return nil, 0, Unavailable(err)
	}
	return l, l.Size(), nil
}

func (s *Store) openLog(id build.ID) (*storedLog, logHead, error) {
	f, err := os.Open(s.logFile(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, logHead{}, fmt.Errorf("%w: the log of build %s", ErrNotFound, id)
	}
	if err != nil {
		return nil, logHead{}, fmt.Errorf("open the log of build %s: %w", id, err)
	}
	l, head, err := newStoredLog(f)
	if err != nil {
		f.Close()
		return nil, logHead{}, err
	}
	return l, head, nil
}

// A storedLog is a log's file without its first line.
type storedLog struct {
	*io.SectionReader
	f *os.File
}

func newStoredLog(f *os.File) (*storedLog, logHead, error) {
	var head logHead
	line, err := bufio.NewReader(io.NewSectionReader(f, 0, maxLogHead)).ReadBytes('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, head, fmt.Errorf("open a log: %w", err)
	}
	if err != nil || json.Unmarshal(line, &head) != nil || head.Version != recordVersion {
		return nil, head, corrupt("%s is no log", filepath.Base(f.Name()))
	}
	info, err := f.Stat()
	if err != nil {
		return nil, head, fmt.Errorf("open a log: %w", err)
	}
	return &storedLog{io.NewSectionReader(f, int64(len(line)), info.Size()-int64(len(line))), f}, head, nil
}

func (l *storedLog) Close() error { return l.f.Close() }

// PruneLogs removes the logs that were stored before then.
func (s *Store) PruneLogs(ctx context.Context, before time.Time) error {
	dirs, err := os.ReadDir(s.logs)
	if err != nil {
		return Unavailable(fmt.Errorf("prune logs: %w", err))
	}
	for _, d := range dirs {
		if !d.IsDir() {
			continue
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
		dir := filepath.Join(s.logs, d.Name())
		err := plainFiles(dir, func(name string, info fs.FileInfo) error {
			if filepath.Ext(name) != logSuffix || !info.ModTime().Before(before) {
				return nil
			}
			return os.Remove(filepath.Join(dir, name))
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return Unavailable(fmt.Errorf("prune logs: %w", err))
		}
	}
	return nil
}
