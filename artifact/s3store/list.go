package s3store

import (
	"context"
	"errors"
	"iter"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
)

// list yields the objects whose keys begin with prefix, sorted by key. An error
// is the last that it yields.
func (s *Store) list(ctx context.Context, what, prefix string) iter.Seq2[minio.ObjectInfo, error] {
	return func(yield func(minio.ObjectInfo, error) bool) {
		last, enough := "", false
		for waiting := newPatient(s.stream); ; {
			err := s.listAfter(ctx, prefix, last, func(o minio.ObjectInfo) bool {
				enough = !yield(o, nil)
				last, waiting = o.Key, newPatient(s.stream)
				return !enough
			})
			if enough || err == nil {
				return
			}
			if err := waiting.wait(ctx, s, what, err); err != nil {
				yield(minio.ObjectInfo{}, err)
				return
			}
		}
	}
}

// listAfter calls each with what comes after a key, until that says no. It does
// not wait for ever for what comes next.
func (s *Store) listAfter(ctx context.Context, prefix, after string, each func(minio.ObjectInfo) bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	late := time.AfterFunc(s.stream.attempt, func() { cancel(errStalled) })
	defer late.Stop()
	for o := range s.client.ListObjectsIter(ctx, s.bucket, minio.ListObjectsOptions{Prefix: prefix, StartAfter: after, Recursive: true}) {
		if o.Err != nil {
			return o.Err
		}
		late.Stop()
		if !each(o) {
			return nil
		}
		late.Reset(s.stream.attempt)
	}
	return context.Cause(ctx) // which ends an iteration without a word
}

// recordsAtOnce is how many records Metas reads side by side.
const recordsAtOnce = 16

// Metas yields what every slot holds, sorted by slot. A slot whose record makes
// no sense is an artifact.ErrCorrupt that names it; the others follow. Any other
// error is the last. It does not look at archives: Verify does.
func (s *Store) Metas(ctx context.Context) iter.Seq2[artifact.Meta, error] {
	return func(yield func(artifact.Meta, error) bool) {
		var reads sync.WaitGroup
		defer reads.Wait()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		var ahead []chan readRecord // in the order of their slots
		pass := func(most int) bool {
			for len(ahead) > most {
				r := <-ahead[0]
				ahead = ahead[1:]
				corrupt := errors.Is(r.err, artifact.ErrCorrupt)
				if errors.Is(r.err, artifact.ErrNotFound) && !corrupt {
					continue // removed meanwhile
				}
				if !yield(r.meta, r.err) || r.err != nil && !corrupt {
					return false
				}
			}
			return true
		}
		for o, err := range s.list(ctx, "list artifacts", s.metas()) {
			if err != nil {
				if pass(0) {
					yield(artifact.Meta{}, err)
				}
				return
			}
			slot, ok := strings.CutSuffix(strings.TrimPrefix(o.Key, s.metas()), slotSuffix)
			if !ok || !artifact.IsDigest(slot) {
				continue
			}
			if !pass(recordsAtOnce - 1) {
				return
			}
			read := make(chan readRecord, 1)
			ahead = append(ahead, read)
			reads.Go(func() {
				m, err := s.record(ctx, slot)
				read <- readRecord{m, err}
			})
		}
		pass(0)
	}
}

// A readRecord is the outcome of Store.record.
type readRecord struct {
	meta artifact.Meta
	err  error
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
