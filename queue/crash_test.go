package queue_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/queue"
)

// childEnv makes the test binary one of the children below instead.
const childEnv = "CARGO_QUEUE_TEST_CHILD"

func TestMain(m *testing.M) {
	children := map[string]func(dir string) error{"work": childWork, "submit": childSubmit, "idle": childIdle, "full": childFull, "files": childFiles, "hold": childHold, "many": childMany}
	if child, ok := children[os.Getenv(childEnv)]; ok {
		if err := child(os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	closeShared()
	os.Exit(code)
}

func childCommand(ctx context.Context, mode, dir string, before ...string) *exec.Cmd {
	args := append(before, os.Args[0], dir)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), childEnv+"="+mode)
	cmd.Stderr = os.Stderr
	return cmd
}

func childOpen(dir string) (*queue.Queue, error) {
	return queue.Open(context.Background(), queue.Options{Dir: dir, Worker: "w", Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
}

// say writes one event in one system call, so that a kill cannot tear it.
func say(event string, id build.ID, word any) {
	fmt.Fprintf(os.Stdout, "%s %s %v\n", event, id, word)
}

// childWork submits, cancels and builds until it is killed.
func childWork(dir string) error {
	q, err := childOpen(dir)
	if err != nil {
		return err
	}
	if _, err := q.Recover(context.Background()); err != nil {
		return err
	}
	say("ready", "-", "-")
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for {
				b := newBuild(fmt.Sprint("v", rand.IntN(40))) // keys come again and again
				say("submit", b.ID, b.Version)
				got, err := q.Submit(context.Background(), queue.Submission{Build: b, Sealed: []byte("sealed " + string(b.ID))})
				if errors.Is(err, queue.ErrFull) {
					continue
				}
				if err != nil {
					say("error", b.ID, err)
					return
				}
				say("accepted", got.ID, got.Version)
				if rand.IntN(8) == 0 {
					if q.Cancel(context.Background(), got.ID) == nil {
						say("canceled", got.ID, "-")
					}
				}
			}
		})
	}
	for range 3 {
		wg.Go(func() {
			for {
				if err := childBuild(q); err != nil {
					say("error", "-", err)
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.New("all workers gave up")
}

func childBuild(q *queue.Queue) error {
	c, err := q.Claim(context.Background())
	if err != nil {
		return err
	}
	b := c.Build()
	if string(c.Sealed()) != "sealed "+string(b.ID) {
		return fmt.Errorf("token of build %s is %q", b.ID, c.Sealed())
	}
	say("begin", b.ID, b.Attempt)
	select {
	case <-c.Context().Done():
	case <-time.After(time.Duration(rand.IntN(8)) * time.Millisecond): // the build
	}
	b.State = build.Succeeded
	if c.Context().Err() != nil {
		b.State = build.Canceled
	}
	say("end", b.ID, b.Attempt)
	if err := c.Finish(context.Background(), b); err != nil {
		return err
	}
	say("finished", b.ID, b.State)
	return nil
}

// A history is what the killed processes have said.
type history struct {
	accepted map[build.ID]bool
	finished map[build.ID]build.State
	canceled map[build.ID]bool // Cancel returned nil
	stopped  map[build.ID]bool // its work was done, so a Finish was on its way
}

// read takes over what one process said until it was killed.
func (h *history) read(t *testing.T, out io.Reader, ready func()) {
	running := map[string]bool{}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var event, id, word string
		if _, err := fmt.Sscan(lines.Text(), &event, &id, &word); err != nil {
			t.Errorf("child said %q", lines.Text())
			continue
		}
		switch event {
		case "ready":
			ready()
		case "accepted":
			h.accepted[build.ID(id)] = true
		case "canceled":
			h.canceled[build.ID(id)] = true
		case "begin":
			if running[id] {
				t.Errorf("build %s claimed twice at once", id)
			}
			if s, ok := h.finished[build.ID(id)]; ok {
				t.Errorf("build %s claimed after it had ended as %s", id, s)
			}
			running[id] = true
		case "end":
			delete(running, id)
			h.stopped[build.ID(id)] = true
		case "finished":
			h.finished[build.ID(id)] = build.State(word)
		case "error":
			t.Errorf("child said %q", lines.Text())
		}
	}
}

func TestKill(t *testing.T) {
	const seed = 7
	rounds := 10
	if testing.Short() {
		rounds = 3
	}
	moments := rand.New(rand.NewPCG(seed, seed))
	dir := t.TempDir()
	h := &history{accepted: map[build.ID]bool{}, finished: map[build.ID]build.State{}, canceled: map[build.ID]bool{}, stopped: map[build.ID]bool{}}
	for range rounds {
		cmd := childCommand(t.Context(), "work", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		h.read(t, out, func() {
			time.AfterFunc(time.Duration(20+moments.IntN(250))*time.Millisecond, func() { _ = cmd.Process.Kill() })
		})
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("child ended by itself: %v", err)
		}
	}

	q := open(t, queue.Options{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if _, err := q.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	recovered := q.Depth()
	for range recovered {
		c, err := q.Claim(within(t))
		if err != nil {
			t.Fatal(err)
		}
		if c.Context().Err() != nil {
			t.Errorf("claim of build %s: %v", c.Build().ID, context.Cause(c.Context()))
		}
		finish(t, c, build.Succeeded)
	}
	idle(t, q)
	lost := 0
	for id := range h.accepted {
		b, err := q.Get(t.Context(), id)
		if err != nil || !b.State.Ended() {
			t.Errorf("accepted build %s: %s, %v", id, b.State, err)
		}
		if b.Reason == build.ReasonLost {
			lost++
		}
	}
	for id, want := range h.finished {
		if got := get(t, q, id).State; got != want {
			t.Errorf("build %s is %s, had finished as %s", id, got, want)
		}
	}
	for id := range h.canceled {
		if got := get(t, q, id).State; got != build.Canceled && !h.stopped[id] {
			t.Errorf("build %s is %s, was canceled", id, got)
		}
	}
	t.Logf("%d rounds: %d accepted, %d finished, %d canceled, %d given up as lost; %d queued at the end",
		rounds, len(h.accepted), len(h.finished), len(h.canceled), lost, recovered)
	if len(h.accepted) < rounds || len(h.finished) < rounds {
		t.Error("too little happened to prove anything")
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	if live, tokens := leftovers(t, dir); live != 0 || tokens != 0 {
		t.Errorf("left behind: %d live records, %d tokens", live, tokens)
	}
}

// leftovers looks into the store itself: live records that are no purge
// markers, and tokens.
func leftovers(t *testing.T, dir string) (live int, tokens uint64) {
	t.Helper()
	s, err := server.NewServer(&server.Options{DontListen: true, NoSigs: true, NoLog: true, JetStream: true, StoreDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	defer s.WaitForShutdown()
	defer s.Shutdown()
	if !s.ReadyForConnections(time.Minute) {
		t.Fatal("store not ready")
	}
	nc, err := nats.Connect("", nats.InProcessServer(s))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(t.Context(), "live")
	if err != nil {
		t.Fatal(err)
	}
	keys, err := kv.ListKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range keys.Keys() {
		live++
	}
	stream, err := js.Stream(t.Context(), "tokens")
	if err != nil {
		t.Fatal(err)
	}
	return live, stream.CachedInfo().State.Msgs
}

// childSubmit submits and says so.
func childSubmit(dir string) error {
	q, err := childOpen(dir)
	if err != nil {
		return err
	}
	for i := range 20 {
		b, err := q.Submit(context.Background(), queue.Submission{Build: newBuild(fmt.Sprint("v", i))})
		if err != nil {
			return err
		}
		say("accepted", b.ID, "-")
	}
	return q.Close()
}

// The record of a build is written, then synced, and only then acknowledged.
func TestSyncComesBeforeTheAnswer(t *testing.T) {
	needs(t, "strace")
	trace := filepath.Join(t.TempDir(), "trace")
	cmd := childCommand(within(t), "submit", t.TempDir(),
		"strace", "-f", "-y", "-s", "4096", "-o", trace, "-e", "trace=write,pwrite64,fsync,fdatasync")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("strace: %v\n%s", err, out)
	}
	f, err := os.Open(trace)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	const (
		written = iota + 1
		synced
		answered
	)
	stage := map[string]int{}
	var dirty []string               // ids in blocks that are not synced yet
	syncing := map[string][]string{} // by thread: what an fsync that has begun will cover
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		thread, call, _ := strings.Cut(lines.Text(), " ")
		call = strings.TrimSpace(call)
		block := strings.Contains(call, "/KV_live/msgs/") && strings.Contains(call, ".blk>")
		switch {
		case strings.Contains(call, "write") && block:
			if _, rest, ok := strings.Cut(call, `build_id\":\"`); ok {
				stage[rest[:32]] = written
				dirty = append(dirty, rest[:32])
			}
		case strings.Contains(call, "sync(") && block:
			syncing[thread], dirty = dirty, nil
			if strings.HasSuffix(call, "<unfinished ...>") {
				continue
			}
			fallthrough
		case strings.Contains(call, "sync resumed>"):
			for _, id := range syncing[thread] {
				stage[id] = synced
			}
			delete(syncing, thread)
		case strings.Contains(call, `"accepted `):
			_, rest, _ := strings.Cut(call, `"accepted `)
			if id := rest[:32]; stage[id] != synced {
				t.Errorf("build %s was acknowledged at stage %d, before the sync", id, stage[id])
			} else {
				stage[id] = answered
			}
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	if len(stage) != 20 {
		t.Errorf("the trace shows %d submits, want 20", len(stage))
	}
	for id, s := range stage {
		if s != answered {
			t.Errorf("build %s stopped at stage %d", id, s)
		}
	}
}

// childFull submits until its disk is full, which is a limit on its files, and
// goes on when there is room again.
func childFull(dir string) error {
	signal.Ignore(syscall.SIGXFSZ)
	limit := func(bytes uint64) error {
		return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: bytes, Max: 1 << 40})
	}
	if err := limit(512 << 10); err != nil {
		return err
	}
	q, err := queue.Open(context.Background(), queue.Options{Dir: dir, Worker: "w", Limit: 1 << 20})
	if err != nil {
		return err
	}
	refused := 0
	for i := range 10_000 {
		b, err := q.Submit(context.Background(), queue.Submission{Build: newBuild(fmt.Sprint("v", i))})
		if err == nil {
			say("accepted", b.ID, "-")
			if refused > 0 {
				break
			}
			continue
		}
		if refused++; refused == 1 {
			say("refused", b.ID, errors.Is(err, queue.ErrBroken))
			if err := limit(1 << 30); err != nil {
				return err
			}
		}
		time.Sleep(10 * time.Millisecond) // as a client does that is told to try again
	}
	c, err := q.Claim(context.Background())
	if err != nil {
		return err
	}
	say("claimed", c.Build().ID, q.Err() == nil)
	return q.Close()
}

func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	out, err := childCommand(within(t), "full", dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	q := open(t, queue.Options{Dir: dir})
	said := map[string]int{}
	for l := range strings.Lines(string(out)) {
		f := strings.Fields(l)
		said[f[0]]++
		if f[0] == "accepted" {
			get(t, q, build.ID(f[1]))
		}
		if f[0] != "accepted" && f[2] != "true" {
			t.Errorf("%s: %s", f[0], f[2])
		}
	}
	if said["accepted"] < 2 || said["refused"] != 1 || said["claimed"] != 1 {
		t.Errorf("the process said %v", said)
	}
}

// childIdle reports its resident memory, in KiB, once it has nothing to do.
func childIdle(dir string) error {
	q, err := childOpen(dir)
	if err != nil {
		return err
	}
	time.Sleep(time.Second)
	kib, err := resident()
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(kib); err != nil {
		return err
	}
	return q.Close()
}

func resident() (kib int, err error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	_, err = fmt.Sscan(rest, &kib)
	return kib, err
}

// The figures of a process that opens a full queue.
type figures struct {
	KiB               int
	Start, Page, Scan time.Duration
	Depth             int
}

func childMany(dir string) error {
	began := time.Now()
	q, err := queue.Open(context.Background(), queue.Options{Dir: dir, Worker: "w", Limit: 1 << 20})
	if err != nil {
		return err
	}
	f := figures{Start: time.Since(began)}
	began = time.Now()
	if _, _, err := q.List(context.Background(), queue.Filter{}); err != nil {
		return err
	}
	f.Page = time.Since(began)
	began = time.Now()
	f.Depth = q.Depth()
	f.Scan = time.Since(began)
	if f.KiB, err = resident(); err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(f); err != nil {
		return err
	}
	return q.Close()
}

func TestTenThousandQueued(t *testing.T) {
	if raceEnabled || testing.Short() {
		t.Skip("takes ten seconds, and the race detector takes memory of its own")
	}
	const n = 10_000
	dir := t.TempDir()
	q := open(t, queue.Options{Dir: dir, Limit: 1 << 20, Log: quiet})
	fillQueue(t, q, n)
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	out, err := childCommand(within(t), "many", dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	var f figures
	if err := json.Unmarshal(out, &f); err != nil {
		t.Fatal(err)
	}
	t.Logf("start %s, first page %s, depth %s, %d KiB resident", f.Start, f.Page, f.Scan, f.KiB)
	if f.Depth != n || f.Start > 3*time.Second || f.Page > 100*time.Millisecond || f.Scan > 5*time.Millisecond || f.KiB > 200<<10 {
		t.Errorf("figures of %d queued builds: %+v", f.Depth, f)
	}
}

// The whole server may take 64 MiB at rest; the queue half of that.
func TestMemoryAtRest(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector takes memory of its own")
	}
	out, err := childCommand(within(t), "idle", t.TempDir()).Output()
	if err != nil {
		t.Fatal(err)
	}
	var kib int
	if err := json.Unmarshal(out, &kib); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d KiB resident", kib)
	if kib > 32<<10 {
		t.Errorf("%d KiB resident at rest, want at most 32 MiB", kib)
	}
}
