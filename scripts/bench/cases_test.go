package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/monochromegane/cargo/build"
)

func TestQuantile(t *testing.T) {
	var hundred samples
	for n := 100; n > 0; n-- {
		hundred = append(hundred, float64(n))
	}
	for _, tc := range []struct {
		of   samples
		q    float64
		want float64
	}{
		{hundred, .99, 99},
		{hundred, .5, 50},
		{hundred, 1, 100},
		{samples{7}, .99, 7},
		{samples{3, 1, 2}, .99, 3},
	} {
		if got := tc.of.quantile(tc.q); got != tc.want {
			t.Errorf("quantile %v of %d samples = %v, want %v", tc.q, len(tc.of), got, tc.want)
		}
	}
}

// What is submitted is different builds, of targets that Cargo accepts.
func TestCrowd(t *testing.T) {
	seen := map[string]bool{}
	for n := range queuedBuilds {
		path := crowdTarget(n)
		part := strings.Split(path, "/")
		if len(part) != 7 {
			t.Fatalf("target %d is %s", n, path)
		}
		target := build.Target{Repository: build.Repository{Remote: part[1], Owner: part[2], Name: part[3]}, GOOS: part[4], GOARCH: part[5], Version: part[6]}
		if err := target.Validate(); err != nil || seen[path] {
			t.Fatalf("target %d is %s: seen %t, %v", n, path, seen[path], err)
		}
		seen[path] = true
	}
}

func TestParseStat(t *testing.T) {
	stat := "42 (a) b (c) S 7 42 42 0 -1 4194304 100 0 0 0 150 25 1 2 20 0 1 0 100"
	pid, parent, used, err := parseStat([]byte(stat))
	if err != nil || pid != 42 || parent != 7 || used != 1750*time.Millisecond {
		t.Errorf("%d, %d, %s, %v", pid, parent, used, err)
	}
	if _, _, _, err := parseStat([]byte("42 (a) S 7")); err == nil {
		t.Error("a short line was read")
	}
}

// The work of this process is counted, and so is that of its children.
func TestCPUTime(t *testing.T) {
	before, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); ; {
		now, err := cpuTime(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if now > before {
			return
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("a busy minute cost %s", now-before)
		}
	}
}

func TestReadTicks(t *testing.T) {
	const said = `{"msg":"cloned","level":"info"}` + "\n"
	line := func(stamp string) string { return `{"msg":"` + stamp + ` abc","stream":"stdout"}` + "\n" }
	got, err := readTicks(strings.NewReader(said + line("100.000000") + line("100.500000") + said + line("101.000000")))
	if err != nil || len(got.delays) != 3 || got.rate() != 2 {
		t.Errorf("%d lines at %v a second, %v", len(got.delays), got.rate(), err)
	}
	for name, log := range map[string]string{
		"disorder":     line("100.5") + line("100.4"),
		"no time":      line("soon"),
		"a torn line":  line("100.5") + `{"msg":"100.`,
		"no JSON line": "hello\n",
	} {
		if _, err := readTicks(strings.NewReader(log)); err == nil {
			t.Errorf("%s was read", name)
		}
	}
}
