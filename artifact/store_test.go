package artifact_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/artifact/artifacttest"
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
	f, err := s.Open(t.Context(), m)
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

func TestStore(t *testing.T) {
	artifacttest.Test(t, func(t *testing.T) artifacttest.Harness {
		s, dir := openStore(t)
		blob := func(sum string) string { return filepath.Join(dir, "blobs", sum) }
		record := func(slot string) string { return filepath.Join(dir, "meta", slot+".json") }
		replace := func(t *testing.T, name string, content []byte) {
			t.Helper()
			err := os.Remove(name)
			if content != nil {
				err = os.WriteFile(name, content, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		return artifacttest.Harness{
			Store: s,
			Again: func(t *testing.T) artifacttest.Store {
				t.Helper()
				again, err := artifact.Open(dir, artifact.Options{})
				if err != nil {
					t.Fatal(err)
				}
				return again
			},
			Blob:   func(t *testing.T, sum string, content []byte) { replace(t, blob(sum), content) },
			Record: func(t *testing.T, slot string, content []byte) { replace(t, record(slot), content) },
			Text: func(t *testing.T, slot string) []byte {
				t.Helper()
				text, err := os.ReadFile(record(slot))
				if err != nil {
					t.Fatal(err)
				}
				return text
			},
			Leftovers: func(t *testing.T) []string { return unnamed(t, s, dir) },
		}
	})
}

// unnamed are temporary files, and blobs that no record names.
func unnamed(t *testing.T, s *artifact.Store, dir string) (left []string) {
	t.Helper()
	left = unnamedFiles(t, dir)
	for a, err := range s.Unused(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, a.SHA256)
	}
	return left
}

func TestStoreReplacesASlotAndSharesContent(t *testing.T) {
	s, dir := openStore(t)
	put := func(version, text string) artifact.Meta {
		t.Helper()
		m, err := s.Put(t.Context(), artifact.Meta{Key: key(version)}, artifact.PutOptions{}, content(text))
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	old := put("v1", "one")
	f, err := s.Open(t.Context(), old)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	put("v1", "two")
	put("v2", "two")
	m, err := s.Lookup(t.Context(), key("v1").Slot())
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, s, m); got != "two" {
		t.Errorf("the slot holds %q after a second Put", got)
	}
	if b, err := io.ReadAll(f); string(b) != "one" || err != nil {
		t.Errorf("the old file reads %q, %v", b, err)
	}
	if _, err := s.Open(t.Context(), old); !errors.Is(err, artifact.ErrNotFound) || errors.Is(err, artifact.ErrCorrupt) {
		t.Errorf("Open of what was replaced = %v, want ErrNotFound alone", err)
	}
	if got := files(t, filepath.Join(dir, "blobs")); len(got) != 1 {
		t.Errorf("blobs %v, want the one that both slots name", got)
	}
	if got := files(t, filepath.Join(dir, "meta")); len(got) != 2 {
		t.Errorf("meta %v, want two", got)
	}
}

func TestStoreOpenRemovesWhatTheDeadLeft(t *testing.T) {
	s, dir := openStore(t)
	dead := filepath.Join(dir, "blobs", ".tmp-DEAD")
	if err := os.WriteFile(dead, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := s.Put(t.Context(), artifact.Meta{Key: key("v1")}, artifact.PutOptions{}, func(w io.Writer) error {
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
		m, err := s.Put(t.Context(), artifact.Meta{Key: key(fmt.Sprint("v", j%3))}, artifact.PutOptions{}, content(text))
		if err != nil {
			t.Error(err)
			return
		}
		if f, err := s.Open(t.Context(), m); err == nil {
			if b, err := io.ReadAll(f); string(b) != text || err != nil {
				t.Errorf("read %q, %v, want %q", b, err, text)
			}
			f.Close()
		} else if !gone(err) { // by another Put
			t.Error(err)
		}
		if _, err := s.Lookup(t.Context(), m.Key.Slot()); err != nil && (o.Limit == 0 || !gone(err)) {
			t.Error(err)
		}
		if reopen {
			if _, err := artifact.Open(dir, o); err != nil {
				t.Error(err)
			}
		}
	}
}

// Another process that stands still with the store's lock in its hand holds up
// nobody whose time is over.
func TestStoppedProcessHasTheLock(t *testing.T) {
	s, dir := openStore(t)
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	over := errors.New("the time is over")
	var wg sync.WaitGroup
	for name, do := range map[string]func(context.Context) error{
		"Put": func(ctx context.Context) error {
			_, err := s.Put(ctx, artifact.Meta{Key: key("v1")}, artifact.PutOptions{}, content("x"))
			return err
		},
		"PutLog": func(ctx context.Context) error {
			return s.PutLog(ctx, build.NewID(), 1, strings.NewReader("x\n"), 2)
		},
	} {
		wg.Go(func() {
			ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, over)
			defer cancel()
			if err := do(ctx); !errors.Is(err, over) {
				t.Errorf("%s = %v", name, err)
			}
		})
	}
	wg.Wait()
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(t.Context(), artifact.Meta{Key: key("v1")}, artifact.PutOptions{}, content("x")); err != nil {
		t.Errorf("Put when the lock is free = %v", err)
	}
}
