package s3store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"time"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"

	"github.com/monochromegane/cargo/artifact"
)

const (
	// partSize is what is sent in one request. Larger objects are sent in parts
	// of it, of which a server allows 10,000; each is read from the file while
	// it is sent, so none is ever in memory.
	partSize = 16 << 20
	atOnce   = 3

	abortPatience = 10 * time.Second
)

// An upload is an object that is to be.
type upload struct {
	what    string // for people
	key     string
	content io.ReaderAt
	size    int64
	sha256  string // hex digits; recorded with it

	contentType string
	metadata    map[string]string // more of it
	condition   condition
}

// sumMetadata is the user-defined metadata with the SHA-256 of an object.
const sumMetadata = "sha256"

// A condition is what must be there for a write to happen: the object with this
// ETag, or none.
type condition string

const (
	none     condition = ""
	anything condition = "*" // or none
)

// unchanged is the condition that an object is as it was found, or not there as
// before.
func unchanged(found bool, etag string) condition {
	if found && etag == "" { // not every server has one for what it did not write itself
		return anything
	}
	return condition(etag)
}

// when puts c into o, if the server keeps conditions.
func (s *Store) when(c condition, o minio.PutObjectOptions) minio.PutObjectOptions {
	switch {
	case !s.conditional || c == anything:
	case c == none:
		o.SetMatchETagExcept("*")
	default:
		o.SetMatchETag(string(c))
	}
	return o
}

func (u upload) options() minio.PutObjectOptions {
	all := map[string]string{sumMetadata: u.sha256}
	maps.Copy(all, u.metadata)
	return minio.PutObjectOptions{
		ContentType: u.contentType, UserMetadata: all,
		DisableContentSha256: true, // of each chunk: there is one for all
	}
}

// upload sends u. The error is errConflict if its condition does not hold, and
// also where it may hold because this very upload has arrived although its answer
// has not: either way the caller looks at what is there.
func (s *Store) upload(ctx context.Context, u upload) error {
	if u.size > partSize {
		return s.uploadParts(ctx, u)
	}
	return s.try(ctx, s.write, u.what, func(ctx context.Context) error {
		_, err := s.client.PutObject(ctx, s.bucket, u.key, io.NewSectionReader(u.content, 0, u.size), u.size, "", u.sha256, s.when(u.condition, u.options()))
		return settle(err)
	})
}

// settle ends an upload whose condition does not hold.
func settle(err error) error {
	if err = conflict(err); errors.Is(err, errConflict) {
		return final{err}
	}
	return err
}

// uploadParts sends u in parts. A server that has forgotten the parts, or has
// made the object of them already, is errConflict too.
func (s *Store) uploadParts(ctx context.Context, u upload) error {
	var id string
	err := s.try(ctx, s.small, u.what, func(ctx context.Context) (err error) {
		id, err = s.client.NewMultipartUpload(ctx, s.bucket, u.key, u.options())
		return err
	})
	if err != nil {
		return err
	}
	err = s.sendParts(ctx, u, id)
	if err == nil {
		return nil
	}
	if abortErr := s.abort(ctx, u, id); abortErr != nil {
		s.log.Warn("an upload that failed takes space until the store is opened a day later", "key", u.key, "err", abortErr)
	}
	return err
}

// abort removes what has arrived of an upload, also where ctx has ended. A part
// that was on its way may arrive a moment later, and then is there again: so it
// looks again until the server knows nothing of it.
func (s *Store) abort(ctx context.Context, u upload, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortPatience)
	defer cancel()
	const looks = 3
	for i := range looks {
		gone := false
		err := s.try(ctx, budget{total: abortPatience, attempt: abortPatience}, u.what, func(ctx context.Context) error {
			err := s.client.AbortMultipartUpload(ctx, s.bucket, u.key, id)
			if gone = response(err).Code == minio.NoSuchUpload; gone {
				return nil
			}
			return err
		})
		if err != nil || gone {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(firstWait << i):
		}
	}
	return nil // there are servers that say yes to whoever aborts what is gone
}

func (s *Store) sendParts(ctx context.Context, u upload, id string) error {
	parts := make([]minio.CompletePart, (u.size+partSize-1)/partSize)
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i := range parts {
		group.Go(func() (err error) {
			parts[i], err = s.sendPart(groupCtx, u, id, i)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return s.try(ctx, s.write, u.what, func(ctx context.Context) error {
		_, err := s.client.CompleteMultipartUpload(ctx, s.bucket, u.key, id, parts, s.when(u.condition, minio.PutObjectOptions{}))
		return settleParts(err)
	})
}

func (s *Store) sendPart(ctx context.Context, u upload, id string, i int) (minio.CompletePart, error) {
	if err := context.Cause(ctx); err != nil {
		return minio.CompletePart{}, err // of another part
	}
	start := int64(i) * partSize
	size := min(partSize, u.size-start)
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(u.content, start, size)); err != nil {
		return minio.CompletePart{}, artifact.Unavailable(err)
	}
	var part minio.ObjectPart
	err := s.try(ctx, s.write, fmt.Sprintf("%s, part %d", u.what, i+1), func(ctx context.Context) (err error) {
		part, err = s.client.PutObjectPart(ctx, s.bucket, u.key, id, i+1, io.NewSectionReader(u.content, start, size), size, minio.PutObjectPartOptions{
			Sha256Hex: hex.EncodeToString(sum.Sum(nil)), DisableContentSha256: true,
		})
		return settleParts(err)
	})
	return minio.CompletePart{PartNumber: i + 1, ETag: part.ETag}, err
}

// settleParts ends an upload in parts that the server does not know any more.
func settleParts(err error) error {
	if response(err).Code == minio.NoSuchUpload {
		return final{fmt.Errorf("%w: %w", errConflict, err)}
	}
	return settle(err)
}
