package containerd

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/monochromegane/cargo/executor"
)

// A progressFunc is told what takes time, in words and key-value pairs.
type progressFunc = func(msg string, args ...any)

// archiveName is what images from archives are called, with the digest of
// their configuration as a tag. The tag in the archive does not serve: it may
// mean something else tomorrow.
const archiveName = "localhost/cargo/archive"

// importLease bounds how long containerd keeps the pieces of an import or pull
// that was cut off and never reaped.
const importLease = 24 * time.Hour

// EnsureImage makes containerd hold the image that ref names, unpacked and for
// the platform of this host: the path of a docker-save or OCI archive, where
// there is such a file, or else a reference in a registry. What is there is
// neither imported nor pulled again. progress, if not nil, is told in words
// and key-value pairs what takes time. A registry on the loopback is asked
// over plain HTTP.
func (e *Executor) EnsureImage(ctx context.Context, ref string, progress func(msg string, args ...any)) (executor.Image, error) {
	e.ensuring.Lock()
	defer e.ensuring.Unlock()
	if progress == nil {
		progress = func(string, ...any) {}
	}
	ensure := e.fromRegistry
	if isArchive(ref) {
		ensure = e.fromArchive
	}
	img, err := ensure(e.in(ctx), ref, progress)
	if err != nil {
		return executor.Image{}, e.fault("image "+ref, err)
	}
	return img, nil
}

func (e *Executor) fromArchive(ctx context.Context, file string, progress progressFunc) (executor.Image, error) {
	want, err := configDigest(file, platforms.Default())
	if err != nil {
		return executor.Image{}, err
	}
	name := archiveName + ":" + want.Algorithm().String() + "-" + want.Encoded()
	img, err := e.ensure(ctx, name, progress, func(ctx context.Context) error { return e.load(ctx, file, name, progress) })
	if err == nil && img.Digest != want.String() {
		err = fmt.Errorf("containerd has configuration %s under %s", img.Digest, name)
	}
	return img, err
}

func (e *Executor) fromRegistry(ctx context.Context, ref string, progress progressFunc) (executor.Image, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return executor.Image{}, fmt.Errorf("neither a file nor a reference in a registry: %w", err)
	}
	name := named.String()
	return e.ensure(ctx, name, progress, func(ctx context.Context) error { return e.pull(ctx, name, progress) })
}

// ensure makes sure that the image name is there, by fetch if it is not, and unpacked.
func (e *Executor) ensure(ctx context.Context, name string, progress progressFunc, fetch func(context.Context) error) (executor.Image, error) {
	img, err := e.client.GetImage(ctx, name)
	if errdefs.IsNotFound(err) {
		start := time.Now()
		if err := e.leased(ctx, fetch); err != nil {
			return executor.Image{}, err
		}
		progress("image is here", "image", name, "seconds", time.Since(start).Seconds())
		img, err = e.client.GetImage(ctx, name)
	}
	if err != nil {
		return executor.Image{}, err
	}
	config, err := e.unpacked(ctx, img, progress)
	if err != nil {
		return executor.Image{}, err
	}
	return executor.Image{Ref: name, Digest: config.String()}, nil
}

// isArchive reports whether ref is meant as a path.
func isArchive(ref string) bool {
	if strings.HasPrefix(ref, "/") || strings.HasPrefix(ref, ".") {
		return true
	}
	fi, err := os.Stat(ref)
	return err == nil && fi.Mode().IsRegular()
}

// leased runs f under a lease that Reap finds.
func (e *Executor) leased(ctx context.Context, f func(context.Context) error) error {
	ctx, done, err := e.client.WithLease(ctx,
		leases.WithRandomID(),
		leases.WithExpiration(importLease),
		leases.WithLabels(map[string]string{ownerLabel: e.owner}))
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
		defer cancel()
		_ = done(ctx) // else it expires
	}()
	return f(ctx)
}

func (e *Executor) load(ctx context.Context, file, name string, progress progressFunc) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	progress("importing image", "archive", file, "bytes", fi.Size())
	_, err = e.client.Import(ctx, &progressReader{r: f, size: fi.Size(), progress: progress}, client.WithIndexName(name))
	return err
}

func (e *Executor) pull(ctx context.Context, name string, progress progressFunc) error {
	progress("pulling image", "image", name)
	layers := func(h images.Handler) images.Handler {
		return images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
			if images.IsLayerType(d.MediaType) {
				progress("pulling layer", "image", name, "layer", d.Digest, "bytes", d.Size)
			}
			return h.Handle(ctx, d)
		})
	}
	_, err := e.client.Pull(ctx, name,
		client.WithResolver(docker.NewResolver(docker.ResolverOptions{
			Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost)),
		})),
		client.WithPullSnapshotter(snapshotter),
		client.WithImageHandlerWrapper(layers))
	if errdefs.IsNotFound(err) {
		return noImage(name, err)
	}
	return err
}

// unpacked makes sure that img is for this host and that its layers are
// snapshots, and returns the digest of its configuration.
func (e *Executor) unpacked(ctx context.Context, img client.Image, progress progressFunc) (digest.Digest, error) {
	config, err := img.Config(ctx)
	if err != nil {
		return "", err
	}
	content, err := img.Spec(ctx)
	if err != nil {
		return "", err
	}
	if !platforms.Default().Match(content.Platform) {
		return "", fmt.Errorf("it is for %s, not for this host", platforms.Format(content.Platform))
	}
	ok, err := img.IsUnpacked(ctx, snapshotter)
	if err != nil || ok {
		return config.Digest, err
	}
	progress("unpacking image", "image", img.Name())
	start := time.Now()
	if err := e.leased(ctx, func(ctx context.Context) error { return img.Unpack(ctx, snapshotter) }); err != nil {
		return "", err
	}
	progress("image is unpacked", "image", img.Name(), "seconds", time.Since(start).Seconds())
	return config.Digest, nil
}

// An imageInfo is what a container takes from an image.
type imageInfo struct {
	digest   digest.Digest // of the manifest: all else follows from it
	env      []string
	snapshot string // of its uppermost layer
}

func (e *Executor) lookup(ctx context.Context, ref string) (imageInfo, error) {
	img, err := e.client.GetImage(ctx, ref)
	if errdefs.IsNotFound(err) {
		return imageInfo{}, noImage(ref, err)
	}
	if err != nil {
		return imageInfo{}, err
	}
	target := img.Target().Digest
	if last := e.lastImage.Load(); last != nil && last.digest == target {
		return *last, nil
	}
	layers, err := img.RootFS(ctx)
	if err != nil {
		return imageInfo{}, err
	}
	config, err := img.Spec(ctx)
	if err != nil {
		return imageInfo{}, err
	}
	info := imageInfo{digest: target, env: config.Config.Env, snapshot: identity.ChainID(layers).String()}
	e.lastImage.Store(&info)
	return info, nil
}

func noImage(ref string, err error) error {
	return fmt.Errorf("%w: %s (%w)", executor.ErrNoImage, ref, err)
}

// A progressReader tells of each tenth of a file that it has read.
type progressReader struct {
	r        io.Reader
	size     int64
	done     int64
	tenths   int64
	progress progressFunc
}

func (p *progressReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.done += int64(n)
	if tenths := p.done * 10 / max(p.size, 1); tenths > p.tenths {
		p.tenths = tenths
		p.progress("importing image", "percent", tenths*10)
	}
	return n, err
}
