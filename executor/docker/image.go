package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/monochromegane/cargo/executor"
)

// holdRepository is the repository of the tags that keep the images of
// EnsureImage from being pruned. The tag is the configuration's digest.
const holdRepository = "localhost/cargo/image"

// progressInterval is the least time between two reports of a transfer.
const progressInterval = 2 * time.Second

// EnsureImage makes the daemon hold an image for this machine's platform and
// tells how to name it in a step. ref is a registry reference, pulled if the
// daemon has no such image, or the path of a docker-save or OCI archive, loaded
// if the daemon has no image with its configuration. What begins with a slash
// or a dot, ends in .tar or is a file is a path. The daemon fetches from
// registries with its own settings (mirrors; plain http on loopback) and
// without credentials.
//
// EnsureImage tags the image localhost/cargo/image:sha256-DIGEST, so that
// `docker image prune` passes over it. What else removes the image makes Run
// return executor.ErrNoImage.
//
// Image.Digest is the configuration's, except for a pulled image on a daemon
// that keeps its images in containerd (the default of new installations since
// Docker 29): the API has only the manifest's digest there.
//
// progress, which may be nil, is called with messages and slog attributes.
func (e *Executor) EnsureImage(ctx context.Context, ref string, progress func(msg string, args ...any)) (executor.Image, error) {
	if progress == nil {
		progress = func(string, ...any) {}
	}
	if isArchive(ref) {
		return e.load(ctx, ref, progress)
	}
	if _, err := reference.ParseDockerRef(ref); err != nil {
		return executor.Image{}, fmt.Errorf("image %q is neither a file nor a reference in a registry: %w", ref, err)
	}
	return e.pull(ctx, ref, progress)
}

func isArchive(ref string) bool {
	if strings.HasPrefix(ref, "/") || strings.HasPrefix(ref, ".") || strings.HasSuffix(ref, ".tar") {
		return true
	}
	info, err := os.Stat(ref)
	return err == nil && info.Mode().IsRegular()
}

func (e *Executor) pull(ctx context.Context, ref string, progress func(string, ...any)) (executor.Image, error) {
	img, err := e.client.ImageInspect(ctx, ref)
	if err != nil && !errdefs.IsNotFound(err) {
		return executor.Image{}, e.fault("inspect image "+ref, err)
	}
	if err != nil || img.Os != "linux" || img.Architecture != runtime.GOARCH {
		if err := e.fetch(ctx, ref, progress); err != nil {
			return executor.Image{}, err
		}
		if img, err = e.client.ImageInspect(ctx, ref); err != nil {
			return executor.Image{}, e.fault("inspect image "+ref, err)
		}
		if img.Os != "linux" || img.Architecture != runtime.GOARCH {
			return executor.Image{}, fmt.Errorf("image %s is for %s/%s, not for linux/%s", ref, img.Os, img.Architecture, runtime.GOARCH)
		}
	}
	if err := e.hold(ctx, img.ID, img.ID); err != nil {
		return executor.Image{}, err
	}
	return executor.Image{Ref: img.ID, Digest: img.ID}, nil
}

func (e *Executor) fetch(ctx context.Context, ref string, progress func(string, ...any)) error {
	progress("pulling image", "image", ref)
	stream, err := e.client.ImagePull(ctx, ref, client.ImagePullOptions{
		Platforms: []ocispec.Platform{{OS: "linux", Architecture: runtime.GOARCH}},
	})
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("pull: %w: %s: %v", executor.ErrNoImage, ref, err)
	}
	if err != nil {
		return e.fault("pull image "+ref, err)
	}
	defer stream.Close()
	report := every(progressInterval)
	done := make(map[string]int64) // bytes per layer
	for m, err := range stream.JSONMessages(ctx) {
		if err != nil {
			return e.fault("pull image "+ref, err)
		}
		if m.Error != nil {
			return fmt.Errorf("pull image %s: %w", ref, m.Error)
		}
		if m.Status == "Downloading" && m.Progress != nil {
			done[m.ID] = m.Progress.Current
		}
		if report() {
			progress("pulling image", "image", ref, "done_bytes", sum(done))
		}
	}
	progress("pulled image", "image", ref)
	return nil
}

// load makes the daemon hold the image of an archive.
func (e *Executor) load(ctx context.Context, path string, progress func(string, ...any)) (executor.Image, error) {
	a, err := openArchive(path)
	if err != nil {
		return executor.Image{}, fmt.Errorf("image archive %s: %w", path, err)
	}
	defer a.Close()
	// A daemon that keeps images in containerd does not know them by their configuration, only by the tag.
	for _, name := range []string{a.digest, held(a.digest)} {
		img, err := e.client.ImageInspect(ctx, name)
		if err == nil {
			return executor.Image{Ref: img.ID, Digest: a.digest}, e.hold(ctx, img.ID, a.digest)
		}
		if !errdefs.IsNotFound(err) {
			return executor.Image{}, e.fault("inspect image "+name, err)
		}
	}
	progress("loading image", "archive", path, "bytes", a.size)
	if err := e.send(ctx, a, progress); err != nil {
		return executor.Image{}, fmt.Errorf("load image archive %s: %w", path, err)
	}
	img, err := e.client.ImageInspect(ctx, held(a.digest))
	if err != nil {
		return executor.Image{}, e.fault("inspect the image loaded from "+path, err)
	}
	progress("loaded image", "archive", path, "digest", a.digest)
	return executor.Image{Ref: img.ID, Digest: a.digest}, nil
}

// send streams the archive to the daemon, with the tag of held as the only one.
func (e *Executor) send(ctx context.Context, a *archive, progress func(string, ...any)) error {
	r, w := io.Pipe()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		report := every(progressInterval)
		w.CloseWithError(a.writeTo(w, held(a.digest), func(n int64) {
			if report() {
				progress("loading image", "archive", a.path, "done_bytes", n, "bytes", a.size)
			}
		}))
	}()
	defer func() { r.Close(); <-sent }()
	result, err := e.client.ImageLoad(ctx, r)
	if err != nil {
		return e.fault("send", err)
	}
	defer result.Close()
	for dec := json.NewDecoder(result); ; {
		var m jsonstream.Message
		if err := dec.Decode(&m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return e.fault("read the answer", err)
		}
		if m.Error != nil {
			return m.Error
		}
	}
}

// hold tags the image id as the one of the configuration with digest.
func (e *Executor) hold(ctx context.Context, id, digest string) error {
	if _, err := e.client.ImageTag(ctx, client.ImageTagOptions{Source: id, Target: held(digest)}); err != nil {
		return e.fault("tag image "+id, err)
	}
	return nil
}

// held is the name of the tag for a digest.
func held(digest string) string {
	return holdRepository + ":" + strings.ReplaceAll(digest, ":", "-")
}

// every returns a function that is true at most once each interval, and not at
// first.
func every(interval time.Duration) func() bool {
	last := time.Now()
	return func() bool {
		if time.Since(last) < interval {
			return false
		}
		last = time.Now()
		return true
	}
}

func sum(m map[string]int64) (n int64) {
	for _, v := range m {
		n += v
	}
	return n
}
