package s3store_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/artifact/artifacttest"
	"github.com/monochromegane/cargo/artifact/s3store/s3test"
	"github.com/monochromegane/cargo/build"
)

// More slots than a server lists at once, and a server that fails in between:
// each is yielded once.
func TestMetasGoesOn(t *testing.T) {
	const slots = 1030 // 1,000 are listed at once
	server := s3test.Start(t)
	p := newProxy(t, server)
	o := options(t, server)
	o.Endpoint = p.endpoint
	s := open(t, o)
	dir := filepath.Join(server.Dir, o.Bucket, o.Prefix, "meta")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range slots { // as some other program may have copied them there
		m := meta(fmt.Sprint("v", i), build.NewID(), 1)
		m.Artifact.SHA256 = fmt.Sprintf("%064x", i)
		text, err := artifact.EncodeRecord(m)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, m.Key.Slot()+".json"), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	lists := 0
	p.set(func(r *http.Request, _ int) fault {
		if kind(r) != "GET list" {
			return fault{}
		}
		lists++
		return fault{cut: lists == 1, reset: lists == 3} // the first page and the second
	})
	seen := map[string]bool{}
	last := ""
	for m, err := range s.Metas(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		slot := m.Key.Slot()
		if slot <= last || seen[slot] {
			t.Errorf("slot %s comes after %s", slot, last)
		}
		seen[slot], last = true, slot
	}
	if len(seen) != slots || lists != 4 {
		t.Errorf("%d slots in %d lists, want %d in 4", len(seen), lists, slots)
	}

	// What has no ETag cannot be compared, but can be replaced.
	if _, err := put(t.Context(), s, meta("v1", build.NewID(), 1), []byte("hello")); err != nil {
		t.Error(err)
	}
	holds(t, server, o, "v1", []byte("hello"))

	p.set(func(*http.Request, int) fault { return fault{answer: says(http.StatusForbidden, "AccessDenied")} })
	for _, err := range s.Metas(t.Context()) {
		if !errors.Is(err, artifact.ErrUnavailable) {
			t.Errorf("Metas = %v, want ErrUnavailable", err)
		}
	}
	if m, err := s.Lookup(t.Context(), artifacttest.Key("v1").Slot()); err == nil {
		t.Errorf("Lookup = %+v", m)
	}
}

// A server that stops in the middle of a list holds up nobody for ever.
func TestListGivesUp(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t)
	p := newProxy(t, server)
	o := options(t, server)
	o.Endpoint, o.Patience = p.endpoint, brief
	s := open(t, o)
	if _, err := put(t.Context(), s, meta("v1", build.NewID(), 1), []byte("hello")); err != nil {
		t.Fatal(err)
	}
	p.set(func(r *http.Request, _ int) fault { return fault{stuck: kind(r) == "GET list"} })
	ctx, cancel := context.WithTimeout(t.Context(), 5*brief)
	defer cancel()
	if err := s.PruneLogs(ctx, time.Now()); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("PruneLogs = %v, want ErrUnavailable", err)
	}
}

// Records are read side by side, so many and no more.
func TestMetasSideBySide(t *testing.T) {
	t.Parallel()
	const slots, most = 100, 16
	server := s3test.Start(t)
	p := newProxy(t, server)
	o := options(t, server)
	o.Endpoint = p.endpoint
	s := open(t, o)
	for i := range slots {
		if _, err := put(t.Context(), s, meta(fmt.Sprint("v", i), build.NewID(), 1), []byte("hello")); err != nil {
			t.Fatal(err)
		}
	}
	var now, peak atomic.Int64
	p.set(func(r *http.Request, _ int) fault {
		if kind(r) != "GET meta" {
			return fault{}
		}
		return fault{before: func() {
			peak.Store(max(peak.Load(), now.Add(1)))
			time.Sleep(20 * time.Millisecond)
			now.Add(-1)
		}}
	})
	last, seen := "", 0
	for m, err := range s.Metas(t.Context()) {
		if slot := m.Key.Slot(); err != nil || slot <= last {
			t.Fatalf("slot %s comes after %s: %v", slot, last, err)
		} else {
			last = slot
		}
		seen++
	}
	if got := peak.Load(); seen != slots || got < 2 || got > most {
		t.Errorf("%d slots, %d at once, want %d, 2 to %d", seen, got, slots, most)
	}
}
