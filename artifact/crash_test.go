package artifact_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/monochromegane/cargo/artifact"
)

// crashDir tells a re-executed test binary to put artifacts into that
// directory until it is killed.
const crashDir = "CARGO_TEST_ARTIFACT_CRASH_DIR"

// crashLimit is the limit of that store.
const crashLimit = "CARGO_TEST_ARTIFACT_CRASH_LIMIT"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		fmt.Fprintln(os.Stderr, putForever(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// putForever prints a line "slot sha256" for every Put that has returned.
func putForever(dir string) error {
	limit, err := strconv.ParseInt(os.Getenv(crashLimit), 10, 64)
	if err != nil {
		return err
	}
	s, err := artifact.Open(dir, artifact.Options{Limit: limit})
	if err != nil {
		return err
	}
	var mu sync.Mutex
	failed := make(chan error)
	for w := range 4 {
		go func() { // until the process is killed
			for i := 0; ; i++ {
				k := key(fmt.Sprintf("v%d.%d", w, i%20))
				text := bytes.Repeat(fmt.Append(nil, i, " "), 1+rand.IntN(100_000))
				m, err := s.Put(context.Background(), artifact.Meta{Key: k}, artifact.PutOptions{}, func(w io.Writer) error {
					_, err := io.Copy(w, struct{ io.Reader }{bytes.NewReader(text)})
					return err
				})
				if err != nil {
					failed <- err
					return
				}
				mu.Lock()
				fmt.Println(k.Slot(), m.Artifact.SHA256)
				mu.Unlock()
			}
		}()
	}
	return <-failed
}

func TestStoreSurvivesKill(t *testing.T) {
	for _, limit := range []int64{0, 300_000} { // bytes; a Put of 80 evicts about one other
		t.Run(fmt.Sprint("limit ", limit), func(t *testing.T) {
			dir := t.TempDir()
			acknowledged := 0
			for range 8 {
				last := putUntilKilled(t, dir, limit)
				acknowledged += len(last)
				s, err := artifact.Open(dir, artifact.Options{Limit: limit})
				if err != nil {
					t.Fatal(err)
				}
				verify(t, s, dir, limit)
				for slot := range last {
					if _, err := s.Lookup(t.Context(), slot); err != nil && (limit == 0 || errors.Is(err, artifact.ErrCorrupt)) {
						t.Errorf("acknowledged, then lost: %v", err)
					}
				}
			}
			t.Logf("%d slots acknowledged", acknowledged)
		})
	}
}

// putUntilKilled returns what was acknowledged: slots and their newest sums.
func putUntilKilled(t *testing.T, dir string, limit int64) map[string]string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), crashDir+"="+dir, crashLimit+"="+strconv.FormatInt(limit, 10))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	last := map[string]string{}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if len(last) == 0 {
			time.AfterFunc(rand.N(60*time.Millisecond), func() { _ = cmd.Process.Kill() })
		}
		slot, sum, _ := strings.Cut(lines.Text(), " ")
		last[slot] = sum
	}
	_ = cmd.Wait() // killed
	if len(last) == 0 {
		t.Fatal("the child stored nothing")
	}
	return last
}

// verify reads every artifact, compares it with its record, and finds nothing
// else in dir, nor more than limit bytes.
func verify(t *testing.T, s *artifact.Store, dir string, limit int64) {
	t.Helper()
	named := map[string]bool{}
	for _, name := range files(t, filepath.Join(dir, "meta")) {
		m, err := s.Lookup(t.Context(), strings.TrimSuffix(name, ".json"))
		if err != nil {
			t.Error(err)
			continue
		}
		sum := sha256.Sum256([]byte(read(t, s, m)))
		if hex.EncodeToString(sum[:]) != m.Artifact.SHA256 {
			t.Errorf("blob %s is torn", m.Artifact.SHA256)
		}
		named[m.Artifact.SHA256] = true
	}
	for _, name := range files(t, filepath.Join(dir, "blobs")) {
		if !named[name] {
			t.Errorf("%s is left, which no record names", name)
		}
	}
	if got := bytesIn(t, dir); got != s.Bytes() || limit > 0 && got > limit {
		t.Errorf("%d bytes, Bytes() = %d, limit %d", got, s.Bytes(), limit)
	}
}

// bytesIn is what the files under dir have together, without the lock.
func bytesIn(t *testing.T, dir string) (n int64) {
	t.Helper()
	for _, sub := range []string{"blobs", "meta"} {
		for _, name := range files(t, filepath.Join(dir, sub)) {
			info, err := os.Stat(filepath.Join(dir, sub, name))
			if err != nil {
				t.Fatal(err)
			}
			n += (info.Size() + 4095) / 4096 * 4096 // what it takes of a disk
		}
	}
	return n
}
