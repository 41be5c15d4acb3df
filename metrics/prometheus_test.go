package metrics_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/monochromegane/cargo/metrics"
)

// A real server scrapes and is asked: once by classic buckets, once by native ones.
func TestPrometheus(t *testing.T) {
	bin, err := exec.LookPath("prometheus")
	if err != nil {
		if slices.Contains(strings.Split(os.Getenv("CARGO_TEST_REQUIRE"), ","), "prometheus") {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	for _, tc := range []struct {
		name, quantile string
		args           []string
		low, high      float64 // of the 0.9 quantile of builds that took 30 s
	}{
		{"classic", `histogram_quantile(0.9, sum by (le) (rate(cargo_build_duration_seconds_bucket{result="succeeded"}[1m])))`, nil, 20, 40},
		{"native", `histogram_quantile(0.9, sum(rate(cargo_build_duration_seconds{result="succeeded"}[1m])))`, []string{"--enable-feature=native-histograms"}, 27, 33},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var depth atomic.Int64
			depth.Store(41)
			o := options()
			o.QueueDepth = func() float64 { return float64(depth.Load()) }
			m := metrics.New(o)
			target := httptest.NewServer(m.Handler())
			t.Cleanup(target.Close)
			p := startPrometheus(t, bin, target.Listener.Addr().String(), tc.args...)

			p.wait(t, `cargo_queue_depth`, func(v float64) bool { return v == 41 })
			p.wait(t, `cargo_builds_total{result="succeeded"}`, func(v float64) bool { return v == 0 })
			depth.Store(42)
			for range 50 {
				m.BuildEnded("containerd", "succeeded", time.Second, 30*time.Second)
			}
			p.wait(t, `cargo_queue_depth`, func(v float64) bool { return v == 42 })
			p.wait(t, `cargo_builds_total{result="succeeded"}`, func(v float64) bool { return v == 50 })
			p.wait(t, tc.quantile, func(v float64) bool { return tc.low <= v && v <= tc.high })
		})
	}
}

type prometheus struct{ url string }

// startPrometheus runs a server that scrapes target every second, until the test ends.
func startPrometheus(t *testing.T, bin, target string, args ...string) prometheus {
	t.Helper()
	dir := t.TempDir()
	config := filepath.Join(dir, "prometheus.yml")
	text := fmt.Sprintf("global: {scrape_interval: 1s}\nscrape_configs: [{job_name: cargo, metrics_path: /, static_configs: [{targets: [%q]}]}]\n", target)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	addr := freeAddr(t)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, append(args, "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+addr)...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		log.Close()
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("prometheus said\n%s", b)
		}
	})
	return prometheus{"http://" + addr}
}

// freeAddr is a loopback address on which nobody listened a moment ago.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// wait asks until there is one value and it is as it should be.
func (p prometheus) wait(t *testing.T, query string, ok func(float64) bool) {
	t.Helper()
	var last string
	for deadline := time.Now().Add(90 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		v, err := p.query(query)
		if err == nil && ok(v) {
			return
		}
		last = fmt.Sprint(v, " ", err)
	}
	t.Fatalf("%s: %s", query, last)
}

func (p prometheus) query(query string) (float64, error) {
	resp, err := http.Get(p.url + "/api/v1/query?query=" + url.QueryEscape(query))
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var answer struct {
		Status, Error string
		Data          struct {
			Result []struct{ Value [2]any }
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return 0, err
	}
	if len(answer.Data.Result) != 1 {
		return 0, fmt.Errorf("%s %s: %d values", answer.Status, answer.Error, len(answer.Data.Result))
	}
	s, _ := answer.Data.Result[0].Value[1].(string)
	return strconv.ParseFloat(s, 64)
}
