package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/buildlog"
	"github.com/monochromegane/cargo/queue"
)

// An awayStore is a store that does not answer now and then.
type awayStore struct {
	*artifact.Store
	away atomic.Bool
}

func (s *awayStore) PutLog(ctx context.Context, id build.ID, attempt int, r io.ReaderAt, size int64) error {
	if s.away.Load() {
		return artifact.ErrUnavailable
	}
	return s.Store.PutLog(ctx, id, attempt, r, size)
}

// The log of a build that ended while the store was away is archived when that
// is back, whoever wrote it; that of a build that runs is left alone.
func TestLogsAreArchivedLater(t *testing.T) {
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	dir := t.TempDir()
	q, err := queue.Open(t.Context(), queue.Options{Dir: filepath.Join(dir, "queue"), Worker: "w", Log: log})
	must(t, err)
	t.Cleanup(func() { must(t, q.Close()) })
	files, err := artifact.Open(filepath.Join(dir, "storage"), artifact.Options{})
	must(t, err)
	store := &awayStore{Store: files}
	local, err := buildlog.Open(filepath.Join(dir, "logs"), buildlog.Options{})
	must(t, err)
	shared, err := buildlog.OpenShared(t.Context(), buildlog.SharedOptions{Local: local, JetStream: q.JetStream(), Archive: store, NotFound: artifact.ErrNotFound, Log: log})
	must(t, err)
	begin := func(version string) *queue.Claim {
		b := build.Build{ID: build.NewID(), Key: build.Key{Target: build.Target{Version: version}}, Public: true}
		_, err := q.Submit(t.Context(), queue.Submission{Build: b})
		must(t, err)
		c, err := q.Claim(t.Context())
		must(t, err)
		w, err := shared.Create(t.Context(), c.Build(), 0)
		must(t, err)
		w.Log(slog.LevelInfo, "said by "+version)
		must(t, w.Close())
		return c
	}
	archived := func(id build.ID) bool {
		f, _, err := files.OpenLog(t.Context(), id)
		if errors.Is(err, artifact.ErrNotFound) {
			return false
		}
		must(t, err)
		must(t, f.Close())
		return true
	}

	store.away.Store(true)
	c := begin("ended")
	b := c.Build()
	if err := shared.Keep(t.Context(), b); !errors.Is(err, artifact.ErrUnavailable) {
		t.Fatalf("Keep = %v", err)
	}
	b.State, b.Reason = build.Failed, build.ReasonExit
	must(t, c.Finish(t.Context(), b))
	runs := begin("running").Build()
	if err := shared.Keep(t.Context(), runs); !errors.Is(err, artifact.ErrUnavailable) { // as far as its end as it gets
		t.Fatalf("Keep = %v", err)
	}

	a := newArchivist(&rooms{queue: q, logs: shared, log: log})
	for range 3 {
		a.sweep(t.Context(), shared)
	}
	store.away.Store(false)
	if archived(b.ID) || len(a.later) != 1 {
		t.Fatalf("while the store is away %d wait", len(a.later))
	}
	a.sweep(t.Context(), shared)
	if !archived(b.ID) || archived(runs.ID) || len(a.later) != 0 {
		t.Errorf("archived: ended %t, running %t; %d wait", archived(b.ID), archived(runs.ID), len(a.later))
	}
	if left, err := shared.Unsettled(t.Context()); err != nil || !slices.Equal(left, []build.ID{runs.ID}) {
		t.Errorf("on JetStream: %q, %v", left, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
