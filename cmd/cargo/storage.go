package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/artifact/s3store"
	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/buildlog"
	"github.com/monochromegane/cargo/httpserver"
	"github.com/monochromegane/cargo/worker"
)

// A storage is where artifacts are kept: in a directory, or on S3.
type storage struct {
	dir   string           // "" for S3
	s3    *s3store.Options // nil for a directory
	proxy bool             // what is on S3 goes through this server
}

func (p *parser) storage(fallback string) storage {
	text, dir := p.c.String("storage"), p.c.String("storage-dir")
	s := storage{proxy: p.c.Bool("s3-proxy")}
	switch {
	case text != "" && dir != "":
		p.fail("--storage and --storage-dir say the same; leave one out")
	case text == "":
		s.dir = p.dir("storage-dir", fallback)
	case strings.HasPrefix(text, "s3://"):
		o, err := s3store.ParseURL(text)
		if err != nil {
			p.fail("--storage: %v", err)
			return s
		}
		s.s3 = &o
	default:
		s.dir = p.storageDir(text)
	}
	if s.proxy && s.s3 == nil {
		p.fail("--s3-proxy is for --storage s3://..., which is not set")
	}
	return s
}

func (p *parser) storageDir(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "file" || u.Host != "" || u.RawQuery != "" || !filepath.IsAbs(u.Path) {
		p.fail("--storage %q: want file:///DIR or s3://BUCKET/PREFIX", text)
		return ""
	}
	return filepath.Clean(u.Path)
}

// A store keeps artifacts, and the logs of builds that have ended.
type store interface {
	worker.Artifacts
	httpserver.Artifacts
	buildlog.Archive
	Metas(ctx context.Context) iter.Seq2[artifact.Meta, error]
	Unused(ctx context.Context) iter.Seq2[build.Artifact, error]
	Verify(ctx context.Context, m artifact.Meta) error
	Bytes() int64
}

// A signer is a store whose files callers can fetch themselves.
type signer interface {
	SignedURL(ctx context.Context, m artifact.Meta, ttl time.Duration) (string, error)
}

// openStore opens what --storage names; for a look, nothing in it is tidied up.
func openStore(ctx context.Context, cfg config, look bool, log *slog.Logger) (store, error) {
	if cfg.storage.s3 == nil {
		if _, err := os.Stat(cfg.storage.dir); look && err != nil {
			return nil, usageError{fmt.Errorf("--storage %s: there are no artifacts to look at: %w", cfg.storage.dir, cause(err))}
		}
		s, err := artifact.Open(cfg.storage.dir, artifact.Options{Limit: cfg.quotas.storage, Keep: look, Log: log})
		if err != nil {
			return nil, err
		}
		return s, nil
	}
	o := *cfg.storage.s3
	o.Scratch, o.Keep, o.Log = filepath.Join(cfg.dataDir, "scratch"), look, log
	s, err := s3store.Open(ctx, o)
	if errors.Is(err, artifact.ErrUnavailable) {
		return nil, fmt.Errorf("--storage: %w; see that the S3 server runs, and that endpoint= is its address", err)
	}
	if err != nil {
		return nil, usageError{fmt.Errorf("--storage: %w", err)}
	}
	return s, nil
}
