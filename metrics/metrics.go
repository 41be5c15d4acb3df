// Package metrics counts and times what Cargo does, for Prometheus. The labels
// have few values, all known beforehand: no repository, version, user or id.
// docs/metrics.md lists the metrics.
package metrics

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Options are what the metrics are made of. The slices are the values that a
// label may have; any other becomes "other".
type Options struct {
	QueueDepth func() float64 // builds accepted and not yet started, read at each scrape; nil for none
	Running    func() float64 // builds under way, likewise

	Workers func(state string) float64 // of States, likewise; nil for none
	States  []string

	Kept     map[string]func() float64 // bytes that are kept, by what they are, likewise
	DiskKind func() string             // of DiskKinds, how the disks of builds are bounded; "" while that is not known

	Version, Commit, GoVersion string

	DiskKinds []string
	Executors []string
	Modules   []string // where a module came from
	Results   []string
	Phases    []string
	Routes    []string
}

// Metrics has a registry of its own. Its methods are safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry

	executors, results, phases, routes, modules values

	builds        *prometheus.CounterVec
	buildDuration *prometheus.HistogramVec
	buildQueue    prometheus.Histogram
	buildPhase    *prometheus.HistogramVec
	requests      *prometheus.CounterVec
	requestTime   *prometheus.HistogramVec
	artifactBytes *prometheus.CounterVec
	moduleServed  *prometheus.CounterVec
	moduleBytes   prometheus.Counter
	prepared      *prometheus.GaugeVec
}

// New returns Metrics whose series start at zero, so that the first event is a
// rise too.
func New(o Options) *Metrics {
	m := &Metrics{
		registry:  prometheus.NewPedanticRegistry(),
		executors: set(o.Executors), results: set(o.Results), phases: set(o.Phases), routes: set(o.Routes), modules: set(o.Modules),
		builds: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cargo_builds_total", Help: "Builds that ended, by how they ended.",
		}, []string{"result"}),
		buildDuration: prometheus.NewHistogramVec(
			histogram("cargo_build_duration_seconds", "Time from the start of a build to its end.", 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1800),
			[]string{"executor", "result"}),
		buildQueue: prometheus.NewHistogram(
			histogram("cargo_build_queue_seconds", "Time from the acceptance of a build to its start.", .1, .5, 1, 2.5, 5, 15, 60, 300, 900, 3600)),
		buildPhase: prometheus.NewHistogramVec(
			histogram("cargo_build_phase_seconds", "Time that a phase of a build took.", .01, .05, .1, .5, 1, 5, 20, 80, 320, 900),
			[]string{"phase"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cargo_http_requests_total", Help: "HTTP requests answered, by route and status code.",
		}, []string{"route", "code"}),
		requestTime: prometheus.NewHistogramVec(
			histogram("cargo_http_request_duration_seconds", "Time from an HTTP request to the end of its answer.", .001, .005, .01, .05, .1, .5, 1, 5, 30, 300),
			[]string{"route"}),
		artifactBytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cargo_artifact_bytes_total", Help: "Bytes of archives stored and served.",
		}, []string{"direction"}),
		moduleServed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cargo_module_requests_total", Help: "Files of modules that builds asked for, by where they came from.",
		}, []string{"from"}),
		moduleBytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cargo_module_fetched_bytes_total", Help: "Bytes fetched from module proxies and the checksum database.",
		}),
		prepared: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "cargo_cache_prepared", Help: "How much of the standard library for a target is compiled beforehand, from 0 to 1.",
		}, []string{"goos", "goarch"}),
	}
	m.registry.MustRegister(kept(o)...)
	m.registry.MustRegister(workers(o)...)
	m.registry.MustRegister(
		gauge("cargo_queue_depth", "Builds accepted but not yet started.", o.QueueDepth),
		gauge("cargo_builds_running", "Builds under way.", o.Running),
		m.builds, m.buildDuration, m.buildQueue, m.buildPhase, m.requests, m.requestTime, m.artifactBytes,
		m.moduleServed, m.moduleBytes, m.prepared,
		info(o), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	m.initialise(o)
	return m
}

// histogram has classic buckets, and native ones for servers that ask for them.
func histogram(name, help string, buckets ...float64) prometheus.HistogramOpts {
	return prometheus.HistogramOpts{
		Name: name, Help: help, Buckets: buckets,
		NativeHistogramBucketFactor:     1.1,
		NativeHistogramMaxBucketNumber:  100,
		NativeHistogramMinResetDuration: time.Hour,
	}
}

func gauge(name, help string, read func() float64) prometheus.GaugeFunc {
	if read == nil {
		read = func() float64 { return 0 }
	}
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read)
}

// workers are those of the queue, on all machines.
func workers(o Options) (gauges []prometheus.Collector) {
	for _, state := range o.States {
		gauges = append(gauges, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "cargo_workers", Help: "Workers of the queue, on all machines.", ConstLabels: prometheus.Labels{"state": state},
		}, func() float64 { return o.Workers(state) }))
	}
	return gauges
}

// kept is what the server keeps, and how what builds may write is bounded.
func kept(o Options) (gauges []prometheus.Collector) {
	for what, read := range o.Kept {
		gauges = append(gauges, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "cargo_kept_bytes", Help: "Bytes that this server keeps, by what they are.", ConstLabels: prometheus.Labels{"what": what},
		}, read))
	}
	for _, kind := range o.DiskKinds {
		gauges = append(gauges, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "cargo_disk_bound", Help: "1 for the way in which the disks of builds are bounded.", ConstLabels: prometheus.Labels{"kind": kind},
		}, func() float64 {
			if o.DiskKind() == kind {
				return 1
			}
			return 0
		}))
	}
	return gauges
}

func info(o Options) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "cargo_build_info", Help: "What this server was built from; always 1.",
		ConstLabels: prometheus.Labels{"version": o.Version, "commit": o.Commit, "goversion": o.GoVersion},
	}, func() float64 { return 1 })
}

const (
	stored = "stored"
	served = "served"
)

// initialise makes the series there will be. Of the status codes, which differ
// from route to route, it makes the two that success and alerts are about.
func (m *Metrics) initialise(o Options) {
	for _, result := range o.Results {
		m.builds.WithLabelValues(result)
		for _, executor := range o.Executors {
			m.buildDuration.WithLabelValues(executor, result)
		}
	}
	for _, phase := range o.Phases {
		m.buildPhase.WithLabelValues(phase)
	}
	for _, route := range o.Routes {
		m.requestTime.WithLabelValues(route)
		for _, code := range []int{http.StatusOK, http.StatusInternalServerError} {
			m.requests.WithLabelValues(route, strconv.Itoa(code))
		}
	}
	for _, from := range o.Modules {
		m.moduleServed.WithLabelValues(from)
	}
	for _, direction := range []string{stored, served} {
		m.artifactBytes.WithLabelValues(direction)
	}
}

// BuildEnded counts a build that waited for its start, then ran for took.
func (m *Metrics) BuildEnded(executor, result string, queued, took time.Duration) {
	executor, result = m.executors.or(executor), m.results.or(result)
	m.builds.WithLabelValues(result).Inc()
	m.buildDuration.WithLabelValues(executor, result).Observe(seconds(took))
	m.buildQueue.Observe(seconds(queued))
}

// BuildDropped counts a build that ended before it started, or without a worker.
func (m *Metrics) BuildDropped(result string) {
	m.builds.WithLabelValues(m.results.or(result)).Inc()
}

// PhaseEnded times a phase of a build, whether it went well or not.
func (m *Metrics) PhaseEnded(phase string, took time.Duration) {
	m.buildPhase.WithLabelValues(m.phases.or(phase)).Observe(seconds(took))
}

// RequestEnded counts an HTTP request by the pattern of its route.
func (m *Metrics) RequestEnded(route string, code int, took time.Duration) {
	route = m.routes.or(route)
	status := other
	if 100 <= code && code <= 599 {
		status = strconv.Itoa(code)
	}
	m.requests.WithLabelValues(route, status).Inc()
	m.requestTime.WithLabelValues(route).Observe(seconds(took))
}

// ArtifactStored counts the bytes of an archive that a build made.
func (m *Metrics) ArtifactStored(bytes int64) {
	m.artifactBytes.WithLabelValues(stored).Add(float64(max(bytes, 0)))
}

// ArtifactServed counts the bytes of an archive that were sent to a client.
func (m *Metrics) ArtifactServed(bytes int64) {
	m.artifactBytes.WithLabelValues(served).Add(float64(max(bytes, 0)))
}

// ModulesServed counts n files of modules that a build asked for, or was given
// before it asked.
func (m *Metrics) ModulesServed(from string, n int) {
	m.moduleServed.WithLabelValues(m.modules.or(from)).Add(float64(max(n, 0)))
}

// ModuleBytesFetched counts bytes that came over the wire for builds.
func (m *Metrics) ModuleBytesFetched(bytes int64) { m.moduleBytes.Add(float64(max(bytes, 0))) }

// LibraryPrepared says how much of the standard library for goos/goarch, a
// target that the Go toolchain knows, is compiled beforehand.
func (m *Metrics) LibraryPrepared(goos, goarch string, fraction float64) {
	m.prepared.WithLabelValues(goos, goarch).Set(fraction)
}

// seconds is d, or zero where a clock that was set back made it negative.
func seconds(d time.Duration) float64 { return max(d, 0).Seconds() }

// maxScrapes bounds how many scrapes are answered at once.
const maxScrapes = 8

// Handler serves the metrics in the format that the client asks for: text,
// OpenMetrics or protobuf, which alone carries native histograms.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{EnableOpenMetrics: true, MaxRequestsInFlight: maxScrapes})
}

// other is the label of what is not in the closed set.
const other = "other"

type values map[string]struct{}

func set(vs []string) values {
	s := make(values, len(vs))
	for _, v := range vs {
		s[v] = struct{}{}
	}
	return s
}

func (s values) or(v string) string {
	if _, ok := s[v]; ok {
		return v
	}
	return other
}
