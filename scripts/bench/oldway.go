package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// oldWay builds hey as the server of 2015 did: in a Docker container that
// clones and compiles, with empty caches. It is spared the wire: the modules
// are on the disk.
func (l *lab) oldWay(ctx context.Context) error {
	image, err := l.dockerImage(ctx)
	if err != nil {
		return err
	}
	var modules bytes.Buffer
	if err := command(ctx, "", nil, &modules, "go", "env", "GOMODCACHE"); err != nil {
		return err
	}
	var p pair
	for range l.rounds {
		took, err := l.buildInDocker(ctx, image, filepath.Join(strings.TrimSpace(modules.String()), "cache", "download"))
		if err != nil {
			return err
		}
		progress("%6.2f s the old way: hey", took.Seconds())
		p.base.add(took)
	}
	if l.firsts[hey] == 0 {
		err := l.serve(ctx, l.warm, nil, func(s *server) error {
			r, err := l.build(ctx, s, "hey, first", hey, "linux", catalog[hey].version)
			l.firsts[hey] = r.took()
			return err
		})
		if err != nil {
			return err
		}
	}
	p.got.add(l.firsts[hey])
	l.report.seconds("hey, first build", "the old way", p, &rule{factor: 1.0 / 6})
	return nil
}

// dockerImage is the name of the image in Docker, which has it afterwards.
func (l *lab) dockerImage(ctx context.Context) (string, error) {
	if info, err := os.Stat(l.image); err != nil || !info.Mode().IsRegular() {
		return l.image, command(ctx, "", nil, io.Discard, "docker", "pull", "-q", l.image)
	}
	var out bytes.Buffer
	if err := command(ctx, "", nil, &out, "docker", "load", "-q", "-i", l.image); err != nil {
		return "", err
	}
	_, name, ok := strings.Cut(strings.TrimSpace(out.String()), "Loaded image: ")
	if !ok {
		return "", fmt.Errorf("docker load said %q", out.String())
	}
	return name, nil
}

func (l *lab) buildInDocker(ctx context.Context, image, modules string) (took time.Duration, err error) {
	name := filepath.Base(l.scratch)
	args := []string{"run", "--rm", "--name", name, "--network", "host", "--volume", modules + ":/modules:ro"}
	for _, e := range append([]string{"HOME=/tmp", "GOPATH=/tmp/go", "GOCACHE=/tmp/cache", "GOPROXY=file:///modules", "GOSUMDB=off"}, goEnv...) {
		args = append(args, "--env", e)
	}
	a := catalog[hey]
	args = append(args, image, "sh", "-ec",
		fmt.Sprintf("git clone -q --branch %s %s/%s.git /tmp/src; cd /tmp/src; go build -trimpath -o /tmp/out/ .", a.version, l.apps.url, a.path))
	defer func() {
		if err != nil { // the client is gone, the container may not be
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			err = errors.Join(err, command(ctx, "", nil, io.Discard, "docker", "rm", "--force", "--volumes", name))
		}
	}()
	began := time.Now()
	err = command(ctx, "", nil, io.Discard, "docker", args...)
	return time.Since(began), err
}
