package s3store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
)

// attemptMetadata is the user-defined metadata of a log.
const attemptMetadata = "attempt"

// PutLog keeps the log of an ended build: the first size bytes of r, which the
// caller bounds. It takes the place of the log of an earlier attempt, or of the
// same; where there is one of a later attempt the error is
// artifact.ErrSuperseded.
func (s *Store) PutLog(ctx context.Context, id build.ID, attempt int, r io.ReaderAt, size int64) error {
	if !id.Valid() {
		return fmt.Errorf("store the log of a build: %q is no build id", id)
	}
	what := "store the log of build " + string(id)
	sum := sha256.New()
	if err := artifact.ReceiveLog(ctx, sum, r, size); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	u := upload{
		what: what, key: s.logKey(id), content: r, size: size, sha256: hex.EncodeToString(sum.Sum(nil)),
		contentType: "application/jsonl", metadata: map[string]string{attemptMetadata: strconv.Itoa(attempt)},
	}
	for waiting := newPatient(s.write); ; {
		err := s.putLog(ctx, u, attempt)
		if !errors.Is(err, errConflict) {
			return err
		}
		if err := waiting.wait(ctx, s, what, err); err != nil {
			return err
		}
	}
}

// putLog looks at what is there and uploads u in its place.
func (s *Store) putLog(ctx context.Context, u upload, attempt int) error {
	now, info, err := s.openObject(ctx, u.what, u.key, s.small, s.small)
	switch {
	case errors.Is(err, artifact.ErrNotFound):
	case err != nil:
		return err
	default:
		u.condition = unchanged(true, now.etag)
		held, err := strconv.Atoi(metadata(info, attemptMetadata))
		if err != nil {
			break // it is not ours, or has been damaged
		}
		if held > attempt {
			return fmt.Errorf("%s: %w: attempt %d", u.what, artifact.ErrSuperseded, held)
		}
		if held == attempt && now.size == u.size && metadata(info, sumMetadata) == u.sha256 {
			return nil // it has arrived although its answer has not
		}
	}
	return s.upload(ctx, u)
}

// OpenLog opens the log that PutLog has stored, and says how many bytes it has;
// the caller closes it. It is read until ctx ends. One that is replaced while it
// is read ends with artifact.ErrNotFound.
func (s *Store) OpenLog(ctx context.Context, id build.ID) (io.ReadSeekCloser, int64, error) {
	if !id.Valid() {
		return nil, 0, fmt.Errorf("%w: %q is no build id", artifact.ErrNotFound, id)
	}
	o, _, err := s.openObject(ctx, "open the log of build "+string(id), s.logKey(id), s.read, s.stream)
	if err != nil {
		return nil, 0, err
	}
	return o, o.size, nil
}

// PruneLogs removes the logs that were stored before then, by the server's clock.
func (s *Store) PruneLogs(ctx context.Context, before time.Time) error {
	for o, err := range s.list(ctx, "prune logs", s.logs()) {
		if err != nil {
			return err
		}
		if !strings.HasSuffix(o.Key, logSuffix) || !o.LastModified.Before(before) {
			continue
		}
		err := s.try(ctx, s.small, "prune logs", func(ctx context.Context) error {
			return s.client.RemoveObject(ctx, s.bucket, o.Key, minio.RemoveObjectOptions{})
		})
		if err != nil {
			return err
		}
	}
	return nil
}
