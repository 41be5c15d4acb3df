package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/monochromegane/cargo/build"
)

// A site is Cargo on many machines: three NATS servers, an S3 server, API
// servers and workers, of which only the workers' engine is shared.
type site struct {
	t       *testing.T
	loop    *loop
	dir     string // everything of it
	objects string // below it, what the S3 server keeps of ours
	lease   time.Duration
	nats    *natsCluster
	s3      *process
	servers []*apiServer
	workers []*siteWorker
	flags   []string // of servers and workers
	env     []string
	stream  string // in which live records are
}

// An apiServer runs in the hub.
type apiServer struct {
	*process
	url string
}

// A siteWorker builds only.
type siteWorker struct {
	*process
	*machine
	data string // its data directory
	left remains
}

const (
	s3Access = "crash-loop"
	s3Secret = "s3-Secret-0123456789"
)

// newSite starts one for a loop, in the hub.
func newSite(t *testing.T, l *loop, lease time.Duration, servers, workers int) *site {
	t.Helper()
	s := &site{t: t, loop: l, dir: t.TempDir(), lease: lease, stream: "KV_cargo-live"}
	gateway := bin(t, "versitygw")
	lan := newLAN(t)
	s.nats = newNATS(t, lan, s.dir)
	git := serveGit(t, l.host)

	const gatewayAddress = hubAddress + ":7070"
	buckets := filepath.Join(s.dir, "s3")
	s.objects = filepath.Join(buckets, "cargo", "here")
	if err := os.MkdirAll(filepath.Dir(s.objects), 0o700); err != nil {
		t.Fatal(err)
	}
	s.s3 = newProcess(t, "s3", s.dir, []string{"ROOT_ACCESS_KEY_ID=" + s3Access, "ROOT_SECRET_ACCESS_KEY=" + s3Secret},
		gateway, "--quiet", "--port", gatewayAddress, "posix", buckets)
	listening(t, gatewayAddress)

	secret, token := filepath.Join(s.dir, "secret"), filepath.Join(s.dir, "nats-token")
	for path, text := range map[string]string{secret: strings.Repeat("5e", secretBytes), token: s.nats.token} {
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.env = []string{"AWS_ACCESS_KEY_ID=" + s3Access, "AWS_SECRET_ACCESS_KEY=" + s3Secret}
	s.flags = []string{"--queue", s.nats.urls(), "--queue-token-file", token, "--lease", lease.String(), "--secret-file", secret,
		"--storage", "s3://cargo/here?region=us-east-1&endpoint=http://" + gatewayAddress, "--remote", "git.test=" + git, "--log-level", "warn"}

	program := filepath.Join(s.dir, "cargo") // the name makes the test binary the program
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, program)
	}
	if err != nil {
		t.Fatal(err)
	}
	for i := range workers {
		w := &siteWorker{machine: lan.join(), data: filepath.Join(s.dir, fmt.Sprintf("worker%d", i+1))}
		args := append([]string{program, "worker", "--data-dir", w.data, "--image", builderImage(t), "--executor", "containerd", "--prepare", "none",
			"--concurrency", "3", "--grace", "1s", "--listen", w.address + ":8080"}, s.flags...)
		w.process = newProcess(t, filepath.Base(w.data), s.dir, s.env, w.inside(args...)...)
		s.workers = append(s.workers, w)
	}
	for i := range servers {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := l.Addr().String()
		_ = l.Close()
		name := fmt.Sprintf("server%d", i+1)
		args := append([]string{program, "serve", "--data-dir", filepath.Join(s.dir, name), "--concurrency", "0", "--listen", address, "--address-rate", "0"}, s.flags...)
		if i%2 == 1 {
			args = append(args, "--s3-proxy")
		}
		s.servers = append(s.servers, &apiServer{newProcess(t, name, s.dir, s.env, args...), "http://" + address})
	}
	s.settle()
	return s
}

// settle waits until everything is ready.
func (s *site) settle() {
	s.t.Helper()
	for _, n := range s.nats.nodes {
		until(s.t, n.name+" is ready", n.ready)
	}
	for _, w := range s.workers {
		until(s.t, w.name+" is ready", func() bool { return answersReady("http://" + w.address + ":8080") })
	}
	for _, a := range s.servers {
		until(s.t, a.name+" is ready", func() bool { return answersReady(a.url) })
	}
}

func answersReady(url string) bool {
	resp, err := monitor.Get(url + "/readyz")
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// urls are those of the API servers.
func (s *site) urls() (urls []string) {
	for _, a := range s.servers {
		urls = append(urls, a.url)
	}
	return urls
}

// running are the builds that have a living container of the worker's.
func (w *siteWorker) running() map[build.ID]bool {
	found := map[build.ID]bool{}
	owners{ownerKey(w.data): true}.builds(func(id build.ID, cgroup string) {
		if len(lives(cgroup)) > 0 {
			found[id] = true
		}
	})
	return found
}

// serveGit lets the machines reach a git host, and returns its address.
func serveGit(t *testing.T, host http.Handler) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", hubAddress+":0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: host, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close(); <-done })
	return "http://" + l.Addr().String()
}

// stop ends servers and workers with SIGTERM, which each obeys.
func (s *site) stop() {
	for _, p := range s.programs() {
		if code := p.end(syscall.SIGTERM); code != 0 {
			s.loop.problem("%s: SIGTERM: exit status %d", p.name, code)
		}
	}
}

// programs are the processes of Cargo.
func (s *site) programs() (all []*process) {
	for _, a := range s.servers {
		all = append(all, a.process)
	}
	for _, w := range s.workers {
		all = append(all, w.process)
	}
	return all
}
