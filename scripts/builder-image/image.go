package main

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// reference names the image inside the archive.
const reference = "localhost/cargo-builder:go" + goVersion

// writeImage writes an image of the layers to out, with temporary files in dir,
// and returns the digest of its configuration.
func writeImage(ctx context.Context, dir, out string, layers ...files) (digest string, err error) {
	img := empty.Image
	for i, l := range layers {
		blob := filepath.Join(dir, string(rune('0'+i))+".tar.gz")
		if err := l.write(ctx, blob); err != nil {
			return "", err
		}
		layer, err := tarball.LayerFromFile(blob)
		if err != nil {
			return "", err
		}
		if img, err = mutate.Append(img, mutate.Addendum{Layer: layer, History: v1.History{
			Created: v1.Time{Time: stamp}, CreatedBy: "cargo scripts/builder-image",
		}}); err != nil {
			return "", err
		}
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return "", err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture, cf.Created = "linux", runtime.GOARCH, v1.Time{Time: stamp}
	cf.Config = v1.Config{
		Env:        []string{"PATH=/go/bin:/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		WorkingDir: "/go",
	}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		return "", err
	}
	ref, err := name.NewTag(reference)
	if err != nil {
		return "", err
	}
	config, err := img.ConfigName()
	if err != nil {
		return "", err
	}
	return config.String(), writeArchive(filepath.Join(dir, "image.tar"), out, ref, img)
}

// writeArchive writes img to tmp and renames that to out when it is complete.
func writeArchive(tmp, out string, ref name.Tag, img v1.Image) error {
	f, err := os.Create(tmp)
	if err != nil {
		return err
	}
	err = tarball.Write(ref, img, f)
	if err := cmp.Or(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, out)
}
