package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/queue"
)

// fsckCommand holds records, artifacts and the store against each other.
func fsckCommand(stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:         "fsck",
		Usage:        "check the records of builds against the artifacts, and read each of those",
		OnUsageError: onUsageError,
		Flags: append(only(append(queueFlags(), "storage", "storage-dir", "record-retention")...),
			&cli.BoolFlag{Name: "rebuild-records", Usage: "make the records of artifacts that have none"}),
		Action: func(c *cli.Context) error {
			cfg, err := parseConfig(c)
			if err != nil {
				return err
			}
			log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
			artifacts, err := openStore(c.Context, cfg, true, log)
			if err != nil {
				return err
			}
			q, err := openQueue(c.Context, cfg, c.Bool("rebuild-records"), log)
			if err != nil {
				return err
			}
			f := &fsck{
				queue: q, artifacts: artifacts, out: c.App.Writer, rebuild: c.Bool("rebuild-records"), retention: cfg.quotas.records,
				slots: map[string]artifact.Meta{},
			}
			return errors.Join(f.run(c.Context), q.Close())
		},
	}
}

// A fsck is one check. It may run beside a server: what changes meanwhile is
// looked at again before it is reported.
type fsck struct {
	queue     *queue.Queue
	artifacts store
	out       io.Writer
	rebuild   bool          // records
	retention time.Duration // of records

	slots map[string]artifact.Meta // what the store holds, whole or not

	records, read                                      int
	bytes                                              int64
	damaged, different, gone, unrecorded, made, broken int
	old                                                int // have outlived their records
	unused                                             int // archives that no artifact is
	unusedBytes                                        int64
}

func (f *fsck) run(ctx context.Context) error {
	if err := f.readArtifacts(ctx); err != nil {
		return err
	}
	recorded, err := f.readRecords(ctx)
	if err != nil {
		return err
	}
	for _, m := range f.slots {
		if !recorded[m.BuildID] {
			if err := f.unknown(ctx, m); err != nil {
				return err
			}
		}
	}
	for a, err := range f.artifacts.Unused(ctx) {
		if err != nil {
			return err
		}
		f.unused++
		f.unusedBytes += a.Size
	}
	fmt.Fprintf(f.out, "%d records, %d artifacts, %s read: %d damaged, %d not what the record says, %d without a record (%d made), %d unreadable; %d records whose artifact is gone, %s older than --record-retention, %s (%s) of no artifact\n",
		f.records, f.read, units.BytesSize(float64(f.bytes)), f.damaged, f.different, f.unrecorded, f.made, f.broken, f.gone, count(f.old, "artifact"),
		count(f.unused, "archive"), units.BytesSize(float64(f.unusedBytes)))
	if bad := f.damaged + f.different + f.broken + f.unrecorded - f.made; bad > 0 {
		return fmt.Errorf("%s wrong; what is damaged or unreadable is built again by POST with rebuild=1, missing records come back with --rebuild-records", count(bad, "thing"))
	}
	return nil
}

// readArtifacts reads all that the store holds.
func (f *fsck) readArtifacts(ctx context.Context) error {
	for m, err := range f.artifacts.Metas(ctx) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil && !errors.Is(err, artifact.ErrCorrupt) {
			return err // and the last: there may be more
		}
		if err != nil {
			f.broken++
			fmt.Fprintln(f.out, "unreadable:", err)
			continue
		}
		slot := m.Key.Slot()
		f.slots[slot] = m
		f.read++
		f.bytes += m.Artifact.Size
		err = f.artifacts.Verify(ctx, m)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, artifact.ErrUnavailable) {
			return err
		}
		if err == nil {
			continue
		}
		if now, lookErr := f.artifacts.Lookup(ctx, slot); lookErr == nil && now.BuildID != m.BuildID || errors.Is(lookErr, artifact.ErrNotFound) && !errors.Is(lookErr, artifact.ErrCorrupt) {
			continue // replaced or evicted while it was read
		}
		f.damaged++
		fmt.Fprintf(f.out, "damaged: %s: %v\n", title(m.Key), err)
	}
	return nil
}

// readRecords holds the records of all builds against the store.
func (f *fsck) readRecords(ctx context.Context) (recorded map[build.ID]bool, err error) {
	recorded = map[build.ID]bool{}
	filter := queue.Filter{}
	for more := true; more; {
		var page []build.Build
		page, more, err = f.queue.List(ctx, filter)
		if err != nil {
			return nil, err
		}
		for _, b := range page {
			recorded[b.ID] = true
			if err := f.record(ctx, b); err != nil {
				return nil, err
			}
		}
		if len(page) == 0 {
			break
		}
		filter.After = page[len(page)-1].ID
	}
	return recorded, nil
}

func (f *fsck) record(ctx context.Context, b build.Build) error {
	f.records++
	if b.State != build.Succeeded || b.Artifact == nil {
		return nil
	}
	m, ok := f.slots[b.Slot()]
	if !ok {
		var err error
		m, err = f.artifacts.Lookup(ctx, b.Slot()) // stored since
		if errors.Is(err, artifact.ErrNotFound) {
			f.gone++
			return nil
		}
		if err != nil {
			return err
		}
	}
	if m.BuildID == b.ID && m.Artifact != *b.Artifact {
		f.different++
		fmt.Fprintf(f.out, "different: build %s of %s recorded SHA-256 %s, the store has %s\n", b.ID, title(b.Key), b.Artifact.SHA256, m.Artifact.SHA256)
	}
	return nil
}

// unknown is about an artifact whose build has no record.
func (f *fsck) unknown(ctx context.Context, m artifact.Meta) error {
	_, err := f.queue.Get(ctx, m.BuildID)
	if err == nil { // it came while we read
		return nil
	}
	if !errors.Is(err, queue.ErrNotFound) {
		return err
	}
	if !f.rebuild && time.Since(m.CreatedAt) > f.retention {
		f.old++
		return nil
	}
	f.unrecorded++
	if !f.rebuild {
		fmt.Fprintf(f.out, "without a record: build %s of %s\n", m.BuildID, title(m.Key))
		return nil
	}
	if err := f.queue.Restore(ctx, m.Build()); err != nil {
		return err
	}
	f.made++
	fmt.Fprintf(f.out, "record made: build %s of %s\n", m.BuildID, title(m.Key))
	return nil
}

func title(k build.Key) string {
	return k.Repository.String() + " " + k.Platform() + " " + k.Version
}
