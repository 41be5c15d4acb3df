package buildlog_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/buildlog"
)

// aged writes a log that was last written so many hours before now, and has
// about 1000 bytes.
func aged(t *testing.T, s *buildlog.Store, dir string, now time.Time, hours int) build.ID {
	t.Helper()
	id := build.NewID()
	w := create(t, s, id, 0)
	w.Log(slog.LevelInfo, strings.Repeat("x", 880))
	closed(t, w)
	at := now.Add(-time.Duration(hours) * time.Hour)
	if err := os.Chtimes(logPath(dir, id), at, at); err != nil {
		t.Fatal(err)
	}
	return id
}

func logPath(dir string, id build.ID) string {
	return filepath.Join(dir, string(id[:2]), string(id)+".jsonl")
}

func TestPrune(t *testing.T) {
	hours := []int{1, 30, 4, 20, 3} // ago
	for _, tc := range []struct {
		name string
		o    buildlog.Options
		want []int // the hours of those that are left
	}{
		{"forever", buildlog.Options{}, hours},
		{"retention", buildlog.Options{Retention: 10 * time.Hour}, []int{1, 4, 3}},
		{"retention of nothing", buildlog.Options{Retention: time.Minute}, nil},
		{"limit", buildlog.Options{Limit: 2500}, []int{1, 3}},
		{"limit that is not reached", buildlog.Options{Limit: 1 << 20}, hours},
		{"both, the limit is lower", buildlog.Options{Retention: 25 * time.Hour, Limit: 3500}, []int{1, 4, 3}},
		{"both, the limit is higher", buildlog.Options{Retention: 10 * time.Hour, Limit: 4500}, []int{1, 4, 3}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, dir := open(t, tc.o)
			now := time.Now()
			ids := map[int]build.ID{}
			for _, h := range hours {
				ids[h] = aged(t, s, dir, now, h)
			}
			removed, err := s.Prune(t.Context(), now)
			if err != nil {
				t.Fatal(err)
			}
			var got []int
			for _, h := range hours {
				if _, err := s.Read(t.Context(), ids[h], 0, io.Discard); err == nil {
					got = append(got, h)
				} else if !errors.Is(err, buildlog.ErrNotFound) {
					t.Error(err)
				}
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("left, in hours of age (-want +got):\n%s", d)
			}
			if removed != len(hours)-len(tc.want) {
				t.Errorf("removed = %d, want %d", removed, len(hours)-len(tc.want))
			}
			if again, err := s.Prune(t.Context(), now); again != 0 || err != nil {
				t.Errorf("Prune again = %d, %v", again, err)
			}
		})
	}
}

func TestPruneLeavesLogsInUse(t *testing.T) {
	for name, o := range map[string]buildlog.Options{"retention": {Retention: time.Hour}, "limit": {Limit: 1}} {
		t.Run(name, func(t *testing.T) {
			s, dir := open(t, o)
			now := time.Now()
			written, followed := aged(t, s, dir, now, 9), aged(t, s, dir, now, 9)
			w := create(t, s, written, 0) // goes on with it, and has written nothing yet
			emitted, ended := make(chan struct{}, 1), make(chan error, 1)
			done := make(chan struct{})
			go func() {
				ended <- s.Follow(t.Context(), followed, 0, done, func([]byte, int64) error {
					emitted <- struct{}{}
					return nil
				})
			}()
			<-emitted
			if n, err := s.Prune(t.Context(), now); n != 0 || err != nil {
				t.Errorf("Prune = %d, %v, though both are in use", n, err)
			}
			close(done)
			if err := <-ended; err != nil {
				t.Error(err)
			}
			closed(t, w)
			if n, err := s.Prune(t.Context(), now); n != 2 || err != nil {
				t.Errorf("Prune = %d, %v, want both, which nobody uses any more", n, err)
			}
		})
	}
}

func TestPruneLeavesWhatIsNoLog(t *testing.T) {
	s, dir := open(t, buildlog.Options{Retention: time.Hour, Limit: 1})
	now := time.Now()
	id := aged(t, s, dir, now, 9)
	strange := []string{
		"README", "ab/README", "ab/.jsonl", "ab/abx.jsonl",
		"ab/" + strings.Repeat("c", 32) + ".jsonl", "abc/" + string(id) + ".jsonl", string(id[:2]) + "/" + string(id),
	}
	for _, name := range strange {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte("kept"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := build.NewID()
	if err := errors.Join(os.MkdirAll(filepath.Dir(logPath(dir, link)), 0o700), os.Symlink("/dev/null", logPath(dir, link))); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Prune(t.Context(), now.Add(1000*time.Hour)); n != 1 || err != nil {
		t.Errorf("Prune = %d, %v, want the log alone", n, err)
	}
	for _, name := range strange {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(logPath(dir, link)); err != nil {
		t.Error(err)
	}
}

func TestPruneEndsWithItsContext(t *testing.T) {
	s, dir := open(t, buildlog.Options{Retention: time.Hour})
	now := time.Now()
	aged(t, s, dir, now, 9)
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if n, err := s.Prune(ctx, now); n != 0 || !errors.Is(err, cause) {
		t.Errorf("Prune = %d, %v, want the cause", n, err)
	}
}
