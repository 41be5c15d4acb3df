package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
)

// An output is what a build made in one of its directories.
type output struct {
	dir   string // in the container
	files []artifact.File
}

func (o output) hasProgram() bool {
	return slices.ContainsFunc(o.files, func(f artifact.File) bool { return f.Executable })
}

// collect finds what the build made: in the plan's output directory, or in
// the tree; or, where a Makefile installs instead, in GOPATH's bin.
func (j *job) collect(ctx context.Context) (err error) {
	o := artifact.CollectOptions{GOOS: j.build.GOOS, GOARCH: j.build.GOARCH, Limit: j.ArtifactLimit}
	if j.plan.Out != "" {
		j.made, err = j.gather(ctx, j.plan.Out, o)
	} else {
		j.made, err = j.gatherTree(ctx, o)
	}
	if err != nil {
		return err
	}
	for _, f := range j.made.files {
		j.say("collected", build.PhaseCollect, slog.String("file", f.Path), slog.Int64("bytes", f.Size))
	}
	return nil
}

func (j *job) gatherTree(ctx context.Context, o artifact.CollectOptions) (output, error) {
	inTree := o
	inTree.Tracked, inTree.Ignored = j.tree.Tracked, j.tree.Ignored
	made, err := j.gather(ctx, j.treeDir(), inTree)
	nothing := errors.Is(err, artifact.ErrNoArtifact)
	if made.hasProgram() || err != nil && !nothing && !errors.Is(err, artifact.ErrWrongPlatform) {
		return made, err
	}
	installed, binErr := j.gather(ctx, binDir, o)
	switch {
	case installed.hasProgram():
		return installed, nil
	case nothing && binErr != nil && !errors.Is(binErr, artifact.ErrNoArtifact):
		return output{}, binErr // something was installed, but cannot be taken
	}
	return made, err
}

// gather collects from a directory of the container, and logs what it leaves
// out. Without an error there are files.
func (j *job) gather(ctx context.Context, dir string, o artifact.CollectOptions) (output, error) {
	root, err := j.open(dir)
	if err != nil {
		return output{}, err
	}
	defer root.Close()
	c, err := artifact.Collect(ctx, root, o)
	for _, s := range c.Skipped {
		j.warn("left out", build.PhaseCollect, slog.String("file", s.Path), slog.String("why", s.Why))
	}
	if c.Omitted > 0 {
		j.warn("left out more", build.PhaseCollect, slog.Int("files", c.Omitted))
	}
	if err != nil {
		return output{}, err
	}
	return output{dir, c.Files}, nil
}

// open opens a directory of the container after its last step. The build may
// have put anything in its place: what is no directory holds no artifact.
func (j *job) open(dir string) (*os.Root, error) {
	fi, err := j.root.Lstat(inside(dir))
	if j.ailment(err) != "" {
		return nil, err
	}
	if err != nil || !fi.IsDir() {
		return nil, fmt.Errorf("%w: the build removed the directory %s or put something else in its place", artifact.ErrNoArtifact, dir)
	}
	return j.root.OpenRoot(inside(dir))
}

// storeTimeout is how long a build waits with what it made for a store that
// does not answer. It is on our account: the build could be made again, but
// that takes longer than most troubles of a store.
const storeTimeout = 10 * time.Minute

// maxStorePause is the longest pause between two tries to store.
const maxStorePause = 30 * time.Second

// store packs what was collected and keeps it under the build's key, unless
// ctx has ended or the claim is lost: nothing is kept then.
func (j *job) store(ctx context.Context) error {
	root, err := j.open(j.made.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	var meta artifact.Meta
	err = within(ctx, storeTimeout, errSlowStore, func(ctx context.Context) (err error) {
		meta, err = j.put(ctx, root)
		return err
	})
	if err != nil {
		return err
	}
	j.build.Artifact = &meta.Artifact
	j.Metrics.ArtifactStored(meta.Artifact.Size)
	j.say("stored", build.PhaseStore, slog.String("file", meta.Artifact.Name), slog.Int64("bytes", meta.Artifact.Size), slog.String("sha256", meta.Artifact.SHA256))
	return nil
}

// put tries until ctx ends to store what lies in root.
func (j *job) put(ctx context.Context, root *os.Root) (artifact.Meta, error) {
	m := artifact.Meta{
		Key:        j.build.Key,
		Public:     j.build.Public,
		CommitTime: j.tree.Time,
		BuildID:    j.build.ID,
		RefName:    j.build.RefName,
		AcceptedAt: j.build.AcceptedAt,
		StartedAt:  j.build.StartedAt,
		Executor:   j.Name,
		Attempt:    j.build.Attempt,
	}
	o := artifact.PutOptions{Limit: j.ArtifactLimit, Confirm: j.claim.Confirm}
	failing := pause{most: maxStorePause}
	for {
		stored, err := j.Artifacts.Put(ctx, m, o, func(w io.Writer) error {
			return artifact.Pack(ctx, w, root, j.made.files, j.tree.Time)
		})
		what := j.ailment(err)
		if what == "" || ctx.Err() != nil {
			return stored, err
		}
		j.Log.Warn("an artifact is not stored yet", "build", j.build.ID, "err", err)
		j.warn(what+" What your build made is stored as soon as that is over.", build.PhaseStore)
		failing.take(ctx)
	}
}
