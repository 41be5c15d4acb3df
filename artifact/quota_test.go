package artifact_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/monochromegane/cargo/artifact"
)

// big is a content of a size beside which a record is nothing.
func big(mark string) string { return strings.Repeat(mark, 100_000/len(mark)) }

func limited(t *testing.T, dir string, artifacts int) *artifact.Store {
	t.Helper()
	s, err := artifact.Open(dir, artifact.Options{Limit: int64(artifacts) * 107_000})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t *testing.T, s *artifact.Store, version string) artifact.Meta {
	t.Helper()
	m, err := s.Put(t.Context(), artifact.Meta{Key: key(version)}, artifact.PutOptions{}, content(big(version)))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// age sets back when versions were used last.
func age(t *testing.T, dir string, hours map[string]int) {
	t.Helper()
	for version, h := range hours {
		at := time.Now().Add(-time.Duration(h) * time.Hour)
		if err := os.Chtimes(filepath.Join(dir, "meta", key(version).Slot()+".json"), at, at); err != nil {
			t.Fatal(err)
		}
	}
}

// held are those of the versions that the store holds whole.
func held(t *testing.T, s *artifact.Store, versions ...string) (all []string) {
	t.Helper()
	for _, v := range versions {
		m, err := s.Lookup(t.Context(), key(v).Slot())
		switch {
		case errors.Is(err, artifact.ErrCorrupt), err != nil && !errors.Is(err, artifact.ErrNotFound):
			t.Error(err)
		case err == nil:
			if m.Artifact.Size != int64(len(big(v))) {
				t.Errorf("%s has %d bytes", v, m.Artifact.Size)
			}
			all = append(all, v)
		}
	}
	return all
}

func TestStoreEvictsTheLeastRecentlyUsed(t *testing.T) {
	all := []string{"v1", "v2", "v3", "v4"}
	for _, tc := range []struct {
		name string
		then func(t *testing.T, s *artifact.Store, dir string) *artifact.Store
		want []string
	}{
		{"put", func(t *testing.T, s *artifact.Store, _ string) *artifact.Store {
			put(t, s, "v4")
			return s
		}, []string{"v1", "v3", "v4"}},
		{"put after a download", func(t *testing.T, s *artifact.Store, _ string) *artifact.Store {
			m, err := s.Lookup(t.Context(), key("v2").Slot())
			if err != nil {
				t.Fatal(err)
			}
			read(t, s, m)
			put(t, s, "v4")
			return s
		}, []string{"v2", "v3", "v4"}},
		{"put after a look", func(t *testing.T, s *artifact.Store, _ string) *artifact.Store {
			held(t, s, all...)
			put(t, s, "v4")
			return s
		}, []string{"v1", "v3", "v4"}},
		{"put after a put of another process", func(t *testing.T, s *artifact.Store, dir string) *artifact.Store {
			put(t, limited(t, dir, 4), "v4")
			put(t, s, "v2") // still held, and now the newest
			return s
		}, []string{"v2", "v3", "v4"}},
		{"lower limit", func(t *testing.T, _ *artifact.Store, dir string) *artifact.Store {
			return limited(t, dir, 1)
		}, []string{"v3"}},
		{"no limit any more", func(t *testing.T, _ *artifact.Store, dir string) *artifact.Store {
			s := limited(t, dir, 0)
			put(t, s, "v4")
			return s
		}, all},
		{"one that is too large alone", func(t *testing.T, _ *artifact.Store, dir string) *artifact.Store {
			s, err := artifact.Open(dir, artifact.Options{Limit: 1})
			if err != nil {
				t.Fatal(err)
			}
			if s.Bytes() != 0 {
				t.Errorf("%d bytes left", s.Bytes())
			}
			put(t, s, "v1")
			put(t, s, "v4")
			return s
		}, []string{"v4"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			s := limited(t, dir, 3)
			for _, v := range all[:3] {
				put(t, s, v)
			}
			age(t, dir, map[string]int{"v1": 5, "v2": 9, "v3": 2})
			s = tc.then(t, limited(t, dir, 3), dir) // which read the times after they were changed
			if d := cmp.Diff(tc.want, held(t, s, all...)); d != "" {
				t.Errorf("held (-want +got):\n%s", d)
			}
			if got := len(files(t, filepath.Join(dir, "blobs"))); got != len(tc.want) {
				t.Errorf("%d blobs, want %d", got, len(tc.want))
			}
			if got := bytesIn(t, dir); got != s.Bytes() {
				t.Errorf("Bytes() = %d, want %d", s.Bytes(), got)
			}
		})
	}
}

func TestStoreBuildsWhatWasEvictedAgain(t *testing.T) {
	dir := t.TempDir()
	s := limited(t, dir, 1)
	old := put(t, s, "v1")
	f, err := s.Open(t.Context(), old)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	put(t, s, "v2")
	if _, err := s.Open(t.Context(), old); !errors.Is(err, artifact.ErrNotFound) || errors.Is(err, artifact.ErrCorrupt) {
		t.Errorf("Open = %v, want ErrNotFound alone", err)
	}
	if b, err := io.ReadAll(f); string(b) != big("v1") || err != nil {
		t.Errorf("the download that was going on has %d bytes, %v", len(b), err)
	}
	if got := read(t, s, put(t, s, "v1")); got != big("v1") {
		t.Errorf("stored again, it has %d bytes", len(got))
	}
}

// Evicting one name of a content leaves it to the other.
func TestStoreKeepsContentThatAnotherSlotNames(t *testing.T) {
	dir := t.TempDir()
	s := limited(t, dir, 2)
	for _, version := range []string{"v1", "v2"} {
		if _, err := s.Put(t.Context(), artifact.Meta{Key: key(version)}, artifact.PutOptions{}, content(big("v2"))); err != nil {
			t.Fatal(err)
		}
	}
	age(t, dir, map[string]int{"v1": 9, "v2": 2})
	put(t, s, "v3")
	put(t, s, "v4")
	if got := held(t, s, "v3", "v4"); len(got) != 2 {
		t.Errorf("held: %v", got)
	}
	put(t, s, "v2")
	if _, err := s.Lookup(t.Context(), key("v1").Slot()); !errors.Is(err, artifact.ErrNotFound) {
		t.Errorf("Lookup of the oldest = %v", err)
	}
	verify(t, s, dir, 2*107_000)
}

func TestStoreUseIsCoarse(t *testing.T) {
	s, dir := openStore(t)
	m := put(t, s, "v1")
	used := func() time.Time {
		info, err := os.Stat(filepath.Join(dir, "meta", m.Key.Slot()+".json"))
		if err != nil {
			t.Fatal(err)
		}
		return info.ModTime()
	}
	for _, tc := range []struct {
		ago   time.Duration
		moves bool
	}{{59 * time.Minute, false}, {61 * time.Minute, true}, {-24 * time.Hour, true}} { // the last by a clock that was wrong
		at := time.Now().Add(-tc.ago)
		if err := os.Chtimes(filepath.Join(dir, "meta", m.Key.Slot()+".json"), at, at); err != nil {
			t.Fatal(err)
		}
		before := used()
		read(t, s, m)
		if moved := !used().Equal(before); moved != tc.moves {
			t.Errorf("used %v ago: moved %v, want %v", tc.ago, moved, tc.moves)
		}
	}
}

func TestStoreOpenRemovesWhatNoRecordNames(t *testing.T) {
	s, dir := openStore(t)
	put(t, s, "v1")
	orphan := strings.Repeat("0", 64)
	strange := filepath.Join(dir, "blobs", "README")
	for _, name := range []string{filepath.Join(dir, "blobs", orphan), strange} {
		if err := os.WriteFile(name, []byte("left"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	again, err := artifact.Open(dir, artifact.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got := files(t, filepath.Join(dir, "blobs")); slices.Contains(got, orphan) || len(got) != 2 {
		t.Errorf("blobs: %v", got)
	}
	if got := held(t, again, "v1"); len(got) != 1 {
		t.Error("the artifact is gone")
	}
}

// A record that cannot be read takes its turn like any other.
func TestStoreEvictsDamagedRecords(t *testing.T) {
	dir := t.TempDir()
	s := limited(t, dir, 2)
	put(t, s, "v1")
	put(t, s, "v2")
	if err := os.Truncate(filepath.Join(dir, "meta", key("v1").Slot()+".json"), 10); err != nil {
		t.Fatal(err)
	}
	age(t, dir, map[string]int{"v1": 9, "v2": 2})
	s = limited(t, dir, 2)
	if got := len(files(t, filepath.Join(dir, "blobs"))); got != 1 {
		t.Errorf("%d blobs, want that of v2", got)
	}
	for i := range 2 {
		put(t, s, fmt.Sprint("v", 3+i))
	}
	if _, err := s.Lookup(t.Context(), key("v1").Slot()); !errors.Is(err, artifact.ErrNotFound) || errors.Is(err, artifact.ErrCorrupt) {
		t.Errorf("Lookup = %v, want ErrNotFound alone", err)
	}
	verify(t, s, dir, 2*107_000)
}
