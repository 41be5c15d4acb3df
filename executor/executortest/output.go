package executortest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

func testStreams(r *run) {
	out, errs, err := r.run(r.Context(), r.step("echo 1; echo a >&2; echo 2; echo b >&2"))
	if err != nil || out != "1\n2\n" || errs != "a\nb\n" {
		r.Errorf("Run = %v, stdout %q, stderr %q", err, out, errs)
	}
}

// The command waits for us, who wait for its first line.
func testOutputAsItAppears(r *run) {
	dir := r.writableDir()
	step := r.step("echo ready; while ! test -e /go/go-on; do sleep 0.05; done; echo done")
	step.Mounts = mountAt("/go", dir, false)
	wait := r.start(r.Context(), step, "ready\n")
	if err := os.WriteFile(filepath.Join(dir, "go-on"), nil, 0o644); err != nil {
		r.Fatal(err)
	}
	if out, err := wait(); err != nil || out != "ready\ndone\n" {
		r.Errorf("Run = %v, stdout %q", err, out)
	}
}

func testOutputComplete(r *run) {
	const size = 100 << 20
	step := r.command("probe", "count", strconv.Itoa(size))
	var c counter
	step.Stdout = &c
	if err := r.Executor.Run(r.Context(), step); err != nil {
		r.Fatal(err)
	}
	if c.err != nil || c.size < size {
		r.Errorf("%d of %d bytes: %v", c.size, size, c.err)
	}
}

// A counter checks what "probe count" writes.
type counter struct {
	size int
	next int
	part []byte // of a line that is not complete
	err  error
}

func (c *counter) Write(p []byte) (int, error) {
	c.size += len(p)
	c.part = append(c.part, p...)
	for c.err == nil {
		line, rest, ok := bytes.Cut(c.part, []byte("\n"))
		if !ok {
			break
		}
		if string(line) != strconv.Itoa(c.next) {
			c.err = fmt.Errorf("line %d is %q", c.next, line)
		}
		c.next++
		c.part = rest
	}
	return len(p), nil
}

func testOutputLongLine(r *run) {
	const size = 50 << 20
	step := r.step("head -c " + strconv.Itoa(size) + " /dev/zero | tr '\\0' x")
	var n atomic.Int64
	step.Stdout = writerFunc(func(p []byte) (int, error) {
		n.Add(int64(bytes.Count(p, []byte("x"))))
		return len(p), nil
	})
	if err := r.Executor.Run(r.Context(), step); err != nil || n.Load() != size {
		r.Errorf("Run = %v, %d of %d bytes", err, n.Load(), size)
	}
}

// The command has long ended when the writer comes to take its output.
func testOutputSlowWriter(r *run) {
	const size = 64 << 10 // what a pipe holds
	step := r.command("probe", "count", strconv.Itoa(size))
	var c counter
	slow := sync.OnceFunc(func() { time.Sleep(time.Second) })
	step.Stdout = writerFunc(func(p []byte) (int, error) {
		slow()
		return c.Write(p)
	})
	if err := r.Executor.Run(r.Context(), step); err != nil {
		r.Fatal(err)
	}
	if c.err != nil || c.size < size {
		r.Errorf("%d of %d bytes: %v", c.size, size, c.err)
	}
}

func testOutputOnFailure(r *run) {
	out, errs, err := r.run(r.Context(), r.step("seq 1 1000; seq 1 1000 >&2; exit 3"))
	r.exits(err, 3)
	if strings.Count(out, "\n") != 1000 || strings.Count(errs, "\n") != 1000 {
		r.Errorf("stdout has %d lines, stderr %d, want 1000 each", strings.Count(out, "\n"), strings.Count(errs, "\n"))
	}
}

func testOutputNoneAfterRun(r *run) {
	var returned, late atomic.Bool
	w := writerFunc(func(p []byte) (int, error) {
		if returned.Load() {
			late.Store(true)
		}
		return len(p), nil
	})
	step := r.step("yes & yes >&2 & sleep 0.2")
	step.Stdout, step.Stderr = w, w
	err := r.Executor.Run(r.Context(), step)
	returned.Store(true)
	if err != nil {
		r.Error(err)
	}
	time.Sleep(100 * time.Millisecond) // what is late has a chance to come
	if late.Load() {
		r.Error("a write after Run returned")
	}
}

func testOutputDiscarded(r *run) {
	step := r.step("seq 1 100000; seq 1 100000 >&2; exit 4")
	r.exits(r.Executor.Run(r.Context(), step), 4)
}

// A writer that fails must not stop the command, which would stand still once
// its pipe is full.
func testOutputWriterFails(r *run) {
	step := r.step("seq 1 1000000; exit 5")
	step.Stdout = writerFunc(func([]byte) (int, error) { return 0, errors.New("disk full") })
	r.exits(r.Executor.Run(r.Context(), step), 5)
}

// One writer for both streams gets one Write at a time.
func testOutputOneWriter(r *run) {
	var busy, overlap atomic.Bool
	w := writerFunc(func(p []byte) (int, error) {
		if busy.Swap(true) {
			overlap.Store(true)
		}
		time.Sleep(10 * time.Microsecond)
		busy.Store(false)
		return len(p), nil
	})
	step := r.step("seq 1 20000 & seq 1 20000 >&2; wait")
	both := io.Writer(&w)
	step.Stdout, step.Stderr = both, both
	if err := r.Executor.Run(r.Context(), step); err != nil {
		r.Error(err)
	}
	if overlap.Load() {
		r.Error("two writes at the same time")
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// A watcher is a buffer that tells when it contains a text.
type watcher struct {
	text string
	seen chan struct{}

	mu  sync.Mutex
	buf bytes.Buffer
}

func newWatcher(text string) *watcher { return &watcher{text: text, seen: make(chan struct{})} }

func (w *watcher) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	had := strings.Contains(w.buf.String(), w.text)
	w.buf.Write(p)
	if !had && strings.Contains(w.buf.String(), w.text) {
		close(w.seen)
	}
	return len(p), nil
}

func (w *watcher) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}
