package main

import (
	"strings"
	"testing"
	"time"
)

func TestFigures(t *testing.T) {
	for _, tc := range []struct {
		base, got samples
		rule      *rule
		want      string // the last words of the row
	}{
		{samples{4}, samples{5.8}, &rule{factor: 1.3, plus: 0.7}, "<= 5.90 (1.3x + 0.7) 1.45 pass"},
		{samples{4}, samples{6}, &rule{factor: 1.3, plus: 0.7}, "<= 5.90 (1.3x + 0.7) 1.50 FAIL"},
		{samples{30}, samples{5}, &rule{factor: 1.0 / 6}, "<= 5.00 (1/6) 0.17 pass"},
		{samples{10}, samples{31}, &rule{factor: 3}, "<= 30.00 (3x) 3.10 FAIL"},
		{samples{9, 1, 2}, samples{1, 7, 4}, nil, "- 2.00"},
		{samples{1, 2}, samples{3, 1}, &rule{factor: 1}, "<= 1.00 (1x) 1.00 pass"},
		{samples{2}, samples{7.7}, &rule{factor: 3.8, least: true}, ">= 7.60 (3.8x) 3.85 pass"},
		{samples{2}, samples{7.5}, &rule{factor: 3.8, least: true}, ">= 7.60 (3.8x) 3.75 FAIL"},
		{nil, samples{249, 250, 251}, atMost(250), "- - 250.00 s <= 250.00 - pass"},
		{nil, samples{251}, atMost(250), "- - 251.00 s <= 250.00 - FAIL"},
		{nil, samples{301}, atLeast(300), "- - 301.00 s >= 300.00 - pass"},
		{nil, samples{299}, atLeast(300), "- - 299.00 s >= 300.00 - FAIL"},
	} {
		var r report
		if tc.base == nil {
			r.absolute("case", "s", tc.got, tc.rule)
		} else {
			r.seconds("case", "bare", pair{tc.base, tc.got}, tc.rule)
		}
		var out strings.Builder
		if err := r.writeFigures(&out); err != nil {
			t.Fatal(err)
		}
		row := strings.Join(strings.Fields(strings.Split(out.String(), "\n")[1]), " ")
		if !strings.HasSuffix(row, tc.want) {
			t.Errorf("%v against %v: %q, want it to end with %q", tc.got, tc.base, row, tc.want)
		}
	}
}

func TestBuilds(t *testing.T) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	rec := record{Accepted: at, Started: at.Add(time.Second), Finished: at.Add(6 * time.Second)}
	rec.Phases = []phase{{"fetch", 1}, {"build", 3.5}}
	r := report{builds: []built{{"hey", rec}}}
	var out strings.Builder
	if err := r.writeBuilds(&out); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(strings.Fields(out.String()), " ")
	if want := "build wait fetch build rest total hey 1.00 1.00 3.50 0.50 6.00"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestPrepared(t *testing.T) {
	const metrics = `# HELP cargo_cache_prepared How much is compiled.
# TYPE cargo_cache_prepared gauge
cargo_cache_prepared{goarch="amd64",goos="linux"} 1
cargo_cache_prepared{goarch="amd64",goos="windows"} 0.5
cargo_cache_prepared{goarch="arm64",goos="darwin",variant=""} 1
`
	for _, tc := range []struct {
		goos, goarch string
		want         bool
	}{
		{"linux", "amd64", true},
		{"windows", "amd64", false},
		{"darwin", "arm64", true},
		{"darwin", "amd64", false},
	} {
		got, err := isPrepared(strings.NewReader(metrics), tc.goos, tc.goarch)
		if err != nil || got != tc.want {
			t.Errorf("%s/%s = %v, %v, want %v", tc.goos, tc.goarch, got, err, tc.want)
		}
	}
}
