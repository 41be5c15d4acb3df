package s3store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/monochromegane/cargo/artifact"
)

// Open opens the archive of a Meta that Lookup or Put returned; the caller
// closes it. It is read as far as it is asked for, until ctx ends, and goes on
// where a connection broke. What is not there any more is artifact.ErrNotFound,
// or artifact.ErrCorrupt if its slot still names it or if it is something else.
func (s *Store) Open(ctx context.Context, m artifact.Meta) (io.ReadSeekCloser, error) {
	o, err := s.open(ctx, m, s.read, s.stream)
	if err != nil {
		return nil, err // and not a nil object
	}
	return o, nil
}

func (s *Store) open(ctx context.Context, m artifact.Meta, head, body budget) (*object, error) {
	sum := m.Artifact.SHA256
	if !artifact.IsDigest(sum) {
		return nil, fmt.Errorf("%w: %q is not a SHA-256", artifact.ErrNotFound, sum)
	}
	o, info, err := s.openObject(ctx, "open an archive", s.blobKey(sum), head, body)
	if errors.Is(err, artifact.ErrNotFound) {
		if now, recordErr := s.record(ctx, m.Key.Slot()); recordErr == nil && now.Artifact.SHA256 == sum {
			return nil, fmt.Errorf("%w: archive %s is missing", artifact.ErrCorrupt, sum)
		}
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	o.etag = "" // the name says what it is: if it is replaced, then by the same
	if recorded := metadata(info, sumMetadata); o.size != m.Artifact.Size || recorded != "" && recorded != sum {
		return nil, fmt.Errorf("%w: archive %s has %d bytes instead of %d", artifact.ErrCorrupt, sum, o.size, m.Artifact.Size)
	}
	return o, nil
}

// Verify reads the whole archive of a Meta that Lookup or Metas returned. The
// errors are those of Open; artifact.ErrCorrupt is also for content that is not
// what was stored.
func (s *Store) Verify(ctx context.Context, m artifact.Meta) error {
	return s.verify(ctx, m, s.read, s.stream)
}

func (s *Store) verify(ctx context.Context, m artifact.Meta, head, body budget) error {
	o, err := s.open(ctx, m, head, body)
	if err != nil {
		return err
	}
	defer o.Close()
	return artifact.VerifyContent(ctx, o, m)
}

// metadata is what is recorded with an object under a name.
func metadata(info minio.ObjectInfo, name string) string {
	for k, v := range info.UserMetadata {
		if strings.EqualFold(k, name) {
			return v
		}
	}
	return ""
}

// An object is read from the server in one request for what follows an offset,
// and in another after each Seek that goes elsewhere and each connection that
// breaks.
type object struct {
	s    *Store
	ctx  context.Context // of whoever opened it: readers have no other way
	what string
	key  string
	etag string // of the object that it must still be, "" for any
	size int64
	b    budget

	offset int64
	body   io.ReadCloser // from offset on, nil for none
	cancel context.CancelCauseFunc
}

// openObject asks for an object's size. What is not there is artifact.ErrNotFound.
func (s *Store) openObject(ctx context.Context, what, key string, head, body budget) (*object, minio.ObjectInfo, error) {
	var info minio.ObjectInfo
	err := s.try(ctx, head, what, func(ctx context.Context) (err error) {
		info, err = s.client.StatObject(ctx, s.bucket, key, minio.StatObjectOptions{})
		if missing(err) {
			return final{fmt.Errorf("%w: there is no %s", artifact.ErrNotFound, key)}
		}
		return err
	})
	if err != nil {
		return nil, info, err
	}
	return &object{s: s, ctx: ctx, what: what, key: key, etag: info.ETag, size: info.Size, b: body}, info, nil
}

var errStalled = errors.New("nothing has come for a while")

// Read implements [io.Reader].
func (o *object) Read(p []byte) (int, error) {
	if o.offset >= o.size {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	for waiting := newPatient(o.b); ; {
		n, err := o.readOnce(p[:min(int64(len(p)), o.size-o.offset)])
		o.offset += int64(n)
		if n > 0 {
			return n, nil
		}
		if missing(err) || response(err).StatusCode == http.StatusPreconditionFailed {
			return 0, fmt.Errorf("%w: %s has been replaced or removed while it was read", artifact.ErrNotFound, o.key)
		}
		if err := waiting.wait(o.ctx, o.s, o.what, err); err != nil {
			return 0, err
		}
	}
}

// readOnce reads something, or returns the error for which it could not.
func (o *object) readOnce(p []byte) (int, error) {
	if o.body == nil {
		if err := o.request(); err != nil {
			return 0, err
		}
	}
	cancel := o.cancel // of this body, also where it comes late
	stalled := time.AfterFunc(o.b.attempt, func() { cancel(errStalled) })
	n, err := o.body.Read(p)
	stalled.Stop()
	if n == 0 && err == nil {
		err = io.ErrNoProgress
	}
	if err != nil {
		o.drop()
	}
	if errors.Is(err, io.EOF) { // and yet there is more
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// request asks for what follows the offset.
func (o *object) request() error {
	ctx, cancel := context.WithCancelCause(o.ctx)
	late := time.AfterFunc(o.b.attempt, func() { cancel(errStalled) })
	defer late.Stop()
	options := minio.GetObjectOptions{}
	if o.offset > 0 {
		options.Set("Range", "bytes="+strconv.FormatInt(o.offset, 10)+"-")
	}
	if o.etag != "" {
		if err := options.SetMatchETag(o.etag); err != nil {
			cancel(err)
			return err
		}
	}
	body, info, header, err := o.s.client.GetObject(ctx, o.s.bucket, o.key, options)
	if err != nil {
		cancel(err)
		return err
	}
	got, _, _ := strings.Cut(header.Get("Content-Range"), "/")
	if info.Size != o.size-o.offset || o.offset > 0 && got != fmt.Sprintf("bytes %d-%d", o.offset, o.size-1) {
		cancel(nil)
		body.Close()
		return fmt.Errorf("%d bytes in the range %q follow byte %d of %s, which has %d", info.Size, got, o.offset, o.key, o.size)
	}
	o.body, o.cancel = body, cancel
	return nil
}

func (o *object) drop() {
	if o.body != nil {
		o.cancel(nil)
		o.body.Close()
		o.body = nil
	}
}

// Seek implements [io.Seeker]. It asks the server for nothing.
func (o *object) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += o.offset
	case io.SeekEnd:
		offset += o.size
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek to byte %d of %s", offset, o.key)
	}
	if offset != o.offset {
		o.drop()
		o.offset = offset
	}
	return offset, nil
}

// Close ends what is still under way.
func (o *object) Close() error {
	o.drop()
	return nil
}
