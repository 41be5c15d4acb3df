package artifact

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"strings"

	"github.com/monochromegane/cargo/build"
)

// Metas yields what every slot holds, sorted by slot. A slot whose record makes
// no sense is an ErrCorrupt that names it; the others follow. Any other error is
// the last. What is stored or evicted meanwhile may be missing. It does not look
// at archives: Verify does.
func (s *Store) Metas(ctx context.Context) iter.Seq2[Meta, error] {
	return func(yield func(Meta, error) bool) {
		entries, err := os.ReadDir(s.meta)
		if err != nil {
			yield(Meta{}, Unavailable(fmt.Errorf("list artifacts: %w", err)))
			return
		}
		for _, e := range entries {
			slot, ok := strings.CutSuffix(e.Name(), metaSuffix)
			if !ok || !IsDigest(slot) {
				continue
			}
			if err := context.Cause(ctx); err != nil {
				yield(Meta{}, err)
				return
			}
			r, err := s.read(slot)
			m := Meta{}
			if err == nil {
				m, err = r.of(slot)
			}
			if errors.Is(err, ErrNotFound) && !errors.Is(err, ErrCorrupt) {
				continue // evicted meanwhile
			}
			if !yield(m, err) || err != nil && !errors.Is(err, ErrCorrupt) {
				return
			}
		}
	}
}

// Unused yields archives that no slot names; they have no name of their own.
// The store removes them by itself, at the latest when it is opened.
func (s *Store) Unused(ctx context.Context) iter.Seq2[build.Artifact, error] {
	return func(yield func(build.Artifact, error) bool) {
		var found []build.Artifact
		err := s.locked(ctx, func(*os.File) error { // or a blob is there whose record is about to be
			named := map[string]bool{}
			for m, err := range s.Metas(ctx) {
				if err != nil && !errors.Is(err, ErrCorrupt) {
					return err
				}
				named[m.Artifact.SHA256] = true
			}
			return plainFiles(s.blobs, func(name string, info fs.FileInfo) error {
				if IsDigest(name) && !named[name] {
					found = append(found, build.Artifact{Size: info.Size(), SHA256: name})
				}
				return nil
			})
		})
		if err != nil {
			yield(build.Artifact{}, Unavailable(fmt.Errorf("list archives: %w", err)))
			return
		}
		for _, a := range found {
			if !yield(a, nil) {
				return
			}
		}
	}
}
