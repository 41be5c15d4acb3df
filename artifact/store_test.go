package artifact_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
)

func key(version string) build.Key {
	return build.Key{
		Target: build.Target{
			Repository: build.Repository{Remote: "git.local", Owner: "o", Name: "app"},
			GOOS:       "linux", GOARCH: "amd64", Version: version,
		},
		Commit: strings.Repeat("c", 40), Image: "sha256:1",
	}
}

func openStore(t *testing.T) (*artifact.Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "storage")
	s, err := artifact.Open(dir, artifact.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

func content(text string) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	}
}

func read(t *testing.T, s *artifact.Store, m artifact.Meta) string {
	t.Helper()
	f, err := s.File(m)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// files are the names under dir, without the directories.
func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestStoreKeepsWhatWasPut(t *testing.T) {
	s, dir := openStore(t)
	in := artifact.Meta{Key: key("v1"), Public: true, CommitTime: time.Unix(1700000000, 0).UTC(), BuildID: build.NewID()}
	put, err := s.Put(t.Context(), in, 0, content("hello"))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte("hello"))
	want := in
	want.Artifact = build.Artifact{Name: "app_linux_amd64.tar.gz", Size: 5, SHA256: hex.EncodeToString(sum[:])}
	want.CreatedAt = put.CreatedAt
	if d := cmp.Diff(want, put); d != "" || put.CreatedAt.IsZero() {
		t.Errorf("Put (-want +got):\n%s", d)
	}
	again, err := artifact.Open(dir, artifact.Options{})
	if err != nil {
		t.Fatal(err)
	}
	found, err := again.Lookup(in.Key.Slot())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(put, found); d != "" {
		t.Errorf("Lookup (-want +got):\n%s", d)
	}
	if got := read(t, again, found); got != "hello" {
		t.Errorf("content %q", got)
	}
}

func TestStoreReplacesASlotAndSharesContent(t *testing.T) {
	s, dir := openStore(t)
	put := func(version, text string) artifact.Meta {
		t.Helper()
		m, err := s.Put(t.Context(), artifact.Meta{Key: key(version)}, 0, content(text))
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	old := put("v1", "one")
	f, err := s.File(old)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	put("v1", "two")
	put("v2", "two")
	m, err := s.Lookup(key("v1").Slot())
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, s, m); got != "two" {
		t.Errorf("the slot holds %q after a second Put", got)
	}
	if b, err := io.ReadAll(f); string(b) != "one" || err != nil {
		t.Errorf("the old file reads %q, %v", b, err)
	}
	if _, err := s.File(old); !errors.Is(err, artifact.ErrNotFound) || errors.Is(err, artifact.ErrCorrupt) {
		t.Errorf("File of what was replaced = %v, want ErrNotFound alone", err)
	}
	if got := files(t, filepath.Join(dir, "blobs")); len(got) != 1 {
		t.Errorf("blobs %v, want the one that both slots name", got)
	}
	if got := files(t, filepath.Join(dir, "meta")); len(got) != 2 {
		t.Errorf("meta %v, want two", got)
	}
}

func TestStorePutThatFailsLeavesTheSlotAlone(t *testing.T) {
	broken := errors.New("broken")
	canceled := errors.New("canceled")
	for _, tc := range []struct {
		name  string
		limit int64
		write func(cancel context.CancelCauseFunc) func(io.Writer) error
		want  error
	}{
		{"writer fails", 0, func(context.CancelCauseFunc) func(io.Writer) error {
			return func(w io.Writer) error { _, _ = io.WriteString(w, "half"); return broken }
		}, broken},
		{"too large", 3, func(context.CancelCauseFunc) func(io.Writer) error { return content("four") }, artifact.ErrTooLarge},
		{"too large, error swallowed", 3, func(context.CancelCauseFunc) func(io.Writer) error {
			return func(w io.Writer) error { _, _ = io.WriteString(w, "four"); return nil }
		}, artifact.ErrTooLarge},
		{"canceled while writing", 0, func(cancel context.CancelCauseFunc) func(io.Writer) error {
			return func(w io.Writer) error { cancel(canceled); return content("new")(w) }
		}, canceled},
		{"canceled after writing", 0, func(cancel context.CancelCauseFunc) func(io.Writer) error {
			return func(w io.Writer) error { err := content("new")(w); cancel(canceled); return err }
		}, canceled},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, dir := openStore(t)
			if _, err := s.Put(t.Context(), artifact.Meta{Key: key("v1")}, 0, content("old")); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancelCause(t.Context())
			if _, err := s.Put(ctx, artifact.Meta{Key: key("v1")}, tc.limit, tc.write(cancel)); !errors.Is(err, tc.want) {
				t.Errorf("Put = %v, want %v", err, tc.want)
			}
			m, err := s.Lookup(key("v1").Slot())
			if err != nil {
				t.Fatal(err)
			}
			if got := read(t, s, m); got != "old" {
				t.Errorf("the slot holds %q", got)
			}
			if got := append(files(t, filepath.Join(dir, "blobs")), files(t, filepath.Join(dir, "meta"))...); len(got) != 2 {
				t.Errorf("left behind: %v", got)
			}
		})
	}
}

func TestStoreFindsWhatIsCorrupt(t *testing.T) {
	slot := key("v1").Slot()
	blob := func(dir string, m artifact.Meta) string { return filepath.Join(dir, "blobs", m.Artifact.SHA256) }
	meta := func(dir, slot string) string { return filepath.Join(dir, "meta", slot+".json") }
	for name, damage := range map[string]func(dir string, m artifact.Meta) error{
		"blob missing": func(dir string, m artifact.Meta) error { return os.Remove(blob(dir, m)) },
		"blob cut":     func(dir string, m artifact.Meta) error { return os.Truncate(blob(dir, m), 2) },
		"record cut":   func(dir string, _ artifact.Meta) error { return os.Truncate(meta(dir, slot), 40) },
		"record empty": func(dir string, _ artifact.Meta) error { return os.Truncate(meta(dir, slot), 0) },
		"other's place": func(dir string, _ artifact.Meta) error {
			return os.Rename(meta(dir, key("v2").Slot()), meta(dir, slot))
		},
		"newer version": func(dir string, _ artifact.Meta) error {
			return edit(meta(dir, slot), func(r map[string]any) { r["version"] = 99 })
		},
		"digest is a path": func(dir string, _ artifact.Meta) error {
			return edit(meta(dir, slot), func(r map[string]any) { r["artifact"].(map[string]any)["sha256"] = "../meta/" + slot + ".json" })
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := openStore(t)
			m, err := s.Put(t.Context(), artifact.Meta{Key: key("v1")}, 0, content("hello"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Put(t.Context(), artifact.Meta{Key: key("v2")}, 0, content("other")); err != nil {
				t.Fatal(err)
			}
			if err := damage(dir, m); err != nil {
				t.Fatal(err)
			}
			_, err = s.Lookup(slot)
			if !errors.Is(err, artifact.ErrNotFound) || !errors.Is(err, artifact.ErrCorrupt) {
				t.Errorf("Lookup = %v, want ErrNotFound and ErrCorrupt", err)
			}
			if _, err := s.Put(t.Context(), artifact.Meta{Key: key("v1")}, 0, content("hello")); err != nil {
				t.Fatal(err)
			}
			if m, err = s.Lookup(slot); err != nil {
				t.Fatalf("after another Put: %v", err)
			}
			if got := read(t, s, m); got != "hello" {
				t.Errorf("after another Put: %q", got)
			}
		})
	}
}

func edit(name string, change func(map[string]any)) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	var r map[string]any
	if err := json.Unmarshal(b, &r); err != nil {
		return err
	}
	change(r)
	b, err = json.Marshal(r)
	if err != nil {
		return err
	}
	return os.WriteFile(name, b, 0o600)
}

func TestStoreToleratesFieldsOfALaterVersion(t *testing.T) {
	s, dir := openStore(t)
	if _, err := s.Put(t.Context(), artifact.Meta{Key: key("v1")}, 0, content("hello")); err != nil {
		t.Fatal(err)
	}
	slot := key("v1").Slot()
	err := edit(filepath.Join(dir, "meta", slot+".json"), func(r map[string]any) { r["signature"] = map[string]any{"a": 1} })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Lookup(slot); err != nil {
		t.Error(err)
	}
}

func TestStoreLookupOfWhatIsNotThere(t *testing.T) {
	s, _ := openStore(t)
	for _, slot := range []string{key("v1").Slot(), "", "../meta", strings.Repeat("A", 64), strings.Repeat("a", 63) + "/"} {
		if _, err := s.Lookup(slot); !errors.Is(err, artifact.ErrNotFound) || errors.Is(err, artifact.ErrCorrupt) {
			t.Errorf("Lookup(%q) = %v, want ErrNotFound alone", slot, err)
		}
	}
	if _, err := s.File(artifact.Meta{Artifact: build.Artifact{SHA256: "../../etc/passwd"}}); !errors.Is(err, artifact.ErrNotFound) {
		t.Errorf("File = %v, want ErrNotFound", err)
	}
}

func TestStoreOpenRemovesWhatTheDeadLeft(t *testing.T) {
	s, dir := openStore(t)
	dead := filepath.Join(dir, "blobs", ".tmp-DEAD")
	if err := os.WriteFile(dead, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := s.Put(t.Context(), artifact.Meta{Key: key("v1")}, 0, func(w io.Writer) error {
		if _, err := artifact.Open(dir, artifact.Options{}); err != nil { // while this file is being written
			return err
		}
		return content("alive")(w)
	})
	if err != nil {
		t.Errorf("Open took the file of a living writer away: %v", err)
	}
	if _, err := os.Stat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the dead one's file: %v", err)
	}
}

// Each Store has a lock of its own, as if it were in another process.
func TestStoreIsSafeForConcurrentUse(t *testing.T) {
	for _, limit := range []int64{0, 20_000} { // bytes; three artifacts, or two
		t.Run(fmt.Sprint("limit ", limit), func(t *testing.T) {
			o := artifact.Options{Limit: limit}
			dir := t.TempDir()
			var wg sync.WaitGroup
			for range 3 {
				s, err := artifact.Open(dir, o)
				if err != nil {
					t.Fatal(err)
				}
				for i := range 3 {
					wg.Go(func() { useStore(t, s, dir, o, i == 0) })
				}
			}
			wg.Wait()
			s, err := artifact.Open(dir, o)
			if err != nil {
				t.Fatal(err)
			}
			verify(t, s, dir, limit)
		})
	}
}

func useStore(t *testing.T, s *artifact.Store, dir string, o artifact.Options, reopen bool) {
	gone := func(err error) bool {
		return errors.Is(err, artifact.ErrNotFound) && !errors.Is(err, artifact.ErrCorrupt)
	}
	for j := range 20 {
		text := fmt.Sprint("content ", j%7)
		m, err := s.Put(t.Context(), artifact.Meta{Key: key(fmt.Sprint("v", j%3))}, 0, content(text))
		if err != nil {
			t.Error(err)
			return
		}
		if f, err := s.File(m); err == nil {
			if b, err := io.ReadAll(f); string(b) != text || err != nil {
				t.Errorf("read %q, %v, want %q", b, err, text)
			}
			f.Close()
		} else if !gone(err) { // by another Put
			t.Error(err)
		}
		if _, err := s.Lookup(m.Key.Slot()); err != nil && (o.Limit == 0 || !gone(err)) {
			t.Error(err)
		}
		if reopen {
			if _, err := artifact.Open(dir, o); err != nil {
				t.Error(err)
			}
		}
	}
}
