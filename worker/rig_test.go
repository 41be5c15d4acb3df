package worker_test

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/buildlog"
	"github.com/monochromegane/cargo/cache"
	"github.com/monochromegane/cargo/disk"
	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/executortest"
	"github.com/monochromegane/cargo/gitsrc"
	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
	"github.com/monochromegane/cargo/modproxy"
	"github.com/monochromegane/cargo/queue"
	"github.com/monochromegane/cargo/stdlib"
	"github.com/monochromegane/cargo/worker"
)

// Records are in UTC wherever the server is.
func TestMain(m *testing.M) {
	time.Local = time.FixedZone("elsewhere", 3600)
	m.Run()
}

const (
	image   = "sha256:the-image"
	treeDir = "/go/src/git.test/me/app"
)

// A rig is everything around a Worker, all of it real but for the executor,
// which plays script, and the door.
type rig struct {
	*testing.T
	host  *gitsrctest.Host
	repo  *gitsrctest.Repository // git.test/me/app
	fake  *executortest.Fake
	queue *queue.Queue
	opts  worker.Options

	source    *gitsrc.Source
	workspace string
	disks     *disk.Disks
	cache     *cache.Cache
	library   library
	artifacts *artifact.Store
	logs      *buildlog.Store
	metrics   recorder
	doors     []*door // guarded by metrics.mu
	operator  safeBuffer

	data      string // everything that is kept lies below it
	submitted int
}

type script func(ctx context.Context, p executortest.Process) error

// newRig makes a rig whose repository holds files at v1. It must not be
// started before it is changed.
func newRig(t *testing.T, files map[string]string, play script) *rig {
	t.Helper()
	needRoot(t)
	r := &rig{T: t, host: gitsrctest.New(t), fake: &executortest.Fake{Script: play, Images: []string{"builder"}}, data: t.TempDir()}
	r.repo = r.host.Repository("me/app")
	r.repo.Tag("v1", r.repo.Commit("main", gitsrctest.Files(files)))
	log := slog.New(slog.NewTextHandler(&r.operator, nil))
	r.source = newSource(r, 0)
	var err error
	r.artifacts, err = artifact.Open(filepath.Join(r.data, "storage"), artifact.Options{})
	r.must(err)
	r.logs, err = buildlog.Open(filepath.Join(r.data, "logs"), buildlog.Options{})
	r.must(err)
	r.workspace = filepath.Join(r.data, "workspace")
	r.openDisks(disk.Options{Kind: disk.Watch}) // the quickest
	r.cache, err = cache.Open(cache.Options{Dir: filepath.Join(r.data, "packages"), UID: executor.HostUID, GID: executor.HostUID})
	r.must(err)
	modules, err := modproxy.New(modproxy.Options{GOPROXY: "off", GOSUMDB: "off", Dir: filepath.Join(r.data, "modules")})
	r.must(err)
	r.openQueue(queue.Options{Dir: filepath.Join(r.data, "queue"), Worker: "w", Log: log})
	r.opts = worker.Options{
		Queue: r.queue, Source: r.source, Executor: r.fake, OpenDoor: r.openDoor, Modules: modules, Artifacts: r.artifacts, Logs: r.logs,
		Disks: r.disks, Cache: r.cache, Library: &r.library, Toolchain: stdlib.Toolchain{Version: "go1.26.8"}, Network: "modules",
		Metrics: &r.metrics, Log: log,
		Name: "fake", Image: executor.Image{Ref: "builder", Digest: image}, ModuleEnv: []string{"GOSUMDB=sum.test"},
		Concurrency: 1, Timeout: time.Minute,
	}
	t.Cleanup(r.checkLeftovers)
	return r
}

// newSource makes a Source of the rig's host that takes trees of so many files; 0 means many.
func newSource(r *rig, files int) *gitsrc.Source {
	r.Helper()
	s, err := gitsrc.New(gitsrc.Options{
		Remotes: map[string]string{"git.test": r.host.URL},
		Limits:  gitsrc.Limits{Files: files},
		Owner:   gitsrc.Owner{UID: executor.HostUID, GID: executor.HostUID},
		Secret:  bytes.Repeat([]byte("s"), 32),
	})
	r.must(err)
	return s
}

// openDisks has a disk of so many bytes for each build.
func (r *rig) openDisks(o disk.Options) {
	r.Helper()
	r.must(os.MkdirAll(r.workspace, 0o700))
	o.Dir = r.workspace
	d, err := disk.Open(r.Context(), o)
	r.must(err)
	r.disks, r.opts.Disks, r.opts.DiskLimit = d, d, o.Limit
}

// A library remembers what was wanted.
type library struct {
	mu     sync.Mutex
	wanted []string
}

func (l *library) Want(p cache.Platform) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wanted = append(l.wanted, p.String())
}

func (r *rig) openQueue(o queue.Options) {
	r.Helper()
	q, err := queue.Open(r.Context(), o)
	r.must(err)
	r.Cleanup(func() { _ = q.Close() })
	r.queue, r.opts.Queue = q, q
}

// checkLeftovers wants every workspace removed and every door closed, whatever
// became of the builds.
func (r *rig) checkLeftovers() {
	left, err := os.ReadDir(r.workspace)
	if err != nil || len(left) > 0 {
		r.Errorf("left in the workspace: %v, %v", left, err)
	}
	r.metrics.mu.Lock()
	defer r.metrics.mu.Unlock()
	for i, d := range r.doors {
		if d.closed != 1 || !d.asked {
			r.Errorf("door %d: closed %d times, asked for its usage after that: %t", i, d.closed, d.asked)
		}
	}
	if r.Failed() {
		r.Logf("the operator's log:\n%s", r.operator.String())
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can give a workspace to the build user and take it back")
	}
}

func (r *rig) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

// submit asks for v1 of the repository for a platform as the server does.
func (r *rig) submit(platform, authorization string) build.Build {
	r.Helper()
	b, sealed := r.request(platform, authorization)
	return r.enqueue(b, sealed)
}

func (r *rig) request(platform, authorization string) (b build.Build, sealed []byte) {
	r.Helper()
	repo := build.Repository{Remote: "git.test", Owner: "me", Name: "app"}
	tok, err := gitsrc.ParseAuthorization(authorization)
	r.must(err)
	ref, err := r.source.Resolve(r.Context(), repo, "v1", tok, 0)
	r.must(err)
	goos, goarch, _ := strings.Cut(platform, "/")
	b = build.Build{
		ID:      build.NewID(),
		Key:     build.Key{Target: build.Target{Repository: repo, GOOS: goos, GOARCH: goarch, Version: "v1"}, Commit: ref.Commit, Image: "sha256:an-older-image"},
		RefName: ref.Name, Public: ref.Public,
	}
	if !ref.Public {
		sealed, err = r.source.Seal(tok, b.ID)
		r.must(err)
	}
	return b, sealed
}

func (r *rig) enqueue(b build.Build, sealed []byte) build.Build {
	r.Helper()
	b, err := r.queue.Submit(r.Context(), queue.Submission{Build: b, Sealed: sealed})
	r.must(err)
	r.submitted++
	return b
}

// start has a Worker work until the test ends or stop is called, which returns
// when Run has.
func (r *rig) start(grace time.Duration) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { worker.New(r.opts).Run(ctx, grace) })
	stop = func() {
		cancel()
		wg.Wait()
	}
	r.Cleanup(stop)
	return stop
}

// patience is what a test waits at most for something that must happen.
func (r *rig) patience() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	r.Cleanup(cancel)
	return ctx
}

func (r *rig) wait(id build.ID) build.Build {
	r.Helper()
	b, err := r.queue.Wait(r.patience(), id)
	r.must(err)
	return b
}

// run submits a build, works on it and returns its record and its log.
func (r *rig) run() (build.Build, buildLog) {
	r.Helper()
	b := r.work(r.submit("linux/amd64", ""))
	return b, r.log(b.ID)
}

// work has a Worker work until b has ended and is counted.
func (r *rig) work(b build.Build) build.Build {
	r.Helper()
	stop := r.start(0)
	b = r.wait(b.ID)
	stop()
	return b
}

func (r *rig) receive(c <-chan struct{}) {
	r.Helper()
	select {
	case <-c:
	case <-r.patience().Done():
		r.Fatal("waited for nothing")
	}
}

// stored returns the store's Meta of a build's target, if there is one.
func (r *rig) stored(b build.Build) (artifact.Meta, bool) {
	r.Helper()
	m, err := r.artifacts.Lookup(r.Context(), b.Slot())
	if err != nil && !errors.Is(err, artifact.ErrNotFound) {
		r.Fatal(err)
	}
	return m, err == nil
}

type buildLog []map[string]any

func (r *rig) log(id build.ID) buildLog {
	r.Helper()
	var text bytes.Buffer
	_, err := r.logs.Read(r.Context(), id, 0, &text)
	r.must(err)
	var lines buildLog
	for line := range strings.Lines(text.String()) {
		var l map[string]any
		r.must(json.Unmarshal([]byte(line), &l))
		lines = append(lines, l)
	}
	return lines
}

// messages are the messages of the log, those of the container marked.
func (l buildLog) messages() []string {
	var all []string
	for _, line := range l {
		m := line["msg"].(string)
		if s, ok := line["stream"]; ok {
			m = s.(string) + ": " + m
		}
		all = append(all, m)
	}
	return all
}

func (l buildLog) find(msg string) []map[string]any {
	return slices.DeleteFunc(slices.Clone(l), func(line map[string]any) bool { return line["msg"] != msg })
}

func (l buildLog) last() map[string]any { return l[len(l)-1] }

// A recorder is Metrics that a test can read.
type recorder struct {
	mu     sync.Mutex
	ended  []string
	took   []time.Duration
	phases []string
	stored []int64
}

func (m *recorder) BuildEnded(executor, result string, queued, took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if queued < 0 || queued > time.Hour || took <= 0 || took > time.Hour {
		result += " at an impossible time"
	}
	m.ended = append(m.ended, executor+" "+result)
	m.took = append(m.took, took)
}

func (m *recorder) PhaseEnded(phase string, took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if took < 0 || took > time.Hour {
		phase += " of impossible length"
	}
	m.phases = append(m.phases, phase)
}

func (m *recorder) ArtifactStored(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stored = append(m.stored, bytes)
}

// endings are the builds that were counted.
func (m *recorder) endings() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.ended)
}

// A door greets who comes in.
type door struct {
	mu             *sync.Mutex
	served, closed int
	asked          bool
	fault          error // of the next step that is over
}

func (r *rig) openDoor() worker.Door {
	d := &door{mu: &r.metrics.mu}
	d.mu.Lock()
	defer d.mu.Unlock()
	r.doors = append(r.doors, d)
	return d
}

func (d *door) Serve(ln net.Listener) error {
	d.mu.Lock()
	d.served++
	d.mu.Unlock()
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		_, _ = c.Write([]byte("welcome"))
		_ = c.Close()
	}
}

func (d *door) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed++
	return nil
}

func (d *door) Fault() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	fault := d.fault
	d.fault = nil
	return fault
}

func (d *door) Usage() []slog.Attr {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = d.closed > 0
	return []slog.Attr{slog.Int("requests", d.served)}
}

type safeBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// hello is a repository that the default recipe builds in one step.
var hello = map[string]string{
	"go.mod":  "module git.test/me/app\n\ngo 1.26\n",
	"main.go": "package main\n\nfunc main() {}\n",
}

// program is what makes a file an executable for linux on a machine.
func program(machine elf.Machine) []byte {
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: 1, Ehsize: 64}
	copy(h.Ident[:], []byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)})
	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, h)
	return b.Bytes()
}

// makes is a command that leaves a program for linux/amd64 at path.
func makes(path string) script {
	return func(_ context.Context, p executortest.Process) error {
		return write(p, path, program(elf.EM_X86_64))
	}
}

// write writes a file of the container.
func write(p executortest.Process, path string, content []byte) error {
	name := p.Path(path)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, content, 0o755)
}
