package main

import (
	"context"
	"fmt"
	"time"
)

// A benchCase is one row or more of the report.
type benchCase struct {
	name    string
	about   string
	systems []string // that the apps are built for
	apps    []string
	run     func(*lab, context.Context) error
}

var linux = preparedOn[:1]

var cases = []benchCase{
	{"hey", "its first build ever, its next commit", linux, []string{hey}, firstAndNext(hey, 600*time.Millisecond)},
	{"fzf", "its first build ever, its next commit", linux, []string{fzf}, firstAndNext(fzf, 800*time.Millisecond)},
	{"gum", "its first build ever, its next commit", linux, []string{gum}, firstAndNext(gum, 800*time.Millisecond)},
	{"second-repo", "first build of a repository with the dependencies of gum", linux, []string{gum, second}, (*lab).secondRepo},
	{"second-target", "windows after linux", preparedOn, []string{hey, fzf}, (*lab).secondTarget},
	{"at-once", "4 different first builds at once, two at a time", linux, []string{hey, peco, fzf, gum}, (*lab).atOnce},
	{"memory", "what a build adds to the server", linux, []string{fzf, chatty}, (*lab).memory},
	{"queue", "10,000 builds submitted, and a server that starts with them", linux, []string{crowd}, (*lab).queued},
	{"log-line", "from the container to who follows the log, at 10,000 lines a second", linux, []string{ticker}, (*lab).lines},
	{"download", "8 connections, against nginx", linux, []string{bulky}, (*lab).download},
	{"workers", "1 and 4 on a cluster, with an executor that does nothing", linux, []string{crowd}, (*lab).workers},
	{"s3-memory", "what an upload of 100 MB to S3 adds to a process", nil, nil, (*lab).s3Memory},
	{"old-way", "hey in a Docker container with empty caches", linux, []string{hey}, (*lab).oldWay},
}

var firstBuild = &rule{factor: 1.3, plus: 0.7}

// firstAndNext measures the first build of an app, and that of its next commit.
func firstAndNext(name string, slack time.Duration) func(*lab, context.Context) error {
	return func(l *lab, ctx context.Context) error {
		var first, next pair
		for range l.rounds {
			if err := l.bare.with(ctx, func(c bareCache) error { return c.firstAndNext(ctx, name, &first, &next) }); err != nil {
				return err
			}
			err := l.serve(ctx, l.warm, nil, func(s *server) error {
				r, err := l.build(ctx, s, name+", first", name, "linux", catalog[name].version)
				if err != nil {
					return err
				}
				first.got.add(r.took())
				r, err = l.build(ctx, s, name+", next commit", name, "linux", nextCommit)
				next.got.add(r.took())
				return err
			})
			if err != nil {
				return err
			}
		}
		l.firsts[name] = first.got.median()
		l.report.seconds(name+", first build", "bare", first, firstBuild)
		l.report.seconds(name+", next commit", "bare", next, &rule{factor: 1, plus: slack.Seconds()})

		cold := pair{base: first.base}
		err := l.serve(ctx, l.prepared, nil, func(s *server) error {
			r, err := l.build(ctx, s, name+", first, no module there", name, "linux", catalog[name].version)
			cold.got.add(r.took())
			return err
		})
		if err != nil {
			return err
		}
		l.report.seconds(name+", first build, modules from the wire", "bare", cold, nil)
		return nil
	}
}

func (c bareCache) firstAndNext(ctx context.Context, name string, first, next *pair) error {
	took, err := c.build(ctx, name+", first", name, "linux", catalog[name].version)
	if err != nil {
		return err
	}
	first.base.add(took)
	took, err = c.build(ctx, name+", next commit", name, "linux", nextCommit)
	next.base.add(took)
	return err
}

// A step is one build of two in a row.
type step struct{ label, app, goos string }

// after measures the second build of two in a row, on both sides.
func (l *lab) after(ctx context.Context, before, measured step) (p pair, err error) {
	for range l.rounds {
		err := l.bare.with(ctx, func(c bareCache) error {
			if _, err := c.build(ctx, before.label, before.app, before.goos, catalog[before.app].version); err != nil {
				return err
			}
			took, err := c.build(ctx, measured.label, measured.app, measured.goos, catalog[measured.app].version)
			p.base.add(took)
			return err
		})
		if err != nil {
			return p, err
		}
		err = l.serve(ctx, l.warm, nil, func(s *server) error {
			if _, err := l.build(ctx, s, before.label, before.app, before.goos, catalog[before.app].version); err != nil {
				return err
			}
			r, err := l.build(ctx, s, measured.label, measured.app, measured.goos, catalog[measured.app].version)
			p.got.add(r.took())
			return err
		})
		if err != nil {
			return p, err
		}
	}
	return p, nil
}

func (l *lab) secondRepo(ctx context.Context) error {
	p, err := l.after(ctx, step{"gum, before it", gum, "linux"}, step{"second repository", second, "linux"})
	if err != nil {
		return err
	}
	l.report.seconds("second repository with gum's modules", "bare after gum", p, firstBuild)
	return nil
}

func (l *lab) secondTarget(ctx context.Context) error {
	for _, name := range []string{hey, fzf} {
		p, err := l.after(ctx, step{name + ", linux before it", name, "linux"}, step{name + ", windows", name, "windows"})
		if err != nil {
			return err
		}
		l.report.seconds(name+", second target", "bare after linux", p, firstBuild)
	}
	return nil
}

// atOnce builds apps that share no module worth mentioning, one after another
// and all at once, each time on a server that has built nothing yet.
func (l *lab) atOnce(ctx context.Context) error {
	names := []string{hey, peco, fzf, gum}
	alone := map[string]time.Duration{}
	var total, worstWait, worstRun pair
	for range l.rounds {
		err := l.serve(ctx, l.warm, nil, func(s *server) error {
			var sum time.Duration
			for _, name := range names {
				r, err := l.build(ctx, s, name+", alone", name, "linux", catalog[name].version)
				if err != nil {
					return err
				}
				alone[name] = r.took()
				sum += r.took()
			}
			total.base.add(sum)
			return nil
		})
		if err != nil {
			return err
		}
		if err := l.serve(ctx, l.warm, nil, func(s *server) error { return l.together(ctx, s, names, alone, &total, &worstWait, &worstRun) }); err != nil {
			return err
		}
	}
	l.report.seconds("4 first builds at once", "one after another", total, &rule{factor: 1})
	l.report.seconds("slowest of them, accepted to finished", "alone", worstWait, &rule{factor: 3})
	l.report.seconds("slowest of them, started to finished", "alone", worstRun, nil)
	return nil
}

// together builds apps at once and compares the one that suffers most with its time alone.
func (l *lab) together(ctx context.Context, s *server, names []string, alone map[string]time.Duration, total, worstWait, worstRun *pair) error {
	var ids []string
	for _, name := range names {
		id, err := s.post(ctx, target(name, "linux", catalog[name].version))
		if err != nil {
			return err
		}
		ids = append(ids, id)
	}
	var from, to time.Time
	var waited, ran suffering
	for i, name := range names {
		r, err := s.wait(ctx, ids[i])
		if err != nil {
			return fmt.Errorf("%s, at once: %w", name, err)
		}
		l.report.build(name+", at once", r)
		if from.IsZero() || r.Accepted.Before(from) {
			from = r.Accepted
		}
		if r.Finished.After(to) {
			to = r.Finished
		}
		waited.consider(alone[name], r.took())
		ran.consider(alone[name], r.Finished.Sub(r.Started))
	}
	total.got.add(to.Sub(from))
	waited.addTo(worstWait)
	ran.addTo(worstRun)
	return nil
}

// suffering is a build that took longer than alone.
type suffering struct{ alone, took time.Duration }

// consider keeps the build with the greater ratio.
func (s *suffering) consider(alone, took time.Duration) {
	if s.alone == 0 || took.Seconds()/alone.Seconds() > s.took.Seconds()/s.alone.Seconds() {
		*s = suffering{alone, took}
	}
}

func (s suffering) addTo(p *pair) {
	p.base.add(s.alone)
	p.got.add(s.took)
}
