package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	bulkyBytes    = 10_000_000 // of random: the archive is not smaller
	connections   = 8
	downloads     = 25 // over each connection in one turn
	downloadTurns = 3  // of each side
	tick          = time.Second / 100
)

// download compares what a gigabyte of downloads costs Cargo and nginx, which
// serves the same bytes with sendfile.
func (l *lab) download(ctx context.Context) error {
	return l.inDir("download-", func(dir string) error {
		return l.serveAs(ctx, serving{data: filepath.Join(dir, "data"), args: []string{"--address-rate", "0"}}, func(s *server) error {
			if err := s.ready(ctx); err != nil {
				return err
			}
			r, err := l.build(ctx, s, bulky, bulky, "linux", catalog[bulky].version)
			if err != nil {
				return err
			}
			archive, err := os.Create(filepath.Join(dir, "archive"))
			if err != nil {
				return err
			}
			defer archive.Close()
			size, err := l.fetch(ctx, s.url+r.Links.Download, archive)
			if err != nil {
				return err
			}
			n, err := l.startNginx(ctx, dir)
			if err != nil {
				return err
			}
			defer n.stop()
			return l.compare(ctx, s, s.url+r.Links.Download, n, n.url+"/archive", size)
		})
	})
}

// compare has both sides serve in turns.
func (l *lab) compare(ctx context.Context, s *server, ours string, n *nginx, theirs string, size int64) error {
	var p pair
	for range l.rounds * downloadTurns {
		cost, err := l.costOf(ctx, n.process, theirs, size)
		if err != nil {
			return err
		}
		p.base = append(p.base, cost)
		if cost, err = l.costOf(ctx, s.process, ours, size); err != nil {
			return err
		}
		p.got = append(p.got, cost)
		progress("%6.0f ms of a processor for a GB, nginx %.0f", p.got[len(p.got)-1], p.base[len(p.base)-1])
	}
	l.report.row(fmt.Sprintf("download of 10 MB, %d connections: CPU for a GB", connections), "nginx, sendfile", "ms", p, &rule{factor: 1.5})
	return nil
}

// costOf downloads over all connections, and returns what a GB of that cost the
// server, in ms of a processor.
func (l *lab) costOf(ctx context.Context, p *process, url string, size int64) (float64, error) {
	before, err := cpuTime(p.pid())
	if err != nil {
		return 0, err
	}
	var wg sync.WaitGroup
	errs := make([]error, connections)
	for i := range connections {
		wg.Go(func() {
			for range downloads {
				if n, err := l.fetch(ctx, url, io.Discard); err != nil || n != size {
					errs[i] = errors.Join(err, fmt.Errorf("download %s: %d bytes of %d", url, n, size))
					return
				}
			}
		})
	}
	wg.Wait()
	after, err := cpuTime(p.pid())
	if err := errors.Join(append(errs, err)...); err != nil {
		return 0, err
	}
	return float64((after - before).Milliseconds()) / (float64(size) * connections * downloads / 1e9), nil
}

// fetch downloads url into w.
func (l *lab) fetch(ctx context.Context, url string, w io.Writer) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := l.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	// The client shall cost little: large reads, and not those of io.Discard.
	return io.CopyBuffer(struct{ io.Writer }{w}, resp.Body, make([]byte, 256<<10))
}

// cpuTime is what a process and its children have used of the processors.
func cpuTime(pid int) (total time.Duration, err error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	for _, name := range stats {
		stat, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		id, parent, used, err := parseStat(stat)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
		if id == pid || parent == pid {
			total += used
		}
	}
	return total, nil
}

// parseStat reads /proc/PID/stat: the process, its parent, and its time.
func parseStat(stat []byte) (pid, parent int, used time.Duration, err error) {
	// The second field is a name, in which there may be anything.
	end := bytes.LastIndexByte(stat, ')')
	fields := strings.Fields(string(stat[end+1:]))
	if end < 0 || len(fields) < 13 {
		return 0, 0, 0, fmt.Errorf("%q is not what it should be", stat)
	}
	if _, err := fmt.Sscan(string(stat), &pid); err != nil {
		return 0, 0, 0, err
	}
	parent, err = strconv.Atoi(fields[1])
	for _, i := range []int{11, 12} { // utime and stime
		ticks, tickErr := strconv.ParseInt(fields[i], 10, 64)
		used += time.Duration(ticks) * tick
		err = errors.Join(err, tickErr)
	}
	return pid, parent, used, err
}
