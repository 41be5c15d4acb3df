package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// memory measures what a build adds to a server that has not built anything yet.
func (l *lab) memory(ctx context.Context) error {
	for _, c := range []struct {
		label, app string
		args       []string
		plus       float64
	}{
		{"server's memory, fzf", fzf, nil, 20},
		{"server's memory, log of 100 MB", chatty, []string{"--log-limit", "200MiB"}, 32},
	} {
		var whole, anonymous pair
		for range l.rounds {
			err := l.serve(ctx, l.warm, c.args, func(s *server) error { return l.watchBuild(ctx, s, c.label, c.app, &whole, &anonymous) })
			if err != nil {
				return err
			}
		}
		l.report.megabytes(c.label, "idle", whole, &rule{factor: 1, plus: c.plus})
		l.report.megabytes(c.label+", without its files", "idle", anonymous, nil)
	}
	return nil
}

// watchBuild samples the memory of s before and while it builds. The program's
// own file is part of the whole, as far as it has been read.
func (l *lab) watchBuild(ctx context.Context, s *server, label, name string, whole, anonymous *pair) error {
	idle, err := s.watch(func() error {
		select {
		case <-time.After(2 * time.Second):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	if err != nil {
		return err
	}
	var r record
	busy, err := s.watch(func() (err error) {
		r, err = l.build(ctx, s, label, name, "linux", catalog[name].version)
		return err
	})
	if err != nil {
		return err
	}
	if name == chatty {
		n, err := s.logSize(ctx, r.ID)
		if err != nil {
			return err
		}
		if n < logBytes {
			return fmt.Errorf("the log has %d bytes, and %d were printed", n, logBytes)
		}
	}
	whole.base = append(whole.base, idle.middle("VmRSS"))
	whole.got = append(whole.got, busy.peak("VmRSS"))
	anonymous.base = append(anonymous.base, idle.middle("RssAnon"))
	anonymous.got = append(anonymous.got, busy.peak("RssAnon"))
	progress("%6.1f MB at most, %.1f idle: %s", busy.peak("VmRSS"), idle.middle("VmRSS"), label)
	return nil
}

// usage is samples in MB by the names of /proc/PID/status.
type usage map[string][]float64

func (u usage) middle(name string) float64 { return samples(u[name]).middle() }
func (u usage) peak(name string) float64   { return slices.Max(u[name]) }

// watch samples the memory of the process while f runs.
func (p *process) watch(f func() error) (usage, error) {
	u, stop, stopped := usage{}, make(chan struct{}), make(chan error)
	go func() {
		for {
			if err := u.sample(p.pid(), "VmRSS", "RssAnon"); err != nil {
				stopped <- err
				return
			}
			select {
			case <-time.After(10 * time.Millisecond):
			case <-stop:
				stopped <- nil
				return
			}
		}
	}()
	err := f()
	close(stop)
	if sampleErr := <-stopped; err == nil {
		err = sampleErr
	}
	return u, err
}

// sample reads the lines of these names once.
func (u usage) sample(pid int, names ...string) error {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		if !slices.Contains(names, name) {
			continue
		}
		kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
		if err != nil {
			return fmt.Errorf("%s of %d: %w", name, pid, err)
		}
		u[name] = append(u[name], kib*1024/1e6)
	}
	return nil
}
