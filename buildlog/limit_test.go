package buildlog_test

import (
	"bytes"
	"testing"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/buildlog"
)

// A line without an end fills the log too, although no more than its beginning
// is kept.
func TestEndlessLine(t *testing.T) {
	s, err := buildlog.Open(t.TempDir(), buildlog.Options{LineLimit: 100})
	if err != nil {
		t.Fatal(err)
	}
	id := build.NewID()
	w, err := s.Create(t.Context(), build.Build{ID: id}, 10_000)
	if err != nil {
		t.Fatal(err)
	}
	out := w.Stream("stdout", "build")
	for n := 0; ; n += 1000 {
		_, _ = out.Write(bytes.Repeat([]byte("x"), 1000))
		select {
		case <-w.TooLarge():
			if n < 8000 {
				t.Errorf("full after %d bytes", n)
			}
		default:
			if n > 12_000 {
				t.Fatalf("not full after %d bytes", n)
			}
			continue
		}
		break
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if _, err := s.Read(t.Context(), id, 0, &text); err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(text.Bytes(), []byte("--log-limit raises it")); n != 1 {
		t.Errorf("it says %d times that it is full:\n%s", n, &text)
	}
}
