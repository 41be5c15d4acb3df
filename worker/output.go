package worker

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
)

// collect finds what the build made: in the plan's output directory, or in
// the tree; or, where a Makefile installs instead, in GOPATH's bin.
func (j *job) collect(ctx context.Context) (err error) {
	o := artifact.CollectOptions{GOOS: j.build.GOOS, GOARCH: j.build.GOARCH, Limit: j.ArtifactLimit}
	if j.plan.Out != "" {
		j.out, j.made, err = j.gather(ctx, strings.TrimPrefix(j.plan.Out, goPath+"/"), o)
	} else {
		inTree := o
		inTree.Tracked, inTree.Ignored = j.tree.Tracked, j.tree.Ignored
		j.out, j.made, err = j.gather(ctx, strings.TrimPrefix(j.treeDir(), goDir+"/"), inTree)
		if !slices.ContainsFunc(j.made.Files, func(f artifact.File) bool { return f.Executable }) {
			if bin, made, binErr := j.gather(ctx, "bin", o); binErr == nil {
				j.out, j.made, err = bin, made, nil
			}
		}
	}
	for _, s := range j.made.Skipped {
		j.log.Log(slog.LevelWarn, "left out", slog.String("phase", string(build.PhaseCollect)), slog.String("file", s.Path), slog.String("why", s.Why))
	}
	for _, f := range j.made.Files {
		j.say("collected", build.PhaseCollect, slog.String("file", f.Path), slog.Int64("bytes", f.Size))
	}
	return err
}

// gather collects below dir of the build's directory. The build may have put
// anything in dir's place: what is no directory of its own holds no artifact.
func (j *job) gather(ctx context.Context, dir string, o artifact.CollectOptions) (*os.Root, artifact.Collected, error) {
	path := filepath.Join(goDir, dir)
	if fi, err := j.root.Lstat(path); err != nil || !fi.IsDir() {
		return nil, artifact.Collected{}, fmt.Errorf("%w: %s is gone", artifact.ErrNoArtifact, filepath.Join(goPath, dir))
	}
	root, err := j.root.OpenRoot(path)
	if err != nil {
		return nil, artifact.Collected{}, fmt.Errorf("%w: %s cannot be opened", artifact.ErrNoArtifact, filepath.Join(goPath, dir))
	}
	made, err := artifact.Collect(ctx, root, o)
	return root, made, err
}

// store packs what was collected and keeps it under the build's key.
func (j *job) store(ctx context.Context) error {
	meta, err := j.Artifacts.Put(ctx, artifact.Meta{
		Key:        j.build.Key,
		Public:     j.build.Public,
		CommitTime: j.tree.Time,
		BuildID:    j.build.ID,
		CreatedAt:  time.Now(),
		Artifact:   build.Artifact{Name: j.build.ArchiveName()},
	}, j.ArtifactLimit, func(w io.Writer) error {
		if err := artifact.Pack(ctx, w, j.out, j.made.Files, j.tree.Time); err != nil {
			return err
		}
		return context.Cause(ctx) // nothing of a build whose claim is lost is kept
	})
	if err != nil {
		return err
	}
	j.build.Artifact = &meta.Artifact
	j.Metrics.ArtifactStored(meta.Artifact.Size)
	j.say("stored", build.PhaseStore, slog.String("file", meta.Artifact.Name), slog.Int64("bytes", meta.Artifact.Size), slog.String("sha256", meta.Artifact.SHA256))
	return nil
}
