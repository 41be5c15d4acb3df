package artifacttest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
)

// large is more than a store that uploads in parts sends at once.
const large = 37<<20 + 5

func testKeeps(r *run) {
	in := meta("v1", build.NewID(), 2)
	put := r.put(in, "hello")
	want := in
	want.Artifact = build.Artifact{Name: "app_linux_amd64.tar.gz", Size: 5, SHA256: digest("hello")}
	r.equal("Put", want, put)
	r.equal("Lookup", want, r.lookup("v1"))
	r.Store = r.Again(r.T)
	r.equal("Lookup of another process", want, r.lookup("v1"))
	r.holds("v1", "hello")

	bare, err := r.Store.Put(r.Context(), artifact.Meta{Key: Key("v2")}, artifact.PutOptions{}, Content("bare"))
	if err != nil || bare.CreatedAt.IsZero() {
		r.Errorf("Put of a bare Meta = %+v, %v", bare, err)
	}
	r.equal("Lookup of a bare Meta", bare, r.lookup("v2"))
}

func testEmpty(r *run) {
	r.put(meta("v1", build.NewID(), 1), "")
	r.holds("v1", "")
}

func testLarge(r *run) {
	text := string(Random(1, large))
	m, err := r.Store.Put(r.Context(), meta("v1", build.NewID(), 1), artifact.PutOptions{Limit: large}, func(w io.Writer) error {
		_, err := io.Copy(w, struct{ io.Reader }{strings.NewReader(text)})
		return err
	})
	if err != nil || m.Artifact.Size != large || m.Artifact.SHA256 != digest(text) {
		r.Fatalf("Put = %+v, %v", m.Artifact, err)
	}
	r.holds("v1", text)
}

func testSeek(r *run) {
	const text = "0123456789"
	f, err := r.Store.Open(r.Context(), r.put(meta("v1", build.NewID(), 1), text))
	if err != nil {
		r.Fatal(err)
	}
	defer f.Close()
	for _, tc := range []struct {
		offset int64
		whence int
		at     int64
		read   string
	}{
		{0, io.SeekEnd, 10, ""}, // as http.ServeContent asks for the size
		{0, io.SeekStart, 0, "0123"},
		{2, io.SeekCurrent, 6, "6789"},
		{-3, io.SeekEnd, 7, "789"},
		{5, io.SeekStart, 5, "5"},
		{0, io.SeekCurrent, 6, "67"},
		{20, io.SeekStart, 20, ""},
	} {
		at, err := f.Seek(tc.offset, tc.whence)
		if err != nil || at != tc.at {
			r.Errorf("Seek(%d, %d) = %d, %v, want %d", tc.offset, tc.whence, at, err, tc.at)
		}
		b := make([]byte, len(tc.read))
		if _, err := io.ReadFull(f, b); err != nil || string(b) != tc.read {
			r.Errorf("after Seek(%d, %d): %q, %v, want %q", tc.offset, tc.whence, b, err, tc.read)
		}
		if n, err := f.Read(make([]byte, 1)); tc.read == "" && (n != 0 || !errors.Is(err, io.EOF)) {
			r.Errorf("Read at %d = %d, %v, want io.EOF", at, n, err)
		}
		if tc.read != "" {
			if _, err := f.Seek(tc.at+int64(len(tc.read)), io.SeekStart); err != nil {
				r.Error(err)
			}
		}
	}
	if _, err := f.Seek(-1, io.SeekStart); err == nil {
		r.Error("Seek to before the start succeeds")
	}
}

func testReplaces(r *run) {
	old := r.put(meta("v1", build.NewID(), 1), "one")
	f, err := r.Store.Open(r.Context(), old)
	if err != nil {
		r.Fatal(err)
	}
	r.put(meta("v1", build.NewID(), 1), "two")
	r.holds("v1", "two")
	if got := r.drain(f); got != "one" {
		r.Errorf("the download that was going on reads %q", got)
	}
	r.put(meta("v1", build.NewID(), 1), "one")
	r.holds("v1", "one")
}

func testShares(r *run) {
	r.put(meta("v1", build.NewID(), 1), "same")
	r.put(meta("v2", build.NewID(), 1), "same")
	r.put(meta("v1", build.NewID(), 1), "other")
	r.holds("v1", "other")
	r.holds("v2", "same")
}

func testNotThere(r *run) {
	for _, slot := range []string{Key("v1").Slot(), "", "../meta", strings.Repeat("A", 64), strings.Repeat("a", 63) + "/"} {
		_, err := r.Store.Lookup(r.Context(), slot)
		r.missing(fmt.Sprintf("Lookup(%q)", slot), err, false)
	}
	_, err := r.Store.Open(r.Context(), artifact.Meta{Artifact: build.Artifact{SHA256: "../../etc/passwd"}})
	r.missing("Open", err, false)
	err = r.Store.Verify(r.Context(), artifact.Meta{Artifact: build.Artifact{SHA256: "../../etc/passwd"}})
	r.missing("Verify", err, false)
}

var errGone = errors.New("who asked went away")

func testContextEnded(r *run) {
	m := r.put(meta("v1", build.NewID(), 1), "hello")
	id := build.NewID()
	if err := r.putLog(id, 1, "log\n"); err != nil {
		r.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	cancel(errGone)
	for name, do := range map[string]func() error{
		"Lookup":  func() error { _, err := r.Store.Lookup(ctx, m.Key.Slot()); return err },
		"Open":    func() error { _, err := r.Store.Open(ctx, m); return err },
		"Verify":  func() error { return r.Store.Verify(ctx, m) },
		"OpenLog": func() error { _, _, err := r.Store.OpenLog(ctx, id); return err },
		"PutLog":  func() error { return r.Store.PutLog(ctx, id, 2, strings.NewReader("x"), 1) },
		"Put": func() error {
			_, err := r.Store.Put(ctx, meta("v1", build.NewID(), 1), artifact.PutOptions{}, Content("new"))
			return err
		},
		"Metas": func() error {
			for _, err := range r.Store.Metas(ctx) {
				return err
			}
			return nil
		},
	} {
		if err := do(); !errors.Is(err, errGone) || errors.Is(err, artifact.ErrUnavailable) {
			r.Errorf("%s = %v, want the cause %v alone", name, err, errGone)
		}
	}
	r.holds("v1", "hello")
	if got := r.log(id); got != "log\n" {
		r.Errorf("the log is %q", got)
	}
}

func testPutFails(r *run) {
	broken := errors.New("broken")
	old := r.put(meta("v1", build.NewID(), 1), "old")
	for _, tc := range []struct {
		name    string
		limit   int64
		write   func(cancel context.CancelCauseFunc) func(io.Writer) error
		confirm func(cancel context.CancelCauseFunc) error
		want    error
	}{
		{"writer fails", 0, func(context.CancelCauseFunc) func(io.Writer) error {
			return func(w io.Writer) error { _, _ = io.WriteString(w, "half"); return broken }
		}, nil, broken},
		{"too large", 3, func(context.CancelCauseFunc) func(io.Writer) error { return Content("four") }, nil, artifact.ErrTooLarge},
		{"too large, error swallowed", 3, func(context.CancelCauseFunc) func(io.Writer) error {
			return func(w io.Writer) error { _, _ = io.WriteString(w, "four"); return nil }
		}, nil, artifact.ErrTooLarge},
		{"canceled while writing", 0, func(cancel context.CancelCauseFunc) func(io.Writer) error {
			return func(w io.Writer) error { cancel(errGone); return Content("new")(w) }
		}, nil, errGone},
		{"canceled after writing", 0, func(cancel context.CancelCauseFunc) func(io.Writer) error {
			return func(w io.Writer) error { err := Content("new")(w); cancel(errGone); return err }
		}, nil, errGone},
		{"not confirmed", 0, nil, func(context.CancelCauseFunc) error { return broken }, broken},
		{"canceled while confirming", 0, nil, func(cancel context.CancelCauseFunc) error { cancel(errGone); return nil }, errGone},
	} {
		ctx, cancel := context.WithCancelCause(r.Context())
		o := artifact.PutOptions{Limit: tc.limit}
		if tc.confirm != nil {
			o.Confirm = func(context.Context) error { return tc.confirm(cancel) }
		}
		write := Content("new")
		if tc.write != nil {
			write = tc.write(cancel)
		}
		if m, err := r.Store.Put(ctx, meta("v1", build.NewID(), 1), o, write); !errors.Is(err, tc.want) || errors.Is(err, artifact.ErrUnavailable) {
			r.Errorf("%s: Put = %+v, %v, want %v", tc.name, m, err, tc.want)
		}
		cancel(nil)
		r.equal(tc.name, old, r.lookup("v1"))
	}
	r.holds("v1", "old")
}

// Whoever confirms must find everything done but the change of the slot.
func testConfirmIsLast(r *run) {
	old := r.put(meta("v1", build.NewID(), 1), "old")
	written, asked := false, 0
	_, err := r.Store.Put(r.Context(), meta("v1", build.NewID(), 1), artifact.PutOptions{Confirm: func(ctx context.Context) error {
		asked++
		if !written {
			r.Error("asked before the archive was written")
		}
		r.equal("the slot at the time of asking", old, r.lookup("v1"))
		return context.Cause(ctx)
	}}, func(w io.Writer) error {
		err := Content("new")(w)
		written = true
		return err
	})
	if err != nil || asked == 0 {
		r.Errorf("Put = %v, asked %d times", err, asked)
	}
	r.holds("v1", "new")
}

func testSuperseded(r *run) {
	id := build.NewID()
	second := r.put(meta("v1", id, 2), "second")
	_, err := r.Store.Put(r.Context(), meta("v1", id, 1), artifact.PutOptions{}, Content("first"))
	if !errors.Is(err, artifact.ErrSuperseded) || errors.Is(err, artifact.ErrUnavailable) {
		r.Errorf("Put of an earlier attempt = %v, want %v", err, artifact.ErrSuperseded)
	}
	r.equal("the slot", second, r.lookup("v1"))
	r.put(meta("v1", id, 2), "second again")
	r.holds("v1", "second again")
	r.put(meta("v1", id, 3), "third")
	r.holds("v1", "third")
	r.put(meta("v1", build.NewID(), 1), "another build")
	r.holds("v1", "another build")
}

// A later attempt stores while an earlier one is about to.
func testSupersededMeanwhile(r *run) {
	for _, before := range []string{"", "old"} {
		version := "v1" + before
		if before != "" {
			r.put(meta(version, build.NewID(), 1), before)
		}
		id := build.NewID()
		other := r.Again(r.T)
		_, err := r.Store.Put(r.Context(), meta(version, id, 1), artifact.PutOptions{Confirm: func(ctx context.Context) error {
			_, err := other.Put(ctx, meta(version, id, 2), artifact.PutOptions{}, Content("second"))
			return err
		}}, Content("first"))
		if !errors.Is(err, artifact.ErrSuperseded) {
			r.Errorf("Put = %v, want %v", err, artifact.ErrSuperseded)
		}
		r.holds(version, "second")
	}
}

// Another build stores while this one is about to: the last one wins, and it has
// been asked whether it may.
func testReplacedMeanwhile(r *run) {
	r.put(meta("v1", build.NewID(), 1), "old")
	other := r.Again(r.T)
	once := sync.OnceValue(func() error {
		_, err := other.Put(r.Context(), meta("v1", build.NewID(), 1), artifact.PutOptions{}, Content("other"))
		return err
	})
	_, err := r.Store.Put(r.Context(), meta("v1", build.NewID(), 1), artifact.PutOptions{Confirm: func(context.Context) error { return once() }}, Content("last"))
	if err != nil {
		r.Error(err)
	}
	r.holds("v1", "last")
}

// Whoever wins, the slot is one of them, whole, and never an earlier attempt
// after a later one.
func testRace(r *run) {
	id := build.NewID()
	stores := []Store{r.Store, r.Again(r.T)}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			attempt := i + 1
			text := fmt.Sprint("attempt ", attempt)
			m, err := stores[i%2].Put(r.Context(), meta("v1", id, attempt), artifact.PutOptions{}, Content(text))
			if err != nil && !errors.Is(err, artifact.ErrSuperseded) {
				r.Error(err)
			}
			if err == nil && m.Artifact.SHA256 != digest(text) {
				r.Errorf("Put = %+v", m.Artifact)
			}
			if m, err := stores[i%2].Lookup(r.Context(), Key("v1").Slot()); err == nil && m.Artifact.SHA256 != digest(fmt.Sprint("attempt ", m.Attempt)) {
				r.Errorf("the slot names the content of another attempt than %d", m.Attempt)
			}
		})
	}
	wg.Wait()
	r.holds("v1", "attempt 8")
}
