package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/gitsrc"
	"github.com/monochromegane/cargo/queue"
)

const (
	manyWorkers = 4
	atOnceEach  = 2 // builds that each works on
	inARow      = 6 // builds, for each of these
)

// workers compares how fast one worker and how fast many empty the queue of a
// cluster.
func (l *lab) workers(ctx context.Context) error {
	return l.inDir("workers-", func(dir string) error {
		c, err := l.startCluster(ctx, dir)
		if err != nil {
			return err
		}
		defer c.stop()
		q, err := queue.Open(ctx, queue.Options{Cluster: &queue.Cluster{URLs: c.urls}, Worker: "bench"})
		if err != nil {
			return err
		}
		var p pair
		for round := range l.rounds {
			for _, n := range []int{1, manyWorkers} {
				rate, workErr := l.emptyQueue(ctx, q, c, filepath.Join(dir, fmt.Sprintf("round-%d-of-%d", round, n)), n)
				if err = workErr; err != nil {
					return errors.Join(err, q.Close())
				}
				progress("%6.2f builds a second, %d workers", rate, n)
				if n == 1 {
					p.base = append(p.base, rate)
				} else {
					p.got = append(p.got, rate)
				}
			}
		}
		l.report.row(fmt.Sprintf("%d workers on a cluster of %d, no-op builds of %s", manyWorkers, clusterNodes, noopTime), "1 worker", "/s", p, &rule{factor: 3.8, least: true})
		return q.Close()
	})
}

// emptyQueue fills the queue, has n workers work on it, and returns how many
// builds that were in a second.
func (l *lab) emptyQueue(ctx context.Context, q *queue.Queue, c *cluster, dir string, n int) (rate float64, err error) {
	var all []*child
	defer func() {
		for _, w := range all {
			err = errors.Join(err, w.end())
		}
	}()
	for i := range n {
		w := noopWorker{Name: fmt.Sprintf("w%d", i), Dir: filepath.Join(dir, fmt.Sprint(i)), URLs: c.urls, Host: l.apps.url, Concurrency: atOnceEach}
		if err := os.MkdirAll(w.Dir, 0o755); err != nil {
			return 0, err
		}
		p, err := startChild(ctx, w.Dir+".log", nil, noopWorkers, w)
		if err != nil {
			return 0, err
		}
		all = append(all, p)
	}
	for _, w := range all {
		var ready string
		if err := w.hear(&ready); err != nil {
			return 0, err
		}
	}
	ids, err := l.enqueue(ctx, q, n*atOnceEach*inARow)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	for _, w := range all {
		if err := w.tell("begin"); err != nil {
			return 0, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for _, id := range ids {
		b, err := q.Wait(ctx, id)
		if err != nil {
			return 0, fmt.Errorf("wait for build %s: %w", id, err)
		}
		if b.State != build.Succeeded || b.Attempt != 1 {
			return 0, fmt.Errorf("build %s: %s %s at attempt %d: %s", id, b.State, b.Reason, b.Attempt, b.Message)
		}
	}
	return float64(len(ids)) / time.Since(began).Seconds(), nil
}

// enqueue puts n builds of the crowd's own repository into the queue, as the
// server does.
func (l *lab) enqueue(ctx context.Context, q *queue.Queue, n int) (ids []build.ID, err error) {
	source, err := newSource(l.apps.url)
	if err != nil {
		return nil, err
	}
	owner, name, _ := strings.Cut(catalog[crowd].path, "/")
	repo := build.Repository{Remote: remote, Owner: owner, Name: name}
	for i := range n {
		goos, goarch, _ := strings.Cut(crowdPlatforms[i/crowdRefs%len(crowdPlatforms)], "/")
		t := build.Target{Repository: repo, GOOS: goos, GOARCH: goarch, Version: crowdVersion(i)}
		ref, err := source.Resolve(ctx, repo, t.Version, gitsrc.Token{}, time.Minute)
		if err != nil {
			return nil, err
		}
		b := build.Build{ID: build.NewID(), Key: build.Key{Target: t, Commit: ref.Commit, Image: noopImage}, RefName: ref.Name, Public: ref.Public}
		if b, err = q.Submit(ctx, queue.Submission{Build: b}); err != nil {
			return nil, err
		}
		ids = append(ids, b.ID)
	}
	return ids, nil
}
