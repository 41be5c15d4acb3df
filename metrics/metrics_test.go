package metrics_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/monochromegane/cargo/metrics"
)

func options() metrics.Options {
	return metrics.Options{
		QueueDepth: func() float64 { return 7 },
		Running:    func() float64 { return 2 },
		Workers:    func(state string) float64 { return map[string]float64{"active": 3, "silent": 1}[state] },
		States:     []string{"active", "draining", "silent"},
		Version:    "v1.2.3", Commit: "0123abc", GoVersion: "go1.26",
		Kept:      map[string]func() float64{"modules": func() float64 { return 11 }},
		DiskKind:  func() string { return "loop" },
		DiskKinds: []string{"loop", "watch"},
		Executors: []string{"containerd"},
		Modules:   []string{"cache", "upstream"},
		Results:   []string{"succeeded", "canceled", "exit"},
		Phases:    []string{"fetch", "build"},
		Routes:    []string{"GET /metrics", "POST /{target...}"},
	}
}

func scrape(t *testing.T, m *metrics.Metrics, accept string) (contentType, body string) {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	r.Header.Set("Accept", accept)
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	return w.Header().Get("Content-Type"), w.Body.String()
}

// has reports the lines of want that are not in the scrape.
func has(t *testing.T, m *metrics.Metrics, want string) {
	t.Helper()
	_, body := scrape(t, m, "text/plain")
	for line := range strings.Lines(want) {
		if line = strings.TrimSpace(line); !strings.Contains("\n"+body, "\n"+line+"\n") {
			t.Errorf("lacks %s", line)
		}
	}
	if t.Failed() {
		t.Log(body)
	}
}

func TestSeriesStartAtZero(t *testing.T) {
	has(t, metrics.New(options()), `cargo_queue_depth 7
		cargo_builds_running 2
		cargo_kept_bytes{what="modules"} 11
		cargo_disk_bound{kind="loop"} 1
		cargo_disk_bound{kind="watch"} 0
		cargo_module_requests_total{from="cache"} 0
		cargo_module_fetched_bytes_total 0
		cargo_build_info{commit="0123abc",goversion="go1.26",version="v1.2.3"} 1
		cargo_builds_total{result="succeeded"} 0
		cargo_builds_total{result="exit"} 0
		cargo_build_duration_seconds_count{executor="containerd",result="canceled"} 0
		cargo_build_queue_seconds_count 0
		cargo_build_phase_seconds_count{phase="fetch"} 0
		cargo_http_requests_total{code="500",route="POST /{target...}"} 0
		cargo_http_request_duration_seconds_count{route="GET /metrics"} 0
		cargo_artifact_bytes_total{direction="stored"} 0
		cargo_artifact_bytes_total{direction="served"} 0`)
}

func TestWhatHappened(t *testing.T) {
	m := metrics.New(options())
	m.BuildEnded("containerd", "succeeded", 2*time.Second, 30*time.Second)
	m.BuildEnded("containerd", "exit", 0, 3*time.Second)
	m.BuildEnded("containerd", "canceled", -time.Second, -time.Second) // the clock was set back
	m.PhaseEnded("build", 90*time.Millisecond)
	m.RequestEnded("POST /{target...}", 202, 7*time.Millisecond)
	m.ArtifactStored(1000)
	m.ArtifactServed(300)
	m.ArtifactServed(30)
	m.ModulesServed("cache", 5)
	m.ModulesServed("cache", -1)
	m.ModulesServed("upstream", 1)
	m.ModuleBytesFetched(2000)
	m.ModuleBytesFetched(-1)
	m.LibraryPrepared("linux", "arm64", 0)
	m.LibraryPrepared("linux", "amd64", 0.25)
	m.LibraryPrepared("linux", "amd64", 1)
	has(t, m, `cargo_builds_total{result="succeeded"} 1
		cargo_builds_total{result="canceled"} 1
		cargo_build_duration_seconds_bucket{executor="containerd",result="succeeded",le="20"} 0
		cargo_build_duration_seconds_bucket{executor="containerd",result="succeeded",le="40"} 1
		cargo_build_duration_seconds_sum{executor="containerd",result="exit"} 3
		cargo_build_duration_seconds_sum{executor="containerd",result="canceled"} 0
		cargo_build_queue_seconds_sum 2
		cargo_build_queue_seconds_count 3
		cargo_build_phase_seconds_sum{phase="build"} 0.09
		cargo_http_requests_total{code="202",route="POST /{target...}"} 1
		cargo_http_request_duration_seconds_sum{route="POST /{target...}"} 0.007
		cargo_artifact_bytes_total{direction="stored"} 1000
		cargo_artifact_bytes_total{direction="served"} 330
		cargo_module_requests_total{from="cache"} 5
		cargo_module_requests_total{from="upstream"} 1
		cargo_module_fetched_bytes_total 2000
		cargo_cache_prepared{goarch="arm64",goos="linux"} 0
		cargo_cache_prepared{goarch="amd64",goos="linux"} 1`)
}

func TestLabelsComeFromClosedSets(t *testing.T) {
	m := metrics.New(options())
	const stranger = "github.com/owner/repo"
	m.BuildEnded(stranger, stranger, 0, time.Second)
	m.PhaseEnded(stranger, time.Second)
	m.RequestEnded(stranger, 99999, time.Second)
	m.ModulesServed(stranger, 1)
	has(t, m, `cargo_builds_total{result="other"} 1
		cargo_build_duration_seconds_count{executor="other",result="other"} 1
		cargo_build_phase_seconds_count{phase="other"} 1
		cargo_module_requests_total{from="other"} 1
		cargo_http_requests_total{code="other",route="other"} 1
		cargo_http_request_duration_seconds_count{route="other"} 1`)
	if _, body := scrape(t, m, "text/plain"); strings.Contains(body, stranger) {
		t.Error("a foreign value became a label")
	}
}

func TestZeroOptions(t *testing.T) {
	has(t, metrics.New(metrics.Options{}), "cargo_queue_depth 0\ncargo_builds_running 0")
}

func TestFormats(t *testing.T) {
	m := metrics.New(options())
	for accept, want := range map[string]string{
		"":                             "text/plain; version=0.0.4",
		"application/openmetrics-text": "application/openmetrics-text; version=0.0.1",
		"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited": "application/vnd.google.protobuf",
	} {
		if got, _ := scrape(t, m, accept); !strings.HasPrefix(got, want) {
			t.Errorf("Accept %q: %q, want %q", accept, got, want)
		}
	}
}

// How disks are bounded is not known while a server starts.
func TestDiskKind(t *testing.T) {
	o, kind := options(), ""
	o.DiskKind = func() string { return kind }
	m := metrics.New(o)
	has(t, m, `cargo_disk_bound{kind="loop"} 0
		cargo_disk_bound{kind="watch"} 0`)
	kind = "watch"
	has(t, m, `cargo_disk_bound{kind="loop"} 0
		cargo_disk_bound{kind="watch"} 1`)
}

// docs/metrics.md has every metric with its type, and no other, and every label.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, row := range regexp.MustCompile("(?m)^\\| `(cargo_\\w+)` \\| (\\w+)").FindAllStringSubmatch(string(text), -1) {
		documented = append(documented, row[1]+" "+row[2])
	}
	m := metrics.New(options())
	m.LibraryPrepared("linux", "amd64", 1)
	_, body := scrape(t, m, "text/plain")
	var served []string
	for _, line := range regexp.MustCompile("(?m)^# TYPE (cargo_.*)$").FindAllStringSubmatch(body, -1) {
		served = append(served, line[1])
	}
	slices.Sort(documented)
	slices.Sort(served)
	if diff := cmp.Diff(served, documented); diff != "" {
		t.Errorf("served (-) and documented (+):\n%s", diff)
	}
	for _, label := range regexp.MustCompile(`(?m)^cargo_.*?[{,](\w+)="`).FindAllStringSubmatch(body, -1) {
		if l := label[1]; l != "le" && !strings.Contains(string(text), "`"+l+"`") {
			t.Errorf("docs/metrics.md does not name the label %s", l)
		}
	}
}

func TestLint(t *testing.T) {
	m := metrics.New(options())
	m.LibraryPrepared("linux", "amd64", 1)
	_, body := scrape(t, m, "text/plain")
	problems, err := promlint.New(strings.NewReader(body)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	for _, name := range []string{"go_goroutines", "process_resident_memory_bytes"} {
		if !strings.Contains(body, "\n"+name+" ") {
			t.Errorf("lacks %s", name)
		}
	}
}
