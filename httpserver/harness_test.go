package httpserver_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/buildlog"
	"github.com/monochromegane/cargo/gitsrc"
	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
	"github.com/monochromegane/cargo/httpserver"
	"github.com/monochromegane/cargo/queue"
)

const (
	image  = "sha256:1111"
	secret = "s3cr3t-token-of-the-test"
)

// An api is a whole server but for its workers: a real git host, queue,
// artifact store and log store behind the handler, on a real listener.
type api struct {
	url       string
	dir       string // the server's data
	server    *httptest.Server
	host      *gitsrctest.Host
	queue     *queue.Queue
	artifacts *artifact.Store
	logs      *buildlog.Store
	log       *buffer
	counts    *counter

	commitTime time.Time // of what work makes

	mu      sync.Mutex
	image   string
	pending []string
}

// newAPI starts an api; change may alter its options.
func newAPI(t *testing.T, change ...func(*httpserver.Options)) *api {
	t.Helper()
	a := &api{dir: t.TempDir(), host: gitsrctest.New(t), log: &buffer{}, counts: &counter{}, image: image, commitTime: time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)}
	log := slog.New(slog.NewJSONHandler(a.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	source, err := gitsrc.New(gitsrc.Options{
		Remotes: map[string]string{"github.com": a.host.URL},
		Secret:  bytes.Repeat([]byte("k"), 32),
		Log:     log,
	})
	if err != nil {
		t.Fatal(err)
	}
	if a.queue, err = queue.Open(t.Context(), queue.Options{Dir: a.dir + "/queue", Limit: 8, Worker: "test", Log: log}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.queue.Close() })
	if a.artifacts, err = artifact.Open(a.dir+"/storage", artifact.Options{}); err != nil {
		t.Fatal(err)
	}
	if a.logs, err = buildlog.Open(a.dir+"/logs", buildlog.Options{}); err != nil {
		t.Fatal(err)
	}
	o := httpserver.Options{
		Builds:    a.queue,
		Source:    source,
		Artifacts: a.artifacts,
		Logs:      a.logs,
		Image: func() string {
			a.mu.Lock()
			defer a.mu.Unlock()
			return a.image
		},
		Ready: func(context.Context) []string {
			a.mu.Lock()
			defer a.mu.Unlock()
			return a.pending
		},
		Metrics:        a.counts,
		MetricsHandler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "cargo_up 1\n") }),
		Log:            log,
	}
	for _, f := range change {
		f(&o)
	}
	a.server = httptest.NewServer(httpserver.New(o))
	t.Cleanup(a.server.Close)
	a.url = a.server.URL
	return a
}

// become changes what the server says of itself.
func (a *api) become(image string, pending ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.image, a.pending = image, pending
}

// repository makes a repository with one commit that is the tag v1 and main.
func (a *api) repository(path string) (r *gitsrctest.Repository, commit string) {
	r = a.host.Repository(path)
	commit = r.Commit("main", gitsrctest.Files(map[string]string{"go.mod": "module x\n"}))
	r.Tag("v1", commit)
	return r, commit
}

// A reply is a response that was read to its end.
type reply struct {
	code   int
	header http.Header
	body   string
}

var client = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

// do sends a request with headers given as pairs, to a path that may be odd.
func (a *api) do(t *testing.T, method, path string, headers ...string) reply {
	t.Helper()
	r, err := a.open(t, method, path, headers...)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	if strings.Contains(string(body), secret) {
		t.Errorf("%s %s answers with the token", method, path)
	}
	return reply{code: r.StatusCode, header: r.Header, body: string(body)}
}

func (a *api) open(t *testing.T, method, path string, headers ...string) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, a.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return client.Do(req)
}

// A problem is what the API says when something cannot be done.
type problem struct {
	Type     string   `json:"type"`
	Title    string   `json:"title"`
	Status   int      `json:"status"`
	Detail   string   `json:"detail"`
	Download string   `json:"download"`
	BuildID  build.ID `json:"build_id"`
	NotReady []string `json:"not_ready"`
}

// problem checks the shape of an error and returns it.
func (r reply) problem(t *testing.T, code int) problem {
	t.Helper()
	var p problem
	d := json.NewDecoder(strings.NewReader(r.body))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		t.Fatalf("code %d, body %q: %v", r.code, r.body, err)
	}
	if r.code != code || p.Status != code || p.Title != http.StatusText(code) || p.Type != "about:blank" || p.Detail == "" {
		t.Errorf("code %d, problem %+v; want %d", r.code, p, code)
	}
	if got := r.header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("Content-Type of a problem is %q", got)
	}
	if got := r.header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control of a problem is %q", got)
	}
	if (code == http.StatusServiceUnavailable || code == http.StatusTooManyRequests) != (r.header.Get("Retry-After") != "") {
		t.Errorf("%d has Retry-After %q", code, r.header.Get("Retry-After"))
	}
	return p
}

// submitted checks that a POST or DELETE was accepted and returns the build's id.
func (r reply) submitted(t *testing.T) build.ID {
	t.Helper()
	id := build.ID(strings.TrimSuffix(strings.TrimPrefix(r.body, `{"build_id":"`), "\"}\n"))
	if r.code != http.StatusAccepted || !id.Valid() || r.body != `{"build_id":"`+string(id)+"\"}\n" {
		t.Fatalf("code %d, body %q; want 202 and a build id", r.code, r.body)
	}
	if got := r.header.Get("Location"); got != "/builds/"+string(id) {
		t.Errorf("Location is %q", got)
	}
	return id
}

// work does what a worker would: it claims the oldest build and ends it with
// an artifact of this content, or as failed where content is nil.
func (a *api) work(t *testing.T, content []byte) build.Build {
	t.Helper()
	claim, err := a.queue.Claim(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return a.finish(t, claim, content)
}

func (a *api) finish(t *testing.T, claim *queue.Claim, content []byte) build.Build {
	t.Helper()
	b := claim.Build()
	b.State, b.Reason = build.Failed, build.ReasonExit
	b.FinishedAt = time.Now().UTC()
	if content != nil {
		m, err := a.artifacts.Put(t.Context(), artifact.Meta{Key: b.Key, Public: b.Public, CommitTime: a.commitTime, BuildID: b.ID}, artifact.PutOptions{},
			func(w io.Writer) error { _, err := w.Write(content); return err })
		if err != nil {
			t.Fatal(err)
		}
		b.State, b.Reason, b.Artifact = build.Succeeded, "", &m.Artifact
	}
	if err := claim.Finish(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	return b
}

// A counter is the metrics.
type counter struct {
	mu       sync.Mutex
	requests map[string]map[int]int
	served   int64
}

func (c *counter) RequestEnded(route string, code int, _ time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.requests == nil {
		c.requests = map[string]map[int]int{}
	}
	if c.requests[route] == nil {
		c.requests[route] = map[int]int{}
	}
	c.requests[route][code]++
}

func (c *counter) ArtifactServed(bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.served += bytes
}

// A buffer is a log that a test reads while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
