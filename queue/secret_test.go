package queue_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/monochromegane/cargo/queue"
)

func TestCheckSecret(t *testing.T) {
	o := queue.Options{Dir: t.TempDir()}
	q := open(t, o)
	ours, other := []byte(strings.Repeat("our", 20)), []byte(strings.Repeat("not", 20))
	if err := q.CheckSecret(t.Context(), []byte("short")); err == nil || errors.Is(err, queue.ErrSecret) {
		t.Errorf("a short secret: %v", err)
	}
	for range 2 {
		if err := q.CheckSecret(t.Context(), ours); err != nil {
			t.Errorf("ours: %v", err)
		}
	}
	q = reopen(t, q, o)
	if err := q.CheckSecret(t.Context(), other); !errors.Is(err, queue.ErrSecret) || !strings.Contains(err.Error(), "--secret-file") {
		t.Errorf("another: %v", err)
	}
	if err := q.CheckSecret(t.Context(), ours); err != nil {
		t.Errorf("ours after a restart: %v", err)
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	if err := filepath.WalkDir(o.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, ours) || bytes.Contains(data, []byte(hex.EncodeToString(ours))) {
			t.Errorf("%s holds the secret", path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}
