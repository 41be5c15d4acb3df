package artifact_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/monochromegane/cargo/artifact"
)

// crashDir tells a re-executed test binary to put artifacts into that
// directory until it is killed.
const crashDir = "CARGO_TEST_ARTIFACT_CRASH_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		fmt.Fprintln(os.Stderr, putForever(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// putForever prints a line "slot sha256" for every Put that has returned.
func putForever(dir string) error {
	s, err := artifact.Open(dir)
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
				m, err := s.Put(context.Background(), artifact.Meta{Key: k}, 0, func(w io.Writer) error {
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
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	acknowledged := 0
	for range 12 {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), crashDir+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		if !lines.Scan() {
			t.Fatal("the child stored nothing")
		}
		last := map[string]string{}
		note := func() {
			slot, sum, _ := strings.Cut(lines.Text(), " ")
			last[slot] = sum
			acknowledged++
		}
		note()
		time.AfterFunc(rand.N(60*time.Millisecond), func() { _ = cmd.Process.Kill() })
		for lines.Scan() {
			note()
		}
		_ = cmd.Wait() // killed

		s, err := artifact.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		verify(t, s, dir)
		for slot := range last {
			if _, err := s.Lookup(slot); err != nil {
				t.Errorf("acknowledged, then lost: %v", err)
			}
		}
	}
	t.Logf("%d puts acknowledged", acknowledged)
}

// verify reads every artifact and compares it with its record.
func verify(t *testing.T, s *artifact.Store, dir string) {
	t.Helper()
	for _, name := range append(files(t, filepath.Join(dir, "meta")), files(t, filepath.Join(dir, "blobs"))...) {
		if strings.HasPrefix(name, ".") {
			t.Errorf("temporary file left: %s", name)
		}
	}
	for _, name := range files(t, filepath.Join(dir, "meta")) {
		m, err := s.Lookup(strings.TrimSuffix(name, ".json"))
		if err != nil {
			t.Error(err)
			continue
		}
		sum := sha256.Sum256([]byte(read(t, s, m)))
		if hex.EncodeToString(sum[:]) != m.Artifact.SHA256 {
			t.Errorf("blob %s is torn", m.Artifact.SHA256)
		}
	}
}
