// Package s3store keeps artifacts, and the logs of builds that have ended, in a
// bucket of any server that speaks S3:
//
//	PREFIX/blobs/SHA256      an archive, once for each content
//	PREFIX/meta/SLOT.json    which one is the newest of a slot
//	PREFIX/logs/BUILD.jsonl  a log
//	PREFIX/probe             shows at the start what the server can do
//
// A slot changes by one conditional write, from what was there when its builder
// was asked whether it still may. Nothing is ever taken from an ETag but whether
// an object has changed: contents are known by their SHA-256.
package s3store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
)

// A Store keeps artifacts in a bucket. Its methods are safe for concurrent use,
// by many processes on many machines. Without a server that knows conditional
// writes, two that store in the same slot at the same moment may both believe
// that they were first.
type Store struct {
	client      minio.Core
	transport   *http.Transport
	credentials *credentials.Credentials
	bucket      string
	prefix      string // "" or with a slash at its end
	scratch     string
	where       string // the bucket and its server, for people
	conditional bool   // the server knows If-Match and If-None-Match
	log         *slog.Logger

	write  budget // what a step of a Put may take
	small  budget // the same, for a request that moves next to nothing
	read   budget // what somebody waits for
	stream budget // the same, while it arrives
}

const (
	defaultPatience = 2 * time.Minute
	readPatience    = 10 * time.Second
	streamPatience  = 30 * time.Second

	// smallRequest is what a request may take that moves next to nothing, so
	// that a connection which leads nowhere any more is given up for a new one.
	smallRequest = 20 * time.Second
	smallRead    = 4 * time.Second
)

func newStore(o Options) *Store {
	patience := cmp.Or(o.Patience, defaultPatience)
	s := &Store{
		transport: newTransport(),
		bucket:    o.Bucket,
		prefix:    o.Prefix,
		scratch:   o.Scratch,
		where:     fmt.Sprintf("bucket %q at %s", o.Bucket, cmp.Or(o.Endpoint, amazon)),
		log:       cmp.Or(o.Log, slog.New(slog.DiscardHandler)),
		write:     budget{total: patience, attempt: patience, loud: true},
		small:     budget{total: patience, attempt: smallRequest, loud: true},
		read:      budget{total: min(patience, readPatience), attempt: smallRead},
		stream:    budget{total: min(patience, streamPatience), attempt: min(patience, readPatience)},
	}
	if s.prefix != "" {
		s.prefix += "/"
	}
	return s
}

// Close lets go of idle connections. What is under way goes on.
func (s *Store) Close() { s.transport.CloseIdleConnections() }

// Bytes is always 0: how much a bucket may hold is for its owner to say.
func (s *Store) Bytes() int64 { return 0 }

func (s *Store) blobs() string              { return s.prefix + "blobs/" }
func (s *Store) metas() string              { return s.prefix + "meta/" }
func (s *Store) logs() string               { return s.prefix + "logs/" }
func (s *Store) blobKey(sum string) string  { return s.blobs() + sum }
func (s *Store) slotKey(slot string) string { return s.metas() + slot + slotSuffix }
func (s *Store) logKey(id build.ID) string  { return s.logs() + string(id) + logSuffix }

const (
	slotSuffix = ".json"
	logSuffix  = ".jsonl"
)

// A slotState is what was read of a slot.
type slotState struct {
	text  []byte
	found bool
	etag  string
}

// Lookup returns what the slot, a [build.Key.Slot], holds. The error wraps
// artifact.ErrNotFound if that is nothing, and artifact.ErrCorrupt as well if
// what is there cannot be served. It does not read the archive: that it is there,
// with its size, is a second request, without which a caller would be sent to
// what a rule of the bucket has removed, and told that it need not be built.
func (s *Store) Lookup(ctx context.Context, slot string) (artifact.Meta, error) {
	const attempts = 3 // the slot may be replaced between the record and the archive
	var m artifact.Meta
	var err error
	for range attempts {
		if m, err = s.record(ctx, slot); err != nil {
			return artifact.Meta{}, err
		}
		var o *object
		if o, err = s.open(ctx, m, s.read, s.stream); err == nil {
			return m, o.Close()
		}
		if !errors.Is(err, artifact.ErrNotFound) || errors.Is(err, artifact.ErrCorrupt) {
			break
		}
	}
	return artifact.Meta{}, err
}

// record is what is recorded of a slot, whether the archive is there or not.
func (s *Store) record(ctx context.Context, slot string) (artifact.Meta, error) {
	if !artifact.IsDigest(slot) {
		return artifact.Meta{}, fmt.Errorf("%w: %q is not a slot", artifact.ErrNotFound, slot)
	}
	var now slotState
	err := s.try(ctx, s.read, "look up the artifact in slot "+slot, func(ctx context.Context) (err error) {
		now, err = s.slot(ctx, slot)
		return err
	})
	if err != nil {
		return artifact.Meta{}, err
	}
	if !now.found {
		return artifact.Meta{}, fmt.Errorf("%w: slot %s", artifact.ErrNotFound, slot)
	}
	return artifact.DecodeRecord(slot, now.text)
}

// slot reads a slot once.
func (s *Store) slot(ctx context.Context, slot string) (slotState, error) {
	body, info, _, err := s.client.GetObject(ctx, s.bucket, s.slotKey(slot), minio.GetObjectOptions{})
	if missing(err) {
		return slotState{}, nil
	}
	if err != nil {
		return slotState{}, err
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, artifact.MaxRecord))
	return slotState{text, true, info.ETag}, err
}

// SignedURL is a URL from which anybody gets the archive of a Meta that Lookup
// returned, for ttl, as a file under its name. It is as good as the archive
// itself: who may have it is for the caller to decide, and it belongs in no log.
func (s *Store) SignedURL(ctx context.Context, m artifact.Meta, ttl time.Duration) (string, error) {
	if !artifact.IsDigest(m.Artifact.SHA256) {
		return "", fmt.Errorf("%w: %q is not a SHA-256", artifact.ErrNotFound, m.Artifact.SHA256)
	}
	var signed *url.URL
	err := s.try(ctx, s.read, "sign a URL", func(ctx context.Context) (err error) {
		signed, err = s.client.PresignedGetObject(ctx, s.bucket, s.blobKey(m.Artifact.SHA256), max(ttl, time.Second), url.Values{
			"response-content-disposition": {`attachment; filename="` + m.Artifact.Name + `"`},
			"response-content-type":        {contentType},
		})
		return err
	})
	if err != nil {
		return "", err
	}
	return signed.String(), nil
}

const contentType = "application/gzip"
