package s3store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/monochromegane/cargo/artifact"
)

// Put stores what write writes as the newest artifact of m's slot, in place of
// what was there, and returns m with Artifact filled in, and CreatedAt where
// it was zero. When it returns, the server has acknowledged all of it.
//
// After an error the slot is what it was; only where the last request of all has
// left and no answer came back, and none can be had, it may hold this artifact
// all the same. More than the limit is artifact.ErrTooLarge; a slot that holds a
// later attempt of the same build is artifact.ErrSuperseded; a server that does
// not answer for as long as Options.Patience is artifact.ErrUnavailable. If two
// Puts of a slot race, the last one wins.
func (s *Store) Put(ctx context.Context, m artifact.Meta, o artifact.PutOptions, write func(io.Writer) error) (artifact.Meta, error) {
	if m.CreatedAt.IsZero() {
		m.CreatedAt = time.Now().UTC()
	}
	m, err := s.put(ctx, m, o, write)
	if err != nil {
		return artifact.Meta{}, fmt.Errorf("store artifact of %s for %s: %w", m.Key.Repository, m.Key.Platform(), err)
	}
	return m, nil
}

func (s *Store) put(ctx context.Context, m artifact.Meta, o artifact.PutOptions, write func(io.Writer) error) (artifact.Meta, error) {
	f, err := s.scratchFile()
	if err != nil {
		return m, artifact.Unavailable(err)
	}
	defer f.Close()
	if m, err = artifact.Receive(ctx, f, m, o, write); err != nil {
		return m, err
	}
	if err := context.Cause(ctx); err != nil {
		return m, err
	}
	if err := s.putBlob(ctx, m, f); err != nil {
		return m, err
	}
	return m, s.setSlot(ctx, m, o)
}

// scratchFile is a file without a name: it is gone when it is closed, or with
// the process.
func (s *Store) scratchFile() (*os.File, error) {
	f, err := os.CreateTemp(s.scratch, scratchPrefix)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		f.Close()
		return nil, err
	}
	return f, nil
}

// putBlob uploads the archive, unless the server has it: an upload that was
// believed to have failed, or another build with the same result. What is there
// is read before it is believed, so that building again mends what is damaged.
func (s *Store) putBlob(ctx context.Context, m artifact.Meta, content io.ReaderAt) error {
	const attempts = 5 // each time somebody else has put it there, or taken it away
	var err error
	for range attempts {
		u := upload{
			what: "upload an archive", key: s.blobKey(m.Artifact.SHA256), content: content, size: m.Artifact.Size, sha256: m.Artifact.SHA256,
			contentType: contentType, condition: none,
		}
		switch err = s.verify(ctx, m, s.small, s.small); {
		case err == nil:
			return nil
		case errors.Is(err, artifact.ErrCorrupt):
			u.condition = anything
		case !errors.Is(err, artifact.ErrNotFound):
			return err
		}
		if err = s.upload(ctx, u); !errors.Is(err, errConflict) {
			return err
		}
	}
	return fmt.Errorf("%w: upload an archive: %w", artifact.ErrUnavailable, err)
}

// setSlot makes m what its slot holds.
func (s *Store) setSlot(ctx context.Context, m artifact.Meta, o artifact.PutOptions) error {
	text, err := artifact.EncodeRecord(m)
	if err != nil {
		return err
	}
	slot, sent := m.Key.Slot(), false
	ours := func(ctx context.Context) (slotState, bool, error) {
		now, err := s.slot(ctx, slot)
		return now, sent && bytes.Equal(now.text, text), err
	}
	return s.try(ctx, s.small, "store the record of an artifact", func(attempt context.Context) error {
		now, done, err := ours(attempt)
		if err != nil || done {
			return err
		}
		if err := fence(slot, now, m); err != nil {
			return final{err}
		}
		if err := o.Confirmed(ctx); err != nil {
			return final{err}
		}
		if err := context.Cause(ctx); err != nil {
			return final{err}
		}
		// From here on there is no way back: whoever goes away now shall know
		// what has become of it, so the end of ctx ends neither this request nor
		// the one that asks how it ended.
		attempt, cancel := context.WithTimeout(context.WithoutCancel(ctx), smallRequest)
		defer cancel()
		sent = true
		err = s.putSmall(attempt, s.slotKey(slot), text, s.when(unchanged(now.found, now.etag), minio.PutObjectOptions{ContentType: "application/json"}))
		if err != nil && context.Cause(ctx) != nil {
			if _, done, readErr := ours(attempt); readErr == nil && done {
				return nil
			}
		}
		return conflict(err)
	})
}

// fence refuses m where its slot holds a later attempt of the same build.
func fence(slot string, now slotState, m artifact.Meta) error {
	if !now.found {
		return nil
	}
	held, err := artifact.DecodeRecord(slot, now.text)
	if err == nil && held.Supersedes(m) {
		return fmt.Errorf("%w: attempt %d of build %s", artifact.ErrSuperseded, held.Attempt, m.BuildID)
	}
	return nil // what makes no sense is replaced
}
