package artifact

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Put stores what write writes as the newest artifact of m's slot, in place of
// what was there, and returns m with Artifact filled in, and CreatedAt where
// it was zero. When it returns, the artifact survives a power failure.
//
// After an error the slot is what it was. More than the limit is ErrTooLarge; a
// slot that holds a later attempt of the same build is ErrSuperseded; a disk
// that cannot be written is ErrUnavailable. If two Puts of a slot race, the last
// one wins. What was used least recently goes until the store is within
// Options.Limit; this artifact stays, even if it is larger than that by itself.
func (s *Store) Put(ctx context.Context, m Meta, o PutOptions, write func(io.Writer) error) (Meta, error) {
	if m.CreatedAt.IsZero() {
		m.CreatedAt = time.Now().UTC()
	}
	m, err := s.put(ctx, m, o, write)
	if err != nil {
		return Meta{}, fmt.Errorf("store artifact of %s for %s: %w", m.Key.Repository, m.Key.Platform(), err)
	}
	return m, nil
}

func (s *Store) put(ctx context.Context, m Meta, o PutOptions, write func(io.Writer) error) (Meta, error) {
	blob, err := createTemp(s.blobs)
	if err != nil {
		return m, Unavailable(err)
	}
	defer blob.discard()
	if m, err = Receive(ctx, blob, m, o, write); err != nil {
		return m, err
	}
	text, err := EncodeRecord(m)
	if err != nil {
		return m, err
	}
	meta, err := createTemp(s.meta)
	if err != nil {
		return m, Unavailable(err)
	}
	defer meta.discard()
	if _, err := meta.Write(text); err != nil {
		return m, Unavailable(err)
	}
	if err := errors.Join(blob.Sync(), meta.Sync()); err != nil {
		return m, Unavailable(err)
	}
	return m, s.enter(ctx, m, o, blob, meta, int64(len(text)))
}

// fresh is how old a confirmation may be when the slot changes.
const fresh = time.Second

// enter gives both files of an artifact their names, and makes room for it.
func (s *Store) enter(ctx context.Context, m Meta, o PutOptions, blob, meta *tempFile, size int64) error {
	// Others wait for the lock, so what may be slow is asked before it; and
	// again within it where waiting for the lock has made the answer old.
	if err := o.Confirmed(ctx); err != nil {
		return err
	}
	confirmed := time.Now()
	slot, full := m.Key.Slot(), false
	err := s.exclusively(ctx, func() error { // or the blob could be removed before a record names it
		if err := s.fence(m); err != nil {
			return err
		}
		if time.Since(confirmed) > fresh {
			if err := o.Confirmed(ctx); err != nil {
				return err
			}
		}
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
		return Unavailable(err)
	}
	// Not before the new artifact is safe.
	if err := s.exclusively(context.WithoutCancel(ctx), func() error { return s.trim(slot) }); err != nil {
		s.log.Error("the artifact store may stay over --storage-limit", "bytes", s.Bytes(), "limit", s.limit, "err", err)
	}
	return nil
}

// fence refuses m where its slot holds a later attempt of the same build.
func (s *Store) fence(m Meta) error {
	r, err := s.read(m.Key.Slot())
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case err != nil:
		return err
	case r.Meta.Supersedes(m):
		return fmt.Errorf("%w: attempt %d of build %s", ErrSuperseded, r.Attempt, m.BuildID)
	}
	return nil
}
