package buildlog_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/buildlog"
)

func open(t testing.TB, o buildlog.Options) (*buildlog.Store, string) {
	t.Helper()
	dir := t.TempDir()
	s, err := buildlog.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

func create(t testing.TB, s *buildlog.Store, id build.ID, limit int64) *buildlog.Writer {
	t.Helper()
	w, err := s.Create(t.Context(), build.Build{ID: id}, limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w
}

func closed(t testing.TB, c io.Closer) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, s *buildlog.Store, id build.ID, offset int64) (string, int64) {
	t.Helper()
	var b bytes.Buffer
	next, err := s.Read(t.Context(), id, offset, &b)
	if err != nil {
		t.Fatal(err)
	}
	if next != offset+int64(b.Len()) {
		t.Errorf("Read from %d: %d bytes, next %d", offset, b.Len(), next)
	}
	return b.String(), next
}

type line map[string]any

func parse(t testing.TB, text string) []line {
	t.Helper()
	var all []line
	for l := range strings.Lines(text) {
		var one line
		if err := json.Unmarshal([]byte(l), &one); err != nil || !strings.HasSuffix(l, "}\n") {
			t.Fatalf("line %q: %v", l, err)
		}
		all = append(all, one)
	}
	return all
}

func messages(t testing.TB, text string) []string {
	t.Helper()
	var all []string
	for _, l := range parse(t, text) {
		all = append(all, l["msg"].(string))
	}
	return all
}

type secret struct{}

func (secret) LogValue() slog.Value { return slog.StringValue("redacted") }

func TestLine(t *testing.T) {
	s, _ := open(t, buildlog.Options{})
	id := build.NewID()
	w := create(t, s, id, 0)
	at := time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)
	w.Log(slog.LevelWarn, "fetched \"x\"\n",
		slog.String("workspace", "/w"), slog.Int("n", -1), slog.Uint64("u", 2), slog.Float64("f", 0.5), slog.Float64("nan", math.NaN()),
		slog.Bool("b", true), slog.Duration("d", time.Second), slog.Time("at", at), slog.Any("err", errors.New("boom")),
		slog.Any("list", []int{1}), slog.Any("bad", func() {}), slog.Group("g", slog.Int("a", 1), slog.String("b", "c")), slog.Any("token", secret{}), slog.Attr{})
	closed(t, w)
	text, _ := read(t, s, id, 0)
	form := regexp.MustCompile(`^\{"build_id":"` + string(id) + `","level":"warn","msg":"fetched \\"x\\"\\n","time":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z","workspace":"/w","n":-1,`)
	if !form.MatchString(text) {
		t.Errorf("line is %s", text)
	}
	got := parse(t, text)[0]
	delete(got, "time")
	if bad, _ := got["bad"].(string); !strings.HasPrefix(bad, "0x") {
		t.Errorf("bad = %q", bad)
	}
	delete(got, "bad")
	want := line{"build_id": string(id), "level": "warn", "msg": "fetched \"x\"\n", "workspace": "/w", "n": -1.0, "u": 2.0, "f": 0.5, "nan": "NaN",
		"b": true, "d": "1s", "at": "2026-01-02T03:04:05.0000006Z", "err": "boom", "list": []any{1.0}, "g": map[string]any{"a": 1.0, "b": "c"}, "token": "redacted"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("line (-want +got):\n%s", diff)
	}
}

func TestStream(t *testing.T) {
	long := strings.Repeat("x", 30)
	for _, tc := range []struct {
		name   string
		writes []string
		want   []string
	}{
		{"lines", []string{"a\nb\n"}, []string{"a", "b"}},
		{"portions", []string{"a", "b\nc", "", "d"}, []string{"ab", "cd"}},
		{"empty lines", []string{"\n\na\n\n"}, []string{"", "", "a", ""}},
		{"crlf", []string{"a\r\n\r\nb\r", "\nc"}, []string{"a", "", "b", "c"}},
		{"progress", []string{"10%\r", "20%\r100%\n", "\r\rx\r\r\n"}, []string{"10%", "20%", "100%", "x"}},
		{"not utf-8", []string{"a\xffb\xe2\x82\n"}, []string{"a\ufffdb\ufffd\ufffd"}},
		{"controls", []string{"\x1b[31mred\x00\t\x7f\u009b\u2028\"\\\n"}, []string{"\x1b[31mred\x00\t\x7f\u009b\u2028\"\\"}},
		{"utf-8", []string{"日本", "語 \U0001f600 \ufffd\n"}, []string{"日本語 \U0001f600 \ufffd"}},
		{"long", []string{long, long, "\n", "ok\n"}, []string{long[:20] + " -40", "ok"}},
		{"long, cut in a character", []string{strings.Repeat("x", 18) + "日本\n"}, []string{strings.Repeat("x", 18) + " -6"}},
		{"long, exactly", []string{long[:20] + "\n"}, []string{long[:20]}},
		{"long, no end", []string{long}, []string{long[:20] + " -10"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, _ := open(t, buildlog.Options{LineLimit: 20})
			id := build.NewID()
			w := create(t, s, id, 0)
			out := w.Stream("stdout", "build")
			for _, p := range tc.writes {
				if n, err := io.WriteString(out, p); n != len(p) || err != nil {
					t.Fatalf("Write = %d, %v", n, err)
				}
			}
			closed(t, out)
			closed(t, w)
			text, _ := read(t, s, id, 0)
			if i := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' }); i >= 0 {
				t.Errorf("unescaped control character in %q", text[i:])
			}
			var got []string
			for _, l := range parse(t, text) {
				if l["stream"] != "stdout" || l["phase"] != "build" || l["level"] != "info" || l["build_id"] != string(id) {
					t.Errorf("line %v", l)
				}
				m := l["msg"].(string)
				if cut, ok := l["cut_bytes"]; ok {
					m += fmt.Sprint(" -", cut)
				}
				got = append(got, m)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("messages (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFiftyMegabyteLine(t *testing.T) {
	s, dir := open(t, buildlog.Options{})
	id := build.NewID()
	w := create(t, s, id, 0)
	out := w.Stream("stdout", "")
	const chunk, chunks = 32 << 10, 1600
	p := bytes.Repeat([]byte("x"), chunk)
	for range chunks {
		_, _ = out.Write(p)
	}
	_, _ = io.WriteString(out, "\nafter\n")
	closed(t, w)
	text, size := read(t, s, id, 0)
	lines := parse(t, text)
	if len(lines) != 2 || len(lines[0]["msg"].(string)) != 64<<10 || lines[0]["cut_bytes"] != float64(chunk*chunks-64<<10) || lines[1]["msg"] != "after" {
		t.Errorf("%d lines, first cut by %v", len(lines), lines[0]["cut_bytes"])
	}
	if info, err := os.Stat(filepath.Join(dir, string(id[:2]), string(id)+".jsonl")); err != nil || info.Size() != size {
		t.Errorf("file: %v, %v", info, err)
	}
}

func TestTooLarge(t *testing.T) {
	s, _ := open(t, buildlog.Options{})
	id := build.NewID()
	const limit = 4000
	w := create(t, s, id, limit)
	out := w.Stream("stdout", "build")
	select {
	case <-w.TooLarge():
		t.Fatal("too large from the start")
	default:
	}
	for range 100 {
		_, _ = io.WriteString(out, strings.Repeat("x", 50)+"\n")
	}
	<-w.TooLarge()
	w.Log(slog.LevelError, "ended")
	closed(t, w)
	text, _ := read(t, s, id, 0)
	if len(text) < limit-200 || len(text) > limit+600 {
		t.Errorf("%d bytes, limit %d", len(text), limit)
	}
	lines := parse(t, text)
	said, last := lines[len(lines)-2], lines[len(lines)-1]
	if m := said["msg"].(string); !strings.Contains(m, "--log-limit") || said["level"] != "error" || said["limit_bytes"] != float64(limit) {
		t.Errorf("line at the limit: %v", said)
	}
	if last["msg"] != "ended" {
		t.Errorf("last line %v, want what Log said", last)
	}

	again := create(t, s, id, limit) // a second attempt of the build
	<-again.TooLarge()
	_, _ = io.WriteString(again.Stream("stdout", "build"), "more\n")
	again.Log(slog.LevelError, "ended again")
	closed(t, again)
	more, _ := read(t, s, id, 0)
	if added := strings.TrimPrefix(more, text); strings.Contains(added, "more") || !strings.Contains(added, "ended again") {
		t.Errorf("the second attempt added %q", added)
	}
}

func TestCreateCutsATornLine(t *testing.T) {
	s, dir := open(t, buildlog.Options{})
	id := build.NewID()
	w := create(t, s, id, 0)
	w.Log(slog.LevelInfo, "one")
	closed(t, w)
	whole, next := read(t, s, id, 0)
	for _, torn := range []string{`{"build_id":"`, strings.Repeat("x", 10_000), "\x00"} {
		f, err := os.OpenFile(filepath.Join(dir, string(id[:2]), string(id)+".jsonl"), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = f.WriteString(torn)
		closed(t, f)
		if text, n := read(t, s, id, 0); text != whole || n != next {
			t.Errorf("Read shows a torn line: %q", text)
		}
		closed(t, create(t, s, id, 0))
	}
	w = create(t, s, id, 0)
	w.Log(slog.LevelInfo, "two")
	closed(t, w)
	text, _ := read(t, s, id, next)
	if diff := cmp.Diff([]string{"two"}, messages(t, text)); diff != "" {
		t.Errorf("after the torn line (-want +got):\n%s", diff)
	}
}

func TestErrors(t *testing.T) {
	s, dir := open(t, buildlog.Options{})
	id := build.NewID()
	for _, id := range []build.ID{id, "", "..", "../../etc/passwd"} {
		if _, err := s.Read(t.Context(), id, 0, io.Discard); !errors.Is(err, buildlog.ErrNotFound) {
			t.Errorf("Read(%q) = %v", id, err)
		}
		if err := s.Remove(id); err != nil {
			t.Errorf("Remove(%q) = %v", id, err)
		}
	}
	if _, err := s.Create(t.Context(), build.Build{ID: "../x"}, 0); !errors.Is(err, buildlog.ErrNotFound) {
		t.Errorf("Create of no id = %v", err)
	}
	if err := s.Follow(t.Context(), "../x", 0, nil, nil); !errors.Is(err, buildlog.ErrNotFound) {
		t.Errorf("Follow of no id = %v", err)
	}
	if err := s.Follow(t.Context(), id, 5, nil, nil); !errors.Is(err, buildlog.ErrOffset) {
		t.Errorf("Follow from inside nothing = %v", err)
	}
	w := create(t, s, id, 0)
	if _, err := s.Create(t.Context(), build.Build{ID: id}, 0); !errors.Is(err, buildlog.ErrInUse) {
		t.Errorf("second Create = %v", err)
	}
	w.Log(slog.LevelInfo, "one")
	closed(t, w)
	closed(t, w)                  // again: nothing
	w.Log(slog.LevelInfo, "late") // nothing
	_, next := read(t, s, id, 0)  // the end
	for _, offset := range []int64{-1, 1, next - 1, next + 1, math.MaxInt64} {
		if _, err := s.Read(t.Context(), id, offset, io.Discard); !errors.Is(err, buildlog.ErrOffset) {
			t.Errorf("Read from %d of %d = %v", offset, next, err)
		}
		if err := s.Follow(t.Context(), id, offset, nil, nil); !errors.Is(err, buildlog.ErrOffset) {
			t.Errorf("Follow from %d of %d = %v", offset, next, err)
		}
	}
	if text, _ := read(t, s, id, next); text != "" {
		t.Errorf("Read from the end = %q", text)
	}
	if err := s.Remove(id); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Read(t.Context(), id, 0, io.Discard); !errors.Is(err, buildlog.ErrNotFound) {
		t.Errorf("Read after Remove = %v", err)
	}
	if _, err := buildlog.Open(filepath.Join(dir, string(id[:2]), "x"), buildlog.Options{}); err != nil {
		t.Errorf("Open of a nested directory = %v", err)
	}
	if _, err := buildlog.Open(os.Args[0], buildlog.Options{}); err == nil {
		t.Error("Open of a file did not fail")
	}
}

// The disk that is full is /dev/full.
func TestFullDisk(t *testing.T) {
	s, dir := open(t, buildlog.Options{})
	id := build.NewID()
	if err := os.Mkdir(filepath.Join(dir, string(id[:2])), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/full", filepath.Join(dir, string(id[:2]), string(id)+".jsonl")); err != nil {
		t.Fatal(err)
	}
	w := create(t, s, id, 0)
	for range 100_000 {
		w.Log(slog.LevelInfo, "x")
	}
	if err := w.Close(); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("Close = %v", err)
	}
}

func TestFollowWhileWriting(t *testing.T) {
	s, _ := open(t, buildlog.Options{Flush: time.Millisecond})
	id := build.NewID()
	done := make(chan struct{})
	const followers, streams, lines = 4, 3, 2000
	texts := make([]strings.Builder, followers)
	var reading sync.WaitGroup
	for i := range followers {
		reading.Go(func() { // before the log is there
			offset := int64(0)
			stop := errors.New("come back later")
			for err := stop; errors.Is(err, stop); { // a client whose connection breaks
				n := 0
				err = s.Follow(context.Background(), id, offset, done, func(line []byte, next int64) error {
					if n++; n > 1000 {
						return stop
					}
					texts[i].Write(line)
					offset = next
					return nil
				})
				if err != nil && !errors.Is(err, stop) {
					t.Error(err)
				}
			}
		})
	}
	w := create(t, s, id, 0)
	var writing sync.WaitGroup
	for i := range streams {
		writing.Go(func() {
			out := w.Stream(fmt.Sprint(i), "build")
			defer out.Close()
			for n := range lines {
				fmt.Fprintln(out, n)
			}
		})
	}
	writing.Wait()
	closed(t, w)
	close(done)
	reading.Wait()
	want, _ := read(t, s, id, 0)
	next := map[any]int{}
	for _, l := range parse(t, want) {
		if l["msg"] != fmt.Sprint(next[l["stream"]]) {
			t.Fatalf("stream %v: line %v, want %d", l["stream"], l["msg"], next[l["stream"]])
		}
		next[l["stream"]]++
	}
	if len(next) != streams || next["0"] != lines {
		t.Errorf("lines: %v", next)
	}
	for i := range texts {
		if texts[i].String() != want {
			t.Errorf("follower %d has %d bytes of %d", i, texts[i].Len(), len(want))
		}
	}
}

// What is logged before done is closed is emitted, whatever is still open.
func TestFollowIsComplete(t *testing.T) {
	s, _ := open(t, buildlog.Options{Flush: time.Hour})
	id := build.NewID()
	w := create(t, s, id, 0)
	for i := range 10 {
		w.Log(slog.LevelInfo, fmt.Sprint(i))
	}
	done := make(chan struct{})
	close(done)
	n := 0
	if err := s.Follow(t.Context(), id, 0, done, func([]byte, int64) error { n++; return nil }); err != nil || n != 10 {
		t.Errorf("Follow = %v after %d lines, want 10", err, n)
	}
	never := build.NewID()
	if err := s.Follow(t.Context(), never, 0, done, nil); err != nil {
		t.Errorf("Follow of a build that never wrote = %v", err)
	}
}

func TestLinesAreVisibleInTime(t *testing.T) {
	s, _ := open(t, buildlog.Options{})
	synctest.Test(t, func(t *testing.T) {
		id := build.NewID()
		w, err := s.Create(t.Context(), build.Build{ID: id}, 0)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		got := make(chan time.Duration, 10)
		ctx, cancel := context.WithCancelCause(t.Context())
		followed := make(chan error)
		go func() {
			followed <- s.Follow(ctx, id, 0, nil, func([]byte, int64) error { got <- time.Since(began); return nil })
		}()
		synctest.Wait()
		w.Log(slog.LevelInfo, "first")
		if d := <-got; d != 0 {
			t.Errorf("the first line was visible after %s", d)
		}
		w.Log(slog.LevelInfo, "second")
		w.Log(slog.LevelInfo, "third")
		for range 2 {
			if d := <-got; d != 50*time.Millisecond {
				t.Errorf("a later line was visible after %s", d)
			}
		}
		time.Sleep(time.Second)
		began = time.Now()
		w.Log(slog.LevelInfo, "fourth")
		if d := <-got; d != 0 {
			t.Errorf("a line after a pause was visible after %s", d)
		}
		cause := errors.New("gone")
		cancel(cause)
		if err := <-followed; !errors.Is(err, cause) {
			t.Errorf("Follow = %v", err)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A follower that never reads on does not hold up the writer.
func TestSlowFollower(t *testing.T) {
	s, _ := open(t, buildlog.Options{})
	id := build.NewID()
	w := create(t, s, id, 0)
	stuck, free := make(chan struct{}, 1), make(chan struct{})
	done := make(chan struct{})
	var lines int
	followed := make(chan error)
	go func() {
		followed <- s.Follow(context.Background(), id, 0, done, func([]byte, int64) error {
			if lines++; lines == 1 {
				stuck <- struct{}{}
				<-free
			}
			return nil
		})
	}()
	const n = 50_000
	out := w.Stream("stdout", "build")
	fmt.Fprintln(out, "first")
	<-stuck
	for range n {
		fmt.Fprintln(out, "line")
	}
	closed(t, w)
	close(done)
	close(free)
	if err := <-followed; err != nil || lines != n+1 {
		t.Errorf("Follow = %v after %d lines", err, lines)
	}
}

func FuzzStream(f *testing.F) {
	f.Add([]byte("a\nb\r\nc\rd"), uint8(1))
	f.Add([]byte("\xff\xe2\x82\n\x1b[0m\x00"), uint8(2))
	f.Add([]byte(strings.Repeat("日", 40)+"\n\r\r\n\n"), uint8(7))
	s, _ := open(f, buildlog.Options{LineLimit: 32})
	run := func(t *testing.T, data []byte, step int) string {
		id := build.NewID()
		w := create(t, s, id, 0)
		out := w.Stream("stdout", "")
		for chunk := range bytesChunks(data, step) {
			_, _ = out.Write(chunk)
		}
		closed(t, out)
		closed(t, w)
		text, _ := read(t, s, id, 0)
		if err := s.Remove(id); err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		for _, l := range parse(t, text) {
			fmt.Fprintf(&b, "%q %v\n", l["msg"], l["cut_bytes"])
		}
		return b.String()
	}
	f.Fuzz(func(t *testing.T, data []byte, step uint8) {
		whole, portions := run(t, data, len(data)+1), run(t, data, int(step)+1)
		if whole != portions {
			t.Errorf("at once:\n%s\nin portions of %d:\n%s", whole, step+1, portions)
		}
		kept, _ := strings.CutSuffix(strings.ReplaceAll(string(data), "\r", "\n"), "\n")
		if strings.Trim(kept, "\n") == "" {
			return
		}
		if fields := strings.FieldsFunc(string(data), func(r rune) bool { return r == '\n' || r == '\r' }); len(fields) > strings.Count(whole, "\n") {
			t.Errorf("%d lines of %d:\n%s", strings.Count(whole, "\n"), len(fields), whole)
		}
	})
}

func bytesChunks(data []byte, n int) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(data) > 0 {
			k := min(n, len(data))
			if !yield(data[:k]) {
				return
			}
			data = data[k:]
		}
	}
}

func FuzzOffset(f *testing.F) {
	f.Add([]byte("{}\n{}\n{"), int64(3))
	f.Add([]byte("\n\n"), int64(1))
	f.Add([]byte("x"), int64(-1))
	s, dir := open(f, buildlog.Options{})
	done := make(chan struct{})
	close(done)
	f.Fuzz(func(t *testing.T, file []byte, offset int64) {
		id := build.NewID()
		path := filepath.Join(dir, string(id[:2]), string(id)+".jsonl")
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(path)
		end := int64(bytes.LastIndexByte(file, '\n') + 1)
		valid := offset == 0 || offset > 0 && offset <= end && file[offset-1] == '\n'

		var got, followed bytes.Buffer
		next, err := s.Read(t.Context(), id, offset, &got)
		last := offset
		followErr := s.Follow(t.Context(), id, offset, done, func(line []byte, next int64) error {
			if bytes.IndexByte(line, '\n') != len(line)-1 || next != last+int64(len(line)) {
				t.Errorf("emitted %q, next %d", line, next)
			}
			last = next
			followed.Write(line)
			return nil
		})
		if !valid {
			if !errors.Is(err, buildlog.ErrOffset) || !errors.Is(followErr, buildlog.ErrOffset) {
				t.Fatalf("offset %d of %q: %v, %v", offset, file, err, followErr)
			}
			return
		}
		want := file[offset:end]
		if err != nil || followErr != nil || !bytes.Equal(got.Bytes(), want) || !bytes.Equal(followed.Bytes(), want) || next != end || last != end {
			t.Errorf("offset %d of %q: read %q to %d (%v), followed %q to %d (%v)", offset, file, got.Bytes(), next, err, followed.Bytes(), last, followErr)
		}
	})
}

func BenchmarkStream(b *testing.B) {
	s, _ := open(b, buildlog.Options{})
	w := create(b, s, build.NewID(), 1<<50)
	out := w.Stream("stdout", "build")
	line := []byte(strings.Repeat("x", 99) + "\n")
	b.SetBytes(int64(len(line)))
	for b.Loop() {
		_, _ = out.Write(line)
	}
}

func BenchmarkFollow(b *testing.B) {
	s, _ := open(b, buildlog.Options{})
	id := build.NewID()
	w := create(b, s, id, 1<<50)
	out := w.Stream("stdout", "build")
	for range 100_000 {
		fmt.Fprintln(out, strings.Repeat("x", 99))
	}
	closed(b, w)
	done := make(chan struct{})
	close(done)
	for b.Loop() {
		var size int64
		if err := s.Follow(b.Context(), id, 0, done, func(_ []byte, next int64) error { size = next; return nil }); err != nil {
			b.Fatal(err)
		}
		b.SetBytes(size)
	}
}
