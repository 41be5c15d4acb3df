package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/queue"
)

// A brittleStore breaks where it is told to.
type brittleStore struct {
	store
	listing, looking error
}

func (s brittleStore) Metas(ctx context.Context) iter.Seq2[artifact.Meta, error] {
	return func(yield func(artifact.Meta, error) bool) {
		for m, err := range s.store.Metas(ctx) {
			if !yield(m, err) {
				return
			}
		}
		if s.listing != nil {
			yield(artifact.Meta{}, s.listing)
		}
	}
}

func (s brittleStore) Lookup(ctx context.Context, slot string) (artifact.Meta, error) {
	if s.looking != nil {
		return artifact.Meta{}, s.looking
	}
	return s.store.Lookup(ctx, slot)
}

// fsckRig is a queue with one record, whose artifact is gone, and a store with
// artifacts that were made then and an archive of none.
func fsckRig(t *testing.T, made ...time.Time) (*queue.Queue, *artifact.Store) {
	t.Helper()
	q, err := queue.Open(t.Context(), queue.Options{Dir: filepath.Join(t.TempDir(), "queue"), Worker: "w"})
	must(t, err)
	t.Cleanup(func() { must(t, q.Close()) })
	must(t, q.Restore(t.Context(), build.Build{ID: build.NewID(), Key: fsckKey("gone"), State: build.Succeeded, Artifact: &build.Artifact{}}))
	dir := t.TempDir()
	s, err := artifact.Open(dir, artifact.Options{})
	must(t, err)
	for i, at := range made {
		m := artifact.Meta{Key: fsckKey(fmt.Sprint("v", i)), BuildID: build.NewID(), CreatedAt: at}
		_, err := s.Put(t.Context(), m, artifact.PutOptions{}, func(w io.Writer) error {
			_, err := io.WriteString(w, "hello")
			return err
		})
		must(t, err)
	}
	must(t, os.WriteFile(filepath.Join(dir, "blobs", strings.Repeat("0", 64)), []byte("left behind"), 0o600))
	return q, s
}

func fsckKey(version string) build.Key {
	return build.Key{Target: build.Target{Repository: build.Repository{Remote: "example.com", Owner: "o", Name: "r"}, GOOS: "linux", GOARCH: "amd64", Version: version}}
}

// What could not be looked at is no finding, and no check that has been made.
func TestFsckEndsWithTheStore(t *testing.T) {
	for name, s := range map[string]brittleStore{
		"a list that breaks": {listing: errors.New("permission denied")},
		"a look that breaks": {looking: fmt.Errorf("%w: of the test", artifact.ErrUnavailable)},
	} {
		t.Run(name, func(t *testing.T) {
			q, files := fsckRig(t, time.Now())
			s.store = files
			var out bytes.Buffer
			f := &fsck{queue: q, artifacts: s, out: &out, slots: map[string]artifact.Meta{}}
			if err := f.run(t.Context()); !errors.Is(err, cmp.Or(s.listing, s.looking)) {
				t.Errorf("fsck = %v; it says\n%s", err, out.String())
			}
		})
	}
}

// An artifact may well be older than any record: that is nothing wrong.
func TestFsckKnowsOldArtifacts(t *testing.T) {
	q, s := fsckRig(t, time.Now().Add(-91*24*time.Hour), time.Now())
	check := func(rebuild bool) (string, error) {
		var out bytes.Buffer
		f := &fsck{queue: q, artifacts: s, out: &out, retention: 90 * 24 * time.Hour, rebuild: rebuild, slots: map[string]artifact.Meta{}}
		err := f.run(t.Context())
		return out.String(), err
	}
	if out, err := check(false); err == nil || !strings.Contains(out, ", 1 without a record") || !strings.Contains(out, "1 artifact older than --record-retention") {
		t.Errorf("fsck = %v\n%s", err, out)
	}
	if out, err := check(true); err != nil || strings.Count(out, "record made: ") != 2 || !strings.Contains(out, "1 archive (11B) of no artifact") {
		t.Errorf("rebuild = %v\n%s", err, out)
	}
}
