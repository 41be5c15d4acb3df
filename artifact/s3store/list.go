package s3store

import (
	"context"
	"errors"
	"iter"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
)

// list yields the objects whose keys begin with prefix, sorted by key. An error
// is the last that it yields.
func (s *Store) list(ctx context.Context, what, prefix string) iter.Seq2[minio.ObjectInfo, error] {
	return func(yield func(minio.ObjectInfo, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		last := ""
		for waiting := newPatient(s.read); ; {
			var failed error
			for o := range s.client.ListObjectsIter(ctx, s.bucket, minio.ListObjectsOptions{Prefix: prefix, StartAfter: last, Recursive: true}) {
				if failed = o.Err; failed != nil {
					break
				}
				if !yield(o, nil) {
					return
				}
				last, waiting = o.Key, newPatient(s.read)
			}
			if failed == nil {
				failed = context.Cause(ctx) // which ends an iteration without a word
			}
			if failed == nil {
				return
			}
			if err := waiting.wait(ctx, s, what, failed); err != nil {
				yield(minio.ObjectInfo{}, err)
				return
			}
		}
	}
}

// Metas yields what every slot holds, sorted by slot. A slot whose record makes
// no sense is an artifact.ErrCorrupt that names it; the others follow. Any other
// error is the last. It does not look at archives: Verify does.
func (s *Store) Metas(ctx context.Context) iter.Seq2[artifact.Meta, error] {
	return func(yield func(artifact.Meta, error) bool) {
		for o, err := range s.list(ctx, "list artifacts", s.metas()) {
			if err != nil {
				yield(artifact.Meta{}, err)
				return
			}
			slot, ok := strings.CutSuffix(strings.TrimPrefix(o.Key, s.metas()), slotSuffix)
			if !ok || !artifact.IsDigest(slot) {
				continue
			}
			m, err := s.record(ctx, slot)
			corrupt := errors.Is(err, artifact.ErrCorrupt)
			if errors.Is(err, artifact.ErrNotFound) && !corrupt {
				continue // removed meanwhile
			}
			if !yield(m, err) || err != nil && !corrupt {
				return
			}
		}
	}
}

// Unused yields archives that no slot names, but for those of the last hour,
// whose records may be about to come. The store removes none of them: another
// process may be about to name what is there. They have no name of their own.
func (s *Store) Unused(ctx context.Context) iter.Seq2[build.Artifact, error] {
	const young = time.Hour
	return func(yield func(build.Artifact, error) bool) {
		found := map[string]int64{}
		for o, err := range s.list(ctx, "list archives", s.blobs()) {
			if err != nil {
				yield(build.Artifact{}, err)
				return
			}
			if sum := strings.TrimPrefix(o.Key, s.blobs()); artifact.IsDigest(sum) && time.Since(o.LastModified) > young {
				found[sum] = o.Size
			}
		}
		for m, err := range s.Metas(ctx) {
			if err != nil && !errors.Is(err, artifact.ErrCorrupt) {
				yield(build.Artifact{}, err)
				return
			}
			delete(found, m.Artifact.SHA256)
		}
		for sum, size := range found {
			if !yield(build.Artifact{Size: size, SHA256: sum}, nil) {
				return
			}
		}
	}
}
