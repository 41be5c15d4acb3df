package artifacttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
)

func testLog(r *run) {
	id, empty := build.NewID(), build.NewID()
	if got := r.log(id); got != "-" {
		r.Errorf("before PutLog: %q", got)
	}
	const text = "{\"line\":1}\n{\"line\":2}\n"
	if err := errors.Join(r.putLog(id, 1, text), r.putLog(empty, 1, "")); err != nil {
		r.Fatal(err)
	}
	if got := r.log(empty); got != "" {
		r.Errorf("an empty log reads %q", got)
	}
	r.Store = r.Again(r.T)
	if got := r.log(id); got != text {
		r.Errorf("the log reads %q, want %q", got, text)
	}
	f, _, err := r.Store.OpenLog(r.Context(), id)
	if err != nil {
		r.Fatal(err)
	}
	if at, err := f.Seek(11, io.SeekStart); at != 11 || err != nil {
		r.Errorf("Seek = %d, %v", at, err)
	}
	if got := r.drain(f); got != text[11:] {
		r.Errorf("from byte 11 it reads %q", got)
	}
	// More of the reader than was asked for is not the log.
	if err := r.Store.PutLog(r.Context(), id, 1, strings.NewReader("kept, not kept"), 4); err != nil {
		r.Fatal(err)
	}
	if got := r.log(id); got != "kept" {
		r.Errorf("the log reads %q", got)
	}
	for range r.Store.Metas(r.Context()) {
		r.Error("a log counts as a slot")
	}
}

func testLogLarge(r *run) {
	id := build.NewID()
	text := string(Random(2, large))
	if err := r.putLog(id, 1, text); err != nil {
		r.Fatal(err)
	}
	if r.log(id) != text {
		r.Error("the log is another one")
	}
}

func testLogSuperseded(r *run) {
	id := build.NewID()
	for _, tc := range []struct {
		attempt int
		refused bool
		want    string
	}{{2, false, "2\n"}, {1, true, "2\n"}, {2, false, "2\n"}, {3, false, "3\n"}, {2, true, "3\n"}} {
		err := r.putLog(id, tc.attempt, fmt.Sprintln(tc.attempt))
		if errors.Is(err, artifact.ErrSuperseded) != tc.refused || err != nil && !tc.refused {
			r.Errorf("PutLog of attempt %d = %v", tc.attempt, err)
		}
		if got := r.log(id); got != tc.want {
			r.Errorf("after PutLog of attempt %d the log is %q", tc.attempt, got)
		}
	}
	if err := r.putLog(id, 3, "3, more of it\n"); err != nil || r.log(id) != "3, more of it\n" {
		r.Errorf("PutLog of the same attempt = %v, the log is %q", err, r.log(id))
	}
}

func testLogFails(r *run) {
	id := build.NewID()
	if err := r.putLog(id, 1, "old\n"); err != nil {
		r.Fatal(err)
	}
	broken := errors.New("broken")
	if err := r.Store.PutLog(r.Context(), id, 1, torn{bytes.NewReader([]byte("ne")), broken}, 4); !errors.Is(err, broken) {
		r.Errorf("PutLog from a broken reader = %v", err)
	}
	if err := r.Store.PutLog(r.Context(), id, 1, strings.NewReader("ne"), 4); !errors.Is(err, io.ErrUnexpectedEOF) {
		r.Errorf("PutLog from a short reader = %v", err)
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	if err := r.Store.PutLog(ctx, id, 1, canceling{strings.NewReader("new\n"), func() { cancel(errGone) }}, 4); !errors.Is(err, errGone) {
		r.Errorf("PutLog under a context that ends = %v", err)
	}
	if got := r.log(id); got != "old\n" {
		r.Errorf("the log is %q", got)
	}
	for _, bad := range []build.ID{"", "../../x", build.ID(strings.Repeat("A", 32))} {
		if err := r.Store.PutLog(r.Context(), bad, 1, strings.NewReader(""), 0); err == nil {
			r.Errorf("PutLog(%q) succeeds", bad)
		}
		_, _, err := r.Store.OpenLog(r.Context(), bad)
		r.missing(fmt.Sprintf("OpenLog(%q)", bad), err, false)
	}
}

type canceling struct {
	io.ReaderAt
	cancel func()
}

func (c canceling) ReadAt(p []byte, off int64) (int, error) {
	c.cancel()
	return c.ReaderAt.ReadAt(p, off)
}

func testLogRace(r *run) {
	id := build.NewID()
	stores := []Store{r.Store, r.Again(r.T)}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			text := fmt.Sprintln("attempt", i+1)
			err := stores[i%2].PutLog(r.Context(), id, i+1, strings.NewReader(text), int64(len(text)))
			if err != nil && !errors.Is(err, artifact.ErrSuperseded) {
				r.Error(err)
			}
		})
	}
	wg.Wait()
	if got := r.log(id); got != "attempt 8\n" {
		r.Errorf("the log is %q", got)
	}
}

func testLogPruned(r *run) {
	a, b := build.NewID(), build.NewID()
	if err := errors.Join(r.putLog(a, 1, "a"), r.putLog(b, 1, "b")); err != nil {
		r.Fatal(err)
	}
	m := r.put(meta("v1", build.NewID(), 1), "stays")
	for _, tc := range []struct {
		before time.Time
		want   string
	}{{time.Now().Add(-time.Hour), "ab"}, {time.Now().Add(time.Hour), "--"}} {
		if err := r.Store.PruneLogs(r.Context(), tc.before); err != nil {
			r.Error(err)
		}
		if got := r.log(a) + r.log(b); got != tc.want {
			r.Errorf("logs %q after PruneLogs(%v), want %q", got, tc.before, tc.want)
		}
	}
	r.equal("the artifact", m, r.lookup("v1"))
}
