package main

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
)

const (
	s3Bucket = "bench"
	s3User   = "benchmark"
	s3Secret = "benchmark-secret"
)

// An s3Server is an S3 server on a directory.
type s3Server struct {
	*process
	endpoint string
}

// startS3 starts an S3 server below dir with one empty bucket.
func (l *lab) startS3(ctx context.Context, dir string) (*s3Server, error) {
	program, err := l.tool("versitygw", "versitygw")
	if err != nil {
		return nil, err
	}
	root := filepath.Join(dir, "s3")
	if err := os.MkdirAll(filepath.Join(root, s3Bucket), 0o755); err != nil {
		return nil, err
	}
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	env := []string{"ROOT_ACCESS_KEY=" + s3User, "ROOT_SECRET_KEY=" + s3Secret}
	p, err := start(ctx, root+".log", env, program, "--quiet", "--port", address, "posix", root)
	if err != nil {
		return nil, err
	}
	if err := p.listens(ctx, address); err != nil {
		p.stop()
		return nil, err
	}
	return &s3Server{p, "http://" + address}, nil
}

// onS3 has f use an S3 server: args and env are what cargo serve needs to.
func (l *lab) onS3(ctx context.Context, f func(args, env []string) error) error {
	return l.inDir("s3-", func(dir string) error {
		s3, err := l.startS3(ctx, dir)
		if err != nil {
			return err
		}
		defer s3.stop()
		where := url.URL{Scheme: "s3", Host: s3Bucket, Path: "/cargo", RawQuery: url.Values{"region": {"us-east-1"}, "endpoint": {s3.endpoint}}.Encode()}
		return f([]string{"--storage", where.String()}, []string{"AWS_ACCESS_KEY_ID=" + s3User, "AWS_SECRET_ACCESS_KEY=" + s3Secret})
	})
}
