package buildlog_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/buildlog"
)

// serve runs a NATS server with JetStream until the test ends.
func serve(t testing.TB, o server.Options) *server.Server {
	t.Helper()
	o.NoSigs, o.NoLog, o.JetStream, o.SyncAlways = true, true, true, true
	s, err := server.NewServer(&o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { stop(s) })
	if !s.ReadyForConnections(30 * time.Second) {
		t.Fatal("the NATS server does not start")
	}
	return s
}

func stop(s *server.Server) {
	s.Shutdown()
	s.WaitForShutdown()
}

// embedded is JetStream as the queue embeds it.
func embedded(t testing.TB) jetstream.JetStream {
	t.Helper()
	s := serve(t, server.Options{ServerName: "embedded", DontListen: true, StoreDir: t.TempDir(), JetStreamMaxStore: 4 << 30})
	return connect(t, "", nats.InProcessServer(s))
}

func connect(t testing.TB, url string, o ...nats.Option) jetstream.JetStream {
	t.Helper()
	c, err := nats.Connect(url, append(o, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	js, err := jetstream.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func wait(t testing.TB, what string, there func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !there() {
		if time.Now().After(deadline) {
			t.Fatalf("%s does not come", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

var (
	errBroken     = errors.New("the archive is broken")
	errNoLog      = errors.New("no such log")
	errSuperseded = errors.New("a later attempt is archived")
)

// An archive keeps its contract in memory.
type archive struct {
	pruned time.Time // what PruneLogs was called with last
	mu     sync.Mutex
	logs   map[build.ID]archived
	broken bool
	puts   int
	stored func() // is called before PutLog returns; nil: nothing
}

type archived struct {
	attempt int
	text    string
}

func newArchive() *archive { return &archive{logs: map[build.ID]archived{}} }

func (a *archive) setBroken(on bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.broken = on
}

func (a *archive) PutLog(_ context.Context, id build.ID, attempt int, r io.ReaderAt, size int64) error {
	data, err := io.ReadAll(io.NewSectionReader(r, 0, size))
	if err != nil || int64(len(data)) != size {
		return fmt.Errorf("read %d of %d bytes: %w", len(data), size, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.broken:
		return errBroken
	case a.logs[id].attempt > attempt:
		return errSuperseded
	}
	a.puts++
	a.logs[id] = archived{attempt, string(data)}
	if a.stored != nil {
		a.stored()
	}
	return nil
}

type seekCloser struct{ *bytes.Reader }

func (seekCloser) Close() error { return nil }

func (a *archive) PruneLogs(_ context.Context, before time.Time) error {
	a.pruned = before
	return nil
}

func (a *archive) OpenLog(_ context.Context, id build.ID) (io.ReadSeekCloser, int64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l, ok := a.logs[id]
	switch {
	case a.broken:
		return nil, 0, errBroken
	case !ok:
		return nil, 0, errNoLog
	}
	return seekCloser{bytes.NewReader([]byte(l.text))}, int64(len(l.text)), nil
}

func (a *archive) log(id build.ID) archived {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.logs[id]
}

// A machine has a directory of its own, and shares the rest.
type machine struct {
	*buildlog.Shared
	local *buildlog.Store
	dir   string
	said  *said // the server's log
}

// said collects what a server logs.
type said struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newMachine(t testing.TB, js jetstream.JetStream, a buildlog.Archive, change ...func(*buildlog.SharedOptions)) machine {
	t.Helper()
	m := machine{said: &said{}}
	m.local, m.dir = open(t, buildlog.Options{})
	o := buildlog.SharedOptions{
		Local: m.local, JetStream: js, Archive: a, NotFound: errNoLog,
		Log: slog.New(slog.NewTextHandler(m.said, nil)),
	}
	for _, c := range change {
		c(&o)
	}
	var err error
	if m.Shared, err = buildlog.OpenShared(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	return m
}

// attempt is a build as its worker has it.
func attempt(id build.ID, n int) build.Build { return build.Build{ID: id, Attempt: n} }

func (m machine) create(t testing.TB, b build.Build) *buildlog.Writer {
	t.Helper()
	w, err := m.Create(t.Context(), b, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w
}

// end ends the log of a build as a worker does.
func (m machine) end(t testing.TB, w *buildlog.Writer, b build.Build) {
	t.Helper()
	closed(t, w)
	must(t, m.Keep(t.Context(), b))
	must(t, m.Drop(t.Context(), b))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (m machine) read(t testing.TB, id build.ID, offset int64) string {
	t.Helper()
	var b bytes.Buffer
	next, err := m.Read(t.Context(), id, offset, &b)
	if err != nil || next != offset+int64(b.Len()) {
		t.Fatalf("Read from %d: %d bytes, next %d, %v", offset, b.Len(), next, err)
	}
	return b.String()
}

// shows waits until Read has it.
func (m machine) shows(t testing.TB, id build.ID, what string) {
	t.Helper()
	wait(t, fmt.Sprintf("the line %q", what), func() bool {
		var b bytes.Buffer
		_, err := m.Read(t.Context(), id, 0, &b)
		if err != nil && !errors.Is(err, buildlog.ErrNotFound) {
			t.Fatal(err)
		}
		return strings.Contains(b.String(), what)
	})
}

// A tail is what one follower has seen.
type tail struct {
	id     build.ID
	mu     sync.Mutex
	offset int64
	text   strings.Builder
	ended  chan error
}

func (m machine) follow(t testing.TB, id build.ID, offset int64, done <-chan struct{}) *tail {
	return m.followHeld(t, id, offset, done, 0, nil)
}

// followHeld stands still at its line held until free is closed.
func (m machine) followHeld(t testing.TB, id build.ID, offset int64, done <-chan struct{}, held int, free <-chan struct{}) *tail {
	f := &tail{id: id, offset: offset, ended: make(chan error, 1)}
	go func() {
		f.ended <- m.Follow(t.Context(), id, offset, done, func(line []byte, next int64) error {
			f.mu.Lock()
			defer f.mu.Unlock()
			if bytes.IndexByte(line, '\n') != len(line)-1 || f.offset+int64(len(line)) != next {
				return fmt.Errorf("line of %d bytes at %d, next %d", len(line), f.offset, next)
			}
			f.offset = next
			f.text.Write(line)
			if held--; held == 0 {
				f.mu.Unlock()
				<-free
				f.mu.Lock()
			}
			return nil
		})
	}()
	return f
}

func (f *tail) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.text.String()
}

func (f *tail) sees(t testing.TB, what string) {
	t.Helper()
	wait(t, fmt.Sprintf("the line %q", what), func() bool { return strings.Contains(f.String(), what) })
}

// is wants the follower to end with exactly this text.
func (f *tail) is(t testing.TB, want string) {
	t.Helper()
	if err := <-f.ended; err != nil {
		t.Errorf("Follow = %v", err)
	}
	if got := f.String(); got != want {
		t.Errorf("a follower has %d bytes, want %d:\n%s", len(got), len(want), first(got, want))
	}
}

// first is where two texts differ.
func first(got, want string) string {
	g, w := strings.SplitAfter(got, "\n"), strings.SplitAfter(want, "\n")
	for i := range g {
		if i >= len(w) || g[i] != w[i] {
			return fmt.Sprintf("line %d of %d is %.200q, want line %.200q of %d", i, len(g), g[i], w[min(i, len(w)-1)], len(w))
		}
	}
	return fmt.Sprintf("the lines after %d are missing", len(g))
}

func say(w *buildlog.Writer, format string, args ...any) {
	w.Log(slog.LevelInfo, fmt.Sprintf(format, args...))
}

func messagesIn(t testing.TB, js jetstream.JetStream, id build.ID) uint64 {
	t.Helper()
	s, err := js.Stream(t.Context(), "logs")
	must(t, err)
	info, err := s.Info(t.Context(), jetstream.WithSubjectFilter("logs."+string(id)))
	must(t, err)
	return info.State.Subjects["logs."+string(id)]
}

// begins are the offsets of the messages about a log that hold lines.
func begins(t testing.TB, js jetstream.JetStream, id build.ID) (offsets []int64) {
	t.Helper()
	s, err := js.Stream(t.Context(), "logs")
	must(t, err)
	for seq := uint64(1); ; {
		m, err := s.GetMsg(t.Context(), seq, jetstream.WithGetMsgSubject("logs."+string(id)))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return offsets
		}
		must(t, err)
		if len(m.Data) > 0 {
			at, err := strconv.ParseInt(m.Header.Get("Cargo-Log-Offset"), 10, 64)
			must(t, err)
			offsets = append(offsets, at)
		}
		seq = m.Sequence + 1
	}
}

func (m machine) path(id build.ID) string {
	return filepath.Join(m.dir, string(id[:2]), string(id)+".jsonl")
}
