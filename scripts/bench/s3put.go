package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/artifact/s3store"
	"github.com/monochromegane/cargo/build"
)

// s3Puts is the argument that makes this program a process that puts one
// artifact into an S3 store and tells what memory that took.
const s3Puts = "s3-put"

const s3PutBytes = 100_000_000

// An s3Put is what such a process is told, and memory what it answers.
type s3Put struct {
	Storage string // as cargo serve takes it
	Scratch string
}

// memory is of a process, in MB: what it was before, and the most that it was since.
type memory struct{ Before, Most float64 }

// s3Memory measures what an upload adds to a process that does nothing else.
func (l *lab) s3Memory(ctx context.Context) error {
	var p pair
	for range l.rounds {
		err := l.onS3(ctx, func(args, env []string) error {
			return l.inDir("put-", func(dir string) error {
				c, err := startChild(ctx, filepath.Join(dir, "put.log"), env, s3Puts, s3Put{Storage: args[1], Scratch: filepath.Join(dir, "scratch")})
				if err != nil {
					return err
				}
				var m memory
				if err := c.hear(&m); err != nil {
					return err
				}
				p.base, p.got = append(p.base, m.Before), append(p.got, m.Most)
				return c.end()
			})
		})
		if err != nil {
			return err
		}
	}
	l.report.megabytes("S3 store: put of 100 MB, memory", "before", p, &rule{factor: 1, plus: 64})
	return nil
}

func runS3Put(ctx context.Context, in *json.Decoder, out *json.Encoder) error {
	var p s3Put
	if err := in.Decode(&p); err != nil {
		return err
	}
	o, err := s3store.ParseURL(p.Storage)
	if err != nil {
		return err
	}
	o.Scratch, o.Log = p.Scratch, slog.New(slog.NewTextHandler(os.Stderr, nil))
	s, err := s3store.Open(ctx, o)
	if err != nil {
		return err
	}
	// 5 makes the most that it was what it is now.
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		return err
	}
	var m memory
	if m.Before, err = ownMemory("VmHWM"); err != nil {
		return err
	}
	meta := artifact.Meta{
		Key: build.Key{
			Target: build.Target{Repository: build.Repository{Remote: remote, Owner: "bench", Name: "put"}, GOOS: "linux", GOARCH: runtime.GOARCH, Version: "v1"},
			Commit: "0123456789abcdef0123456789abcdef01234567", Image: "sha256:none",
		},
		BuildID: build.NewID(), Attempt: 1,
	}
	meta, err = s.Put(ctx, meta, artifact.PutOptions{}, writeRandom)
	if err != nil {
		return err
	}
	if m.Most, err = ownMemory("VmHWM"); err != nil {
		return err
	}
	if meta.Artifact.Size != s3PutBytes {
		return fmt.Errorf("%d bytes were stored, %d were put", meta.Artifact.Size, s3PutBytes)
	}
	if err := s.Verify(ctx, meta); err != nil {
		return err
	}
	return out.Encode(m)
}

// writeRandom writes s3PutBytes that nothing makes smaller.
func writeRandom(w io.Writer) error {
	_, err := io.CopyN(w, rand.NewChaCha8([32]byte{}), s3PutBytes)
	return err
}

// ownMemory reads one line of /proc/self/status, in MB.
func ownMemory(name string) (float64, error) {
	u := usage{}
	if err := u.sample(os.Getpid(), name); err != nil {
		return 0, err
	}
	return u.peak(name), nil
}
