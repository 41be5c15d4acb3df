package buildlog_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/buildlog"
)

// A log is followed from another machine while it is written, and read there
// after its end, at the same offsets.
func TestShared(t *testing.T) {
	t.Parallel()
	js, a := embedded(t), newArchive()
	worker, api := newMachine(t, js, a), newMachine(t, js, a)
	b, done := attempt(build.NewID(), 1), make(chan struct{})
	early := api.follow(t, b.ID, 0, done) // the build is queued
	w := worker.create(t, b)
	say(w, "one")
	early.sees(t, "one")
	say(w, "two")
	early.sees(t, "two")
	half := api.read(t, b.ID, 0)
	late := api.follow(t, b.ID, int64(len(half)), done)
	say(w, "three")
	late.sees(t, "three")
	closed(t, w)
	live := api.read(t, b.ID, 0)
	if d := cmp.Diff([]string{"one", "two", "three"}, messages(t, live)); d != "" {
		t.Errorf("live (-want +got):\n%s", d)
	}
	must(t, worker.Keep(t.Context(), b))
	must(t, worker.Drop(t.Context(), b))
	close(done)
	early.is(t, live)
	late.is(t, strings.TrimPrefix(live, half))
	if got := a.log(b.ID); got.text != live || got.attempt != 1 {
		t.Errorf("archived is %q of attempt %d, want %q", got.text, got.attempt, live)
	}
	if got := api.read(t, b.ID, int64(len(half))); half+got != live {
		t.Errorf("after the end it reads %q", got)
	}
	if _, err := os.Stat(worker.path(b.ID)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the local file is still there: %v", err)
	}
	if n := messagesIn(t, js, b.ID); n != 1 {
		t.Errorf("%d messages are left in the stream, want one that says that the log is archived", n)
	}
	must(t, worker.Drop(t.Context(), b))
	must(t, api.Settle(t.Context(), b))
	if got := api.read(t, b.ID, 0); got != live || a.puts != 1 {
		t.Errorf("after all of it again: %q, stored %d times", got, a.puts)
	}
}

// However far its end has come, a log reads the same, from any line on; and who
// follows it misses nothing, wherever it stands when the log moves.
func TestReadersOverTheEnd(t *testing.T) {
	t.Parallel()
	js, a := embedded(t), newArchive()
	worker, api := newMachine(t, js, a), newMachine(t, js, a)
	b, done := attempt(build.NewID(), 1), make(chan struct{})
	const lines = 1000
	steps := []string{"written", "closed", "kept", "dropped", "ended"}
	free := map[string]chan struct{}{}
	for _, step := range steps {
		free[step] = make(chan struct{})
	}
	var tails []*tail
	var offsets []int64 // where each of tails began
	begin := func(offset int64, step string) {
		for _, held := range []int{1, 100} {
			tails = append(tails, api.followHeld(t, b.ID, offset, done, held, free[step]))
			offsets = append(offsets, offset)
		}
	}
	begin(0, "ended")
	w := worker.create(t, b)
	for i := range lines {
		say(w, "line %d %s", i, strings.Repeat("x", i%300))
		if i%100 == 0 { // so that there are many messages
			api.shows(t, b.ID, fmt.Sprintf("line %d ", i))
		}
	}
	text, starts := "", []int64(nil)
	for i, step := range steps {
		switch step {
		case "written":
			api.shows(t, b.ID, fmt.Sprintf("line %d ", lines-1))
			text = api.read(t, b.ID, 0)
			at := int64(0)
			for l := range strings.Lines(text) {
				starts = append(starts, at)
				at += int64(len(l))
			}
			starts = append(starts, at)
		case "closed":
			closed(t, w)
		case "kept":
			must(t, worker.Keep(t.Context(), b))
		case "dropped":
			must(t, worker.Drop(t.Context(), b))
		case "ended":
			close(done)
		}
		for _, n := range []int{0, 1, 2, 99, 101, 777, lines - 1, lines} {
			if got := api.read(t, b.ID, starts[n]); got != text[starts[n]:] {
				t.Errorf("%s, from line %d: %s", step, n, first(got, text[starts[n]:]))
			}
			if n < lines { // in the midst of a line
				if _, err := api.Read(t.Context(), b.ID, starts[n]+1, io.Discard); !errors.Is(err, buildlog.ErrOffset) {
					t.Errorf("%s, behind the start of line %d: %v", step, n, err)
				}
			}
		}
		for _, at := range begins(t, js, b.ID) { // the first line of each message
			if got := api.read(t, b.ID, at); got != text[at:] {
				t.Errorf("%s, from %d: %s", step, at, first(got, text[at:]))
			}
		}
		for _, n := range []int{0, 500, lines} {
			for _, until := range steps[i:] {
				begin(starts[n], until)
			}
		}
		close(free[step])
	}
	for i, f := range tails {
		f.is(t, text[offsets[i]:])
	}
}

// A reader finds the message to begin with among many.
func TestManyMessages(t *testing.T) {
	t.Parallel()
	js, a := embedded(t), newArchive()
	m := newMachine(t, js, a, func(o *buildlog.SharedOptions) { o.Local, _ = open(t, buildlog.Options{Flush: time.Microsecond}) })
	id, other := build.NewID(), build.NewID()
	w, noise := m.create(t, attempt(id, 1)), m.create(t, attempt(other, 1))
	f := m.follow(t, id, 0, nil)
	for i := range 150 {
		say(w, "line %d", i)
		say(noise, "noise")
		f.sees(t, fmt.Sprintf("line %d\"", i))
	}
	text, at := m.read(t, id, 0), int64(0)
	if n := len(begins(t, js, id)); n < 100 {
		t.Fatalf("only %d messages", n)
	}
	for l := range strings.Lines(text) {
		if got := m.read(t, id, at); got != text[at:] {
			t.Errorf("from %d: %s", at, first(got, text[at:]))
		}
		at += int64(len(l))
	}
}

// A log moves into the archive under somebody who reads it.
func TestReadOverDrop(t *testing.T) {
	t.Parallel()
	js, a := embedded(t), newArchive()
	m := newMachine(t, js, a)
	b := attempt(build.NewID(), 1)
	w := m.create(t, b)
	for i := range 100 {
		say(w, "line %d %s", i, strings.Repeat("x", 40<<10)) // more than a reader fetches at once
	}
	closed(t, w)
	text := m.read(t, b.ID, 0)
	must(t, m.Keep(t.Context(), b))
	out := &slowWriter{first: make(chan struct{}), free: make(chan struct{})}
	read := make(chan error, 1)
	go func() {
		_, err := m.Read(t.Context(), b.ID, 0, out)
		read <- err
	}()
	<-out.first
	must(t, m.Drop(t.Context(), b))
	close(out.free)
	if err := <-read; err != nil || out.String() != text {
		t.Errorf("Read = %v: %s", err, first(out.String(), text))
	}
}

// A slowWriter stands still in its first Write until free is closed.
type slowWriter struct {
	strings.Builder
	first, free chan struct{}
}

func (w *slowWriter) Write(p []byte) (int, error) {
	if w.Len() == 0 {
		close(w.first)
		<-w.free
	}
	return w.Builder.Write(p)
}

// The second attempt of a build, on another machine, goes on at the offset at
// which the stream stands, whatever its own disk holds.
func TestAttemptOnAnotherMachine(t *testing.T) {
	t.Parallel()
	for name, local := range map[string]func(shared string) string{
		"nothing":       func(string) string { return "" },
		"the same":      func(s string) string { return s },
		"its beginning": func(s string) string { return s[:strings.Index(s, "\n")+1] },
		"a torn line":   func(s string) string { return s[:len(s)-7] },
		"something else": func(s string) string {
			return strings.Replace(s, "one", "ONE", 1) + strings.Repeat("{}\n", 100)
		},
	} {
		t.Run(name, func(t *testing.T) {
			js, a := embedded(t), newArchive()
			lost, next, api := newMachine(t, js, a), newMachine(t, js, a), newMachine(t, js, a)
			id, done := build.NewID(), make(chan struct{})
			f := api.follow(t, id, 0, done)
			w := lost.create(t, attempt(id, 1))
			say(w, "one")
			say(w, "two")
			f.sees(t, "two")
			before := api.read(t, id, 0)
			if text := local(before); text != "" {
				must(t, os.MkdirAll(filepath.Dir(next.path(id)), 0o700))
				must(t, os.WriteFile(next.path(id), []byte(text), 0o600))
			}
			w2 := next.create(t, attempt(id, 2))
			say(w2, "three")
			f.sees(t, "three")
			say(w, "of the first attempt, which is not lost after all")
			wait(t, "its end", func() bool { return strings.Contains(lost.said.String(), "shipped no longer") })
			next.end(t, w2, attempt(id, 2))
			close(done)
			text := api.read(t, id, 0)
			f.is(t, text)
			if d := cmp.Diff([]string{"one", "two", "three"}, messages(t, text)); d != "" || !strings.HasPrefix(text, before) {
				t.Errorf("(-want +got):\n%s", d)
			}
			if err := errors.Join(w.Close(), lost.Keep(t.Context(), attempt(id, 1))); !errors.Is(err, buildlog.ErrSuperseded) {
				t.Errorf("Keep of the first attempt = %v", err)
			}
			if err := lost.Drop(t.Context(), attempt(id, 1)); !errors.Is(err, buildlog.ErrSuperseded) {
				t.Errorf("Drop of the first attempt = %v", err)
			}
			if got := a.log(id); got.text != text || got.attempt != 2 {
				t.Errorf("archived is %q of attempt %d", got.text, got.attempt)
			}
			if n := strings.Count(lost.said.String(), "shipped no longer"); n != 1 || strings.Contains(lost.said.String(), "level=ERROR") {
				t.Errorf("it says %d times that it is superseded, which is nobody's to mend:\n%s", n, lost.said)
			}
		})
	}
}

// A writer that was paused before its first message adds nothing, however late
// it wakes up.
func TestFence(t *testing.T) {
	t.Parallel()
	js, a := embedded(t), newArchive()
	late, next := newMachine(t, js, a), newMachine(t, js, a)
	id := build.NewID()
	w := late.create(t, attempt(id, 1))
	w2 := next.create(t, attempt(id, 2)) // finds nothing, but is there
	say(w, "one")
	wait(t, "its end", func() bool { return strings.Contains(late.said.String(), "shipped no longer") })
	say(w2, "two")
	next.end(t, w2, attempt(id, 2))
	if d := cmp.Diff([]string{"two"}, messages(t, next.read(t, id, 0))); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}

	id = build.NewID()
	w = late.create(t, attempt(id, 1))
	w2 = next.create(t, attempt(id, 2))
	say(w2, "two")
	next.end(t, w2, attempt(id, 2))
	say(w, "one")
	closed(t, w)
	if d := cmp.Diff([]string{"two"}, messages(t, next.read(t, id, 0))); d != "" {
		t.Errorf("after the end (-want +got):\n%s", d)
	}
	if _, err := late.Create(t.Context(), attempt(id, 1), 0); !errors.Is(err, buildlog.ErrSuperseded) {
		t.Errorf("Create again = %v", err)
	}

	id = build.NewID()
	w = late.create(t, attempt(id, 1))
	must(t, next.Settle(t.Context(), attempt(id, 1)))
	say(w, "one")
	closed(t, w)
	if n := messagesIn(t, js, id); n != 1 {
		t.Errorf("a settled log without a line has %d messages", n)
	}
	if err := late.Keep(t.Context(), attempt(id, 1)); !errors.Is(err, buildlog.ErrSuperseded) {
		t.Errorf("Keep after Settle = %v", err)
	}
}

// A build that ended without its worker: several API servers see to its log.
func TestSettle(t *testing.T) {
	t.Parallel()
	js, a := embedded(t), newArchive()
	lost := newMachine(t, js, a)
	b, done := attempt(build.NewID(), 3), make(chan struct{})
	w := lost.create(t, b)
	for i := range 500 {
		say(w, "line %d", i)
	}
	f := lost.follow(t, b.ID, 0, done)
	f.sees(t, "line 499")
	text := lost.read(t, b.ID, 0)
	var settling sync.WaitGroup
	for range 5 {
		api := newMachine(t, js, a)
		settling.Go(func() {
			for i := range 3 {
				say(w, "late %d", i)
				if err := api.Settle(t.Context(), b); err != nil {
					t.Error(err)
				}
			}
		})
	}
	settling.Wait()
	close(done)
	got := lost.read(t, b.ID, 0)
	f.is(t, got)
	if !strings.HasPrefix(got, text) || a.log(b.ID) != (archived{3, got}) {
		t.Errorf("read %d bytes, archived %d of attempt %d, written %d", len(got), len(a.log(b.ID).text), a.log(b.ID).attempt, len(text))
	}
	closed(t, w)
	if after := lost.read(t, b.ID, 0); after != got {
		t.Error("the worker added to it after that")
	}
	never := attempt(build.NewID(), 0)
	must(t, lost.Settle(t.Context(), never))
	if n := messagesIn(t, js, never.ID); n != 0 {
		t.Errorf("a build that was never claimed has %d messages", n)
	}
}

// A worker that goes on writing does not keep its log from being settled.
func TestSettleUnderAWriter(t *testing.T) {
	t.Parallel()
	js, a := embedded(t), newArchive()
	lost, api := newMachine(t, js, a), newMachine(t, js, a)
	b := attempt(build.NewID(), 3)
	w := lost.create(t, b)
	say(w, "line")
	api.shows(t, b.ID, "line")
	a.stored = func() {
		before := messagesIn(t, js, b.ID)
		say(w, "line")
		wait(t, "what becomes of it", func() bool {
			return messagesIn(t, js, b.ID) > before || strings.Contains(lost.said.String(), "shipped no longer")
		})
	}
	must(t, api.Settle(t.Context(), b))
	if a.puts != 1 {
		t.Errorf("the log was stored %d times", a.puts)
	}
}

// While the archive is away, logs stay in the stream, and are archived when it
// is back.
func TestArchiveAway(t *testing.T) {
	t.Parallel()
	js, a := embedded(t), newArchive()
	worker, api := newMachine(t, js, a), newMachine(t, js, a)
	b, done := attempt(build.NewID(), 1), make(chan struct{})
	w := worker.create(t, b)
	say(w, "one")
	f := api.follow(t, b.ID, 0, done)
	f.sees(t, "one")
	a.setBroken(true)
	closed(t, w)
	if err := worker.Keep(t.Context(), b); !errors.Is(err, errBroken) {
		t.Errorf("Keep = %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := worker.Drop(ctx, b); !errors.Is(err, buildlog.ErrUnavailable) || !errors.Is(err, errBroken) {
		t.Errorf("Drop = %v", err)
	}
	close(done)
	text := api.read(t, b.ID, 0)
	f.is(t, text)
	a.setBroken(false)
	if err := worker.Drop(t.Context(), b); err == nil || errors.Is(err, buildlog.ErrUnavailable) {
		t.Errorf("Drop of what is not archived = %v", err)
	}
	if got := api.read(t, b.ID, 0); got != text {
		t.Errorf("after Drop it reads %q, want %q", got, text)
	}
	if ids, err := api.Unsettled(t.Context()); err != nil || !slices.Equal(ids, []build.ID{b.ID}) {
		t.Errorf("Unsettled = %v, %v", ids, err)
	}
	must(t, api.Settle(t.Context(), b))
	if ids, err := api.Unsettled(t.Context()); err != nil || len(ids) > 0 {
		t.Errorf("Unsettled = %v, %v", ids, err)
	}
	a.setBroken(true)
	ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := api.Read(ctx, b.ID, 0, io.Discard); !errors.Is(err, buildlog.ErrUnavailable) {
		t.Errorf("Read without the archive = %v", err)
	}
	if err := api.Follow(ctx, b.ID, 0, done, nil); !errors.Is(err, buildlog.ErrUnavailable) {
		t.Errorf("Follow without the archive = %v", err)
	}
	a.setBroken(false)
	if got := api.read(t, b.ID, 0); got != text {
		t.Errorf("from the archive it reads %q, want %q", got, text)
	}
}

// A build whose log is archived already is queued again: the log goes on.
func TestQueuedAgain(t *testing.T) {
	t.Parallel()
	js, a := embedded(t), newArchive()
	lost, next, api := newMachine(t, js, a), newMachine(t, js, a), newMachine(t, js, a)
	id, done := build.NewID(), make(chan struct{})
	w := lost.create(t, attempt(id, 3))
	say(w, "one")
	closed(t, w)
	must(t, api.Settle(t.Context(), attempt(id, 3)))
	before := api.read(t, id, 0)
	all, rest := api.follow(t, id, 0, done), api.follow(t, id, int64(len(before)), done)
	all.sees(t, "one")
	w = next.create(t, attempt(id, 4))
	say(w, "two")
	all.sees(t, "two")
	rest.sees(t, "two")
	must(t, api.Settle(t.Context(), attempt(id, 3))) // late: of the attempt before
	next.end(t, w, attempt(id, 4))
	close(done)
	text := api.read(t, id, 0)
	all.is(t, text)
	rest.is(t, strings.TrimPrefix(text, before))
	if d := cmp.Diff([]string{"one", "two"}, messages(t, text)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// What is queued again after its end may lose its workers again: the message
// that the log had once left the stream is not in anybody's way.
func TestQueuedAgainAndLost(t *testing.T) {
	t.Parallel()
	js, a := embedded(t), newArchive()
	m, other, api := newMachine(t, js, a), newMachine(t, js, a), newMachine(t, js, a)
	id := build.NewID()
	w := m.create(t, attempt(id, 1))
	say(w, "one")
	m.end(t, w, attempt(id, 1))

	say(m.create(t, attempt(id, 2)), "two")
	api.shows(t, id, "two")
	say(other.create(t, attempt(id, 3)), "three")
	api.shows(t, id, "three")
	must(t, api.Settle(t.Context(), attempt(id, 3)))
	if d := cmp.Diff([]string{"one", "two", "three"}, messages(t, a.log(id).text)); d != "" {
		t.Errorf("archived (-want +got):\n%s", d)
	}
	if n := messagesIn(t, js, id); n != 1 {
		t.Errorf("a settled log has %d messages", n)
	}
}

// Logs of the time before they were shared stay readable.
func TestFormerLogs(t *testing.T) {
	t.Parallel()
	js, a := embedded(t), newArchive()
	m := newMachine(t, js, a)
	b, done := attempt(build.NewID(), 1), make(chan struct{})
	w, err := m.local.Create(t.Context(), b, 0)
	must(t, err)
	say(w, "one")
	closed(t, w)
	text := m.read(t, b.ID, 0)
	if d := cmp.Diff([]string{"one"}, messages(t, text)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	all, end := m.follow(t, b.ID, 0, done), m.follow(t, b.ID, int64(len(text)), done)
	if _, err := m.Read(t.Context(), b.ID, 3, io.Discard); !errors.Is(err, buildlog.ErrOffset) {
		t.Errorf("Read from inside = %v", err)
	}
	close(done)
	all.is(t, text)
	end.is(t, "")
	must(t, m.Settle(t.Context(), b)) // it ended as lost in the time before
	if got := m.read(t, b.ID, 0); got != text {
		t.Errorf("after Settle it reads %q", got)
	}
	w2 := m.create(t, attempt(b.ID, 2)) // or is queued again after all
	say(w2, "two")
	m.end(t, w2, attempt(b.ID, 2))
	if d := cmp.Diff([]string{"one", "two"}, messages(t, m.read(t, b.ID, 0))); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestSharedErrors(t *testing.T) {
	t.Parallel()
	js, a := embedded(t), newArchive()
	m := newMachine(t, js, a)
	b, done := attempt(build.NewID(), 1), make(chan struct{})
	close(done)
	for _, id := range []build.ID{b.ID, "", "../../etc/passwd", "*", ">"} {
		if _, err := m.Read(t.Context(), id, 0, io.Discard); !errors.Is(err, buildlog.ErrNotFound) {
			t.Errorf("Read(%q) = %v", id, err)
		}
		if id == b.ID {
			continue
		}
		if err := m.Follow(t.Context(), id, 0, done, nil); !errors.Is(err, buildlog.ErrNotFound) {
			t.Errorf("Follow(%q) = %v", id, err)
		}
		if _, err := m.Create(t.Context(), build.Build{ID: id}, 0); !errors.Is(err, buildlog.ErrNotFound) {
			t.Errorf("Create(%q) = %v", id, err)
		}
	}
	if err := m.Follow(t.Context(), b.ID, 0, done, nil); err != nil {
		t.Errorf("Follow of a build that never wrote = %v", err)
	}
	if err := m.Follow(t.Context(), b.ID, 5, nil, nil); !errors.Is(err, buildlog.ErrOffset) {
		t.Errorf("Follow from inside nothing = %v", err)
	}
	w := m.create(t, b)
	if _, err := m.Create(t.Context(), b, 0); !errors.Is(err, buildlog.ErrInUse) {
		t.Errorf("second Create = %v", err)
	}
	say(w, "one")
	m.follow(t, b.ID, 0, nil).sees(t, "one")
	for _, step := range []string{"live", "archived"} {
		text := m.read(t, b.ID, 0)
		for _, offset := range []int64{-1, 1, int64(len(text)) - 1, int64(len(text)) + 1, math.MaxInt64} {
			if _, err := m.Read(t.Context(), b.ID, offset, io.Discard); !errors.Is(err, buildlog.ErrOffset) {
				t.Errorf("%s: Read from %d = %v", step, offset, err)
			}
			if err := m.Follow(t.Context(), b.ID, offset, nil, nil); !errors.Is(err, buildlog.ErrOffset) {
				t.Errorf("%s: Follow from %d = %v", step, offset, err)
			}
		}
		enough := errors.New("enough")
		if err := m.Follow(t.Context(), b.ID, 0, nil, func([]byte, int64) error { return enough }); err != enough {
			t.Errorf("%s: Follow = %v", step, err)
		}
		cause := errors.New("gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		emit := func([]byte, int64) error { cancel(cause); return nil }
		if err := m.Follow(ctx, b.ID, 0, nil, emit); !errors.Is(err, cause) || errors.Is(err, buildlog.ErrUnavailable) {
			t.Errorf("%s: Follow of a client that goes away = %v", step, err)
		}
		if step == "live" {
			m.end(t, w, b)
		}
	}
}
