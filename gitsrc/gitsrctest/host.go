package gitsrctest

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// A Host is a git host on loopback whose behaviour a test can change while it
// runs. Its methods are safe for concurrent use.
type Host struct {
	URL  string // base URL, to be used as the address of a remote
	Root string // directory of the bare repositories

	t      testing.TB
	server *http.Server
	git    *backend

	mu        sync.Mutex
	tokens    map[string]string
	requests  []Request
	status    int
	delay     time.Duration
	intercept func(http.ResponseWriter, *http.Request) bool
}

// A Request is what a Host remembers of a request.
type Request struct {
	Method string
	Path   string
	User   string // of Basic authentication
	Secret string // password, or what follows Bearer or token; "" for an anonymous request
}

// New starts a Host that serves until the test ends. It has no repositories.
func New(t testing.TB) *Host {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &Host{
		URL:    "http://" + listener.Addr().String(),
		Root:   t.TempDir(),
		t:      t,
		tokens: make(map[string]string),
	}
	h.git = newBackend(h.Root, h.token)
	h.server = &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	var wg sync.WaitGroup
	wg.Go(func() { _ = h.server.Serve(listener) })
	t.Cleanup(func() {
		h.Stop()
		wg.Wait()
	})
	return h
}

// Stop makes the host unreachable for good: connections are refused.
func (h *Host) Stop() { _ = h.server.Close() }

// Protect closes the repository at path, such as "owner/name", to all who do
// not bring token; "" opens it to everybody.
func (h *Host) Protect(path, token string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tokens[path] = token
}

func (h *Host) token(path string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tokens[path]
}

// Fail makes every request end with an HTTP status; 0 serves again.
func (h *Host) Fail(status int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.status = status
}

// Delay makes every request wait before it is served, or until its client goes away.
func (h *Host) Delay(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.delay = d
}

// Intercept has every request go through f first; where f returns true, it has
// answered. It is called concurrently. nil removes it.
func (h *Host) Intercept(f func(http.ResponseWriter, *http.Request) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.intercept = f
}

// Requests are all requests so far, refused ones too, in the order in which they came.
func (h *Host) Requests() []Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]Request(nil), h.requests...)
}

// ServeHTTP lets a test reach the host without a connection.
func (h *Host) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	h.requests = append(h.requests, remember(r))
	status, delay, intercept := h.status, h.delay, h.intercept
	h.mu.Unlock()

	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-r.Context().Done():
			return
		}
	}
	if intercept != nil && intercept(w, r) {
		return
	}
	if status != 0 {
		http.Error(w, http.StatusText(status), status)
		return
	}
	h.git.ServeHTTP(w, r)
}

func remember(r *http.Request) Request {
	q := Request{Method: r.Method, Path: r.URL.Path}
	if user, password, ok := r.BasicAuth(); ok {
		q.User, q.Secret = user, password
	} else {
		_, q.Secret, _ = strings.Cut(r.Header.Get("Authorization"), " ")
	}
	return q
}

// Repository makes an empty bare repository at path, such as "owner/name".
func (h *Host) Repository(path string) *Repository {
	h.t.Helper()
	r := &Repository{Dir: filepath.Join(h.Root, filepath.FromSlash(path)+".git"), t: h.t}
	for _, dir := range []string{"objects/pack", "refs/heads", "refs/tags"} {
		if err := os.MkdirAll(filepath.Join(r.Dir, filepath.FromSlash(dir)), 0o755); err != nil {
			h.t.Fatal(err)
		}
	}
	r.write("HEAD", []byte("ref: refs/heads/main\n"))
	r.write("config", []byte("[core]\n\trepositoryformatversion = 0\n\tbare = true\n"))
	return r
}
