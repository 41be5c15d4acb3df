package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	clients      = 32     // that submit at once
	queuedBuilds = 10_000 // that they submit
	pages        = 20     // that are read of the list, always the first
	scrapes      = 100
)

// queuedFigures are what queued measures, one sample a round.
type queuedFigures struct{ rate, slow, memory, page, scrape, slowScrape, healthy, start samples }

// queued submits builds to a server on which none starts, then measures a
// server that starts with them.
func (l *lab) queued(ctx context.Context) error {
	var f queuedFigures
	for range l.rounds {
		err := l.inDir("queued-", func(dir string) error {
			how := serving{data: filepath.Join(dir, "data"), args: []string{
				"--min-free", "1024PiB", // no build starts
				"--queue-limit", fmt.Sprint(2 * queuedBuilds), "--caller-builds", "0", "--address-rate", "0",
			}}
			submitted := 0.0
			err := l.serveAs(ctx, how, func(s *server) (err error) {
				submitted, err = l.submit(ctx, s, &f)
				return err
			})
			if err != nil {
				return err
			}
			began := time.Now()
			return l.serveAs(ctx, how, func(s *server) error { return l.restarted(ctx, s, began, submitted, &f) })
		})
		if err != nil {
			return err
		}
	}
	l.report.absolute(fmt.Sprintf("submit, %d clients", clients), "/s", f.rate, atLeast(300))
	l.report.absolute(fmt.Sprintf("submit, %d clients, p99", clients), "ms", f.slow, atMost(250))
	l.report.absolute("10,000 queued: server's memory", "MB", f.memory, atMost(200))
	l.report.absolute(fmt.Sprintf("10,000 queued: first page of the list, slowest of %d", pages), "ms", f.page, atMost(100))
	l.report.absolute("10,000 queued: scrape with the depth", "ms", f.scrape, atMost(5))
	l.report.absolute(fmt.Sprintf("10,000 queued: slowest of %d scrapes", scrapes), "ms", f.slowScrape, nil)
	l.report.absolute("10,000 queued: start until alive", "s", f.healthy, nil)
	l.report.absolute("10,000 queued: start until a POST is accepted", "s", f.start, atMost(3))
	return nil
}

// submit has the clients fill the queue. It returns the memory of the server,
// the most that it was.
func (l *lab) submit(ctx context.Context, s *server, f *queuedFigures) (memory float64, err error) {
	if err := s.accepts(ctx, crowdTarget(0)); err != nil {
		return 0, err
	}
	var (
		next  atomic.Int64 // the target that is in the queue already
		mu    sync.Mutex
		took  samples
		errs  []error
		wg    sync.WaitGroup
		began = time.Now()
	)
	u, err := s.watch(func() error {
		for range clients {
			wg.Go(func() {
				mine, err := submitSome(ctx, s, &next)
				mu.Lock()
				defer mu.Unlock()
				took, errs = append(took, mine...), append(errs, err)
			})
		}
		wg.Wait()
		return errors.Join(errs...)
	})
	if err != nil {
		return 0, err
	}
	f.rate = append(f.rate, float64(len(took))/time.Since(began).Seconds())
	f.slow = append(f.slow, took.quantile(.99)*1e3)
	return u.peak("VmRSS"), s.holds(ctx, queuedBuilds)
}

// submitSome submits until there is nothing left, and returns what each took.
func submitSome(ctx context.Context, s *server, next *atomic.Int64) (took samples, err error) {
	for n := next.Add(1); n < queuedBuilds; n = next.Add(1) {
		began := time.Now()
		if _, err := s.post(ctx, crowdTarget(int(n))); err != nil {
			return took, err
		}
		took.add(time.Since(began))
	}
	return took, nil
}

// restarted measures a server that began with a full queue. submitted is the
// memory of the one that had filled it.
func (l *lab) restarted(ctx context.Context, s *server, began time.Time, submitted float64, f *queuedFigures) error {
	u, err := s.watch(func() error {
		err := s.until(ctx, time.Minute, 5*time.Millisecond, "it is alive", func() (bool, error) { return l.answers(ctx, s.url+"/healthz"), nil })
		if err != nil {
			return err
		}
		f.healthy.add(time.Since(began))
		if err := s.accepts(ctx, crowdTarget(0)); err != nil { // it is in the queue: that is found, nothing is written
			return err
		}
		f.start.add(time.Since(began))
		return l.look(ctx, s, f)
	})
	if err != nil {
		return err
	}
	f.memory = append(f.memory, max(submitted, u.peak("VmRSS")))
	progress("%6.1f MB while builds came, %.1f MB after the restart", submitted, u.peak("VmRSS"))
	return s.holds(ctx, queuedBuilds)
}

// look reads the list and the metrics.
func (l *lab) look(ctx context.Context, s *server, f *queuedFigures) error {
	var read, scraped samples
	for range pages {
		began := time.Now()
		n, err := s.firstPage(ctx)
		if err != nil {
			return err
		}
		if n == 0 {
			return errors.New("the first page of the list is empty")
		}
		read.add(time.Since(began))
	}
	for range scrapes {
		began := time.Now()
		if err := s.holds(ctx, queuedBuilds); err != nil {
			return err
		}
		scraped.add(time.Since(began))
	}
	f.page = append(f.page, slices.Max(read)*1e3)
	f.scrape = append(f.scrape, scraped.middle()*1e3)
	f.slowScrape = append(f.slowScrape, slices.Max(scraped)*1e3)
	return nil
}

// accepts waits until the server accepts a build: before that it does not
// listen, or has no image yet.
func (s *server) accepts(ctx context.Context, path string) error {
	return s.until(ctx, time.Minute, 5*time.Millisecond, "it accepts a build", func() (bool, error) {
		_, err := s.post(ctx, path)
		if refused, ok := errors.AsType[*refusedError](err); ok && refused.status != http.StatusServiceUnavailable {
			return false, err
		}
		return err == nil, nil
	})
}

// firstPage is how many builds are on the first page of the list.
func (s *server) firstPage(ctx context.Context) (int, error) {
	resp, err := s.do(ctx, http.MethodGet, "/builds")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("GET /builds: %s", resp.Status)
	}
	var page struct {
		Builds []json.RawMessage `json:"builds"`
	}
	err = json.NewDecoder(resp.Body).Decode(&page)
	return len(page.Builds), err
}

// holds reads the metrics, which must say that so many builds are queued.
func (s *server) holds(ctx context.Context, builds int) error {
	resp, err := s.do(ctx, http.MethodGet, "/metrics")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	_, depth, ok := strings.Cut(string(text), "\ncargo_queue_depth ")
	depth, _, _ = strings.Cut(depth, "\n")
	var n float64
	if _, err := fmt.Sscan(depth, &n); !ok || err != nil {
		return fmt.Errorf("GET /metrics: %s and no depth of the queue", resp.Status)
	}
	if n != float64(builds) {
		return fmt.Errorf("%v builds are queued, %d were accepted", n, builds)
	}
	return nil
}

// quantile is the smallest sample that at least the share q of all does not exceed.
func (s samples) quantile(q float64) float64 {
	sorted := slices.Sorted(slices.Values(s))
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}
