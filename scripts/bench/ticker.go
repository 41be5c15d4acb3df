package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/monochromegane/cargo/scripts/modrepo"
)

const (
	tickerRate  = 10_000 // lines a second
	tickerLines = 10 * tickerRate
)

// tickerFiles are a Makefile that prints lines at an even rate, each with the
// time at which it was printed, in seconds. The container's clock is that of
// the machine. Bash knows the time without a process, and writes each line by itself.
func tickerFiles(w modrepo.Work) error {
	script := fmt.Sprintf(`mkfifo /tmp/silence
exec 3<> /tmp/silence # reading from it is how to sleep for less than a second
began=${EPOCHREALTIME/./}
for ((n = 0; n < %d; )); do
	due=$(((${EPOCHREALTIME/./} - began) * %d / 1000000))
	for (( ; n < due && n < %d; n++)); do
		echo "$EPOCHREALTIME %s"
	done
	read -r -t 0.001 -u 3 || true
done
`, tickerLines, tickerRate, tickerLines, strings.Repeat("abcdefghij", 8))
	return writeFiles(w.Dir, map[string]string{"Makefile": "app:\n\t@bash ticker\n\t@cp ticker app\n", "ticker": script})
}

// lines measures how long a line of output takes from the container to who
// follows the log.
func (l *lab) lines(ctx context.Context) error {
	if err := l.follow(ctx, "log line to a follower", nil, nil, atMost(300)); err != nil {
		return err
	}
	const shared = "log line to a follower, log on JetStream"
	err := l.onS3(ctx, func(args, env []string) error { return l.follow(ctx, shared, args, env, nil) })
	if err != nil {
		return fmt.Errorf("%s: %w", shared, err)
	}
	return nil
}

// follow follows a log with one client, on a server that has flags and an
// environment of its own.
func (l *lab) follow(ctx context.Context, name string, args, env []string, must *rule) error {
	var middle, slow samples
	for range l.rounds {
		err := l.inDir("lines-", func(dir string) error {
			return l.serveAs(ctx, serving{data: filepath.Join(dir, "data"), args: args, env: env}, func(s *server) error {
				if err := s.ready(ctx); err != nil {
					return err
				}
				delays, err := l.followTicker(ctx, s, name)
				if err != nil {
					return err
				}
				middle = append(middle, delays.middle()*1e3)
				slow = append(slow, delays.quantile(.99)*1e3)
				return nil
			})
		})
		if err != nil {
			return err
		}
	}
	l.report.absolute(name+", p99", "ms", slow, must)
	l.report.absolute(name+", median", "ms", middle, nil)
	return nil
}

// followTicker builds the ticker and follows its log. It returns how long after
// it was printed each line came.
func (l *lab) followTicker(ctx context.Context, s *server, name string) (samples, error) {
	id, err := s.post(ctx, target(ticker, "linux", catalog[ticker].version))
	if err != nil {
		return nil, err
	}
	resp, err := s.do(ctx, http.MethodGet, "/builds/"+id+"/logs?follow=1")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("follow the log: %s", resp.Status)
	}
	t, err := readTicks(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("follow the log: %w", err)
	}
	r, err := s.wait(ctx, id)
	if err != nil {
		return nil, err
	}
	l.report.build(name, r)
	if len(t.delays) != tickerLines {
		return nil, fmt.Errorf("%d lines came, %d were printed", len(t.delays), tickerLines)
	}
	if rate := t.rate(); rate < tickerRate*.95 {
		return nil, fmt.Errorf("the container printed %.0f lines a second and not %d: this machine has too much else to do", rate, tickerRate)
	}
	return t.delays, nil
}

// ticks are the lines of a ticker that came.
type ticks struct {
	delays      samples
	first, last float64 // when they were printed
}

func (t ticks) rate() float64 { return float64(len(t.delays)-1) / (t.last - t.first) }

// readTicks reads a log to its end. The lines must be in the order in which
// they were printed.
func readTicks(log io.Reader) (t ticks, err error) {
	lines := bufio.NewReaderSize(log, 64<<10)
	for {
		text, err := lines.ReadSlice('\n')
		if errors.Is(err, io.EOF) && len(text) == 0 {
			return t, nil
		}
		if err != nil {
			return t, err
		}
		came := float64(time.Now().UnixMicro()) / 1e6
		var line struct{ Stream, Msg string }
		if err := json.Unmarshal(text, &line); err != nil {
			return t, err
		}
		if line.Stream != "stdout" {
			continue
		}
		stamp, _, _ := strings.Cut(line.Msg, " ")
		printed, err := strconv.ParseFloat(stamp, 64)
		if err != nil {
			return t, fmt.Errorf("line %q: %w", line.Msg, err)
		}
		if printed < t.last {
			return t, fmt.Errorf("a line of %f came after one of %f", printed, t.last)
		}
		if t.first == 0 {
			t.first = printed
		}
		t.last = printed
		t.delays = append(t.delays, came-printed)
	}
}
