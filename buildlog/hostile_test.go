package buildlog_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/buildlog"
)

// Whatever a build writes, what is read elsewhere is what is in its file.
func TestHostileLines(t *testing.T) {
	t.Parallel()
	js, a := embedded(t), newArchive()
	worker, next, api := newMachine(t, js, a), newMachine(t, js, a), newMachine(t, js, a)
	id, done := build.NewID(), make(chan struct{})
	f := api.follow(t, id, 0, done)
	noise := make([]byte, 200<<10)
	_, _ = rand.Read(noise)
	ugly := func(w *buildlog.Writer) {
		out := w.Stream("stdout", "build")
		_, _ = out.Write(noise)
		_, _ = out.Write(bytes.Repeat([]byte{0}, 100<<10)) // each NUL becomes six bytes
		_, _ = io.WriteString(out, "\n\r\r\n\n"+strings.Repeat("\u2028", 50_000)+"\n")
		nul := strings.Repeat("\x00", 64<<10)
		w.Log(slog.LevelInfo, nul, slog.String("a", nul), slog.String("b", nul), slog.String("c", nul)) // 1.5 MiB in one line
		closed(t, out)
	}
	w := worker.create(t, attempt(id, 1))
	ugly(w)
	say(w, "first")
	f.sees(t, "first")
	closed(t, w)
	w = next.create(t, attempt(id, 2))
	ugly(w)
	say(w, "second")
	f.sees(t, "second")
	closed(t, w)
	file, err := os.ReadFile(next.path(id))
	must(t, err)
	text := string(file)
	if got := api.read(t, id, 0); got != text {
		t.Error("live: " + first(got, text))
	}
	at, n := int64(0), 0
	for l := range strings.Lines(text) {
		if n++; n%1000 == 0 || len(l) > 100<<10 {
			for _, from := range []int64{at, at + int64(len(l))} {
				if got := api.read(t, id, from); got != text[from:] {
					t.Errorf("from %d: %s", from, first(got, text[from:]))
				}
			}
		}
		at += int64(len(l))
	}
	next.end(t, w, attempt(id, 2))
	close(done)
	f.is(t, text)
	if got := api.read(t, id, 0); got != text {
		t.Error("archived: " + first(got, text))
	}
}

// A worker dies in the midst of a line that takes several messages: the next
// attempt and the archive begin behind the last whole line.
func TestTornLine(t *testing.T) {
	t.Parallel()
	js, a := embedded(t), newArchive()
	worker, next, api := newMachine(t, js, a), newMachine(t, js, a), newMachine(t, js, a)
	id, done := build.NewID(), make(chan struct{})
	f := api.follow(t, id, 0, done)
	torn := func(w *buildlog.Writer) {
		text := api.read(t, id, 0)
		file, err := os.OpenFile(worker.path(id), os.O_APPEND|os.O_WRONLY, 0)
		must(t, err)
		_, _ = file.WriteString("{" + strings.Repeat("x", 300<<10)) // the disk was full, say
		closed(t, file)
		before := messagesIn(t, js, id)
		closed(t, w)
		if n := messagesIn(t, js, id); n != before+1 {
			t.Errorf("%d messages of the torn line, want one", n-before)
		}
		if got := api.read(t, id, 0); got != text {
			t.Errorf("with a torn line it reads %s", first(got, text))
		}
	}
	w := worker.create(t, attempt(id, 1))
	say(w, "one")
	f.sees(t, "one")
	torn(w)
	text := api.read(t, id, 0)
	w = next.create(t, attempt(id, 2))
	say(w, "two")
	f.sees(t, "two")
	closed(t, w)
	w = worker.create(t, attempt(id, 3)) // has the torn line on its disk
	say(w, "three")
	f.sees(t, "three")
	torn(w)
	late := api.follow(t, id, int64(len(text)), done)
	late.sees(t, "three")
	must(t, api.Settle(t.Context(), attempt(id, 3)))
	close(done)
	all := api.read(t, id, 0)
	f.is(t, all)
	late.is(t, all[len(text):])
	if got := fmt.Sprint(messages(t, all)); got != "[one two three]" || a.log(id).text != all {
		t.Errorf("messages %s, archived %d of %d bytes", got, len(a.log(id).text), len(all))
	}
}

// A follower that stands still takes no memory, and holds up nobody.
func TestSlowSharedFollower(t *testing.T) {
	t.Parallel()
	js, a := embedded(t), newArchive()
	m := newMachine(t, js, a)
	b, done, free := attempt(build.NewID(), 1), make(chan struct{}), make(chan struct{})
	w := m.create(t, b)
	say(w, "first")
	fast := m.follow(t, b.ID, 0, done)
	fast.sees(t, "first")
	n := 0
	slow := make(chan error, 1)
	go func() {
		slow <- m.Follow(t.Context(), b.ID, 0, done, func([]byte, int64) error {
			if n++; n == 1 {
				<-free
			}
			return nil
		})
	}()
	const count, size = 400, 50 << 10 // 20 MB
	for i := range count {
		say(w, "%d %s", i, strings.Repeat("x", size))
	}
	fast.sees(t, fmt.Sprintf(`"%d x`, count-1))
	if got := pending(t, js); got < 15<<20/(256<<10) {
		t.Errorf("only %d messages wait in the stream for the slow one", got)
	}
	m.end(t, w, b)
	close(done)
	if err := <-fast.ended; err != nil {
		t.Error(err)
	}
	close(free)
	if err := <-slow; err != nil || n != count+1 {
		t.Errorf("the slow one: %v after %d lines", err, n)
	}
}

// pending is how many messages the consumer has not sent yet that has sent least.
func pending(t testing.TB, js jetstream.JetStream) (most uint64) {
	t.Helper()
	s, err := js.Stream(t.Context(), "logs")
	must(t, err)
	list := s.ListConsumers(t.Context())
	for c := range list.Info() {
		most = max(most, c.NumPending)
	}
	must(t, list.Err())
	return most
}

// A stream that is full holds up followers, not builds, and loses nothing.
func TestFullStream(t *testing.T) {
	t.Parallel()
	js, a := embedded(t), newArchive()
	m := newMachine(t, js, a, func(o *buildlog.SharedOptions) { o.Bytes = 1 << 20 })
	builds := [3]build.Build{attempt(build.NewID(), 1), attempt(build.NewID(), 1), attempt(build.NewID(), 1)}
	var writers [3]*buildlog.Writer
	var tails [3]*tail
	done := make(chan struct{})
	for i, b := range builds {
		writers[i] = m.create(t, b)
		say(writers[i], "early")
		tails[i] = m.follow(t, b.ID, 0, done)
		tails[i].sees(t, "early")
	}
	for err := error(nil); err == nil; { // to the last byte
		_, err = js.Publish(t.Context(), "logs.filler", make([]byte, 100<<10))
	}
	for err := error(nil); err == nil; {
		_, err = js.Publish(t.Context(), "logs.filler", nil)
	}
	for i, w := range writers {
		say(w, "late %d", i)
	}
	wait(t, "a full stream", func() bool { return strings.Contains(m.said.String(), "full") })
	closed(t, writers[0])
	must(t, m.Keep(t.Context(), builds[0]))
	closed(t, writers[1])
	must(t, m.Keep(t.Context(), builds[1]))
	must(t, m.Drop(t.Context(), builds[1]))
	must(t, m.Settle(t.Context(), builds[2]))
	close(done)
	for i := range 2 {
		text := m.read(t, builds[i].ID, 0)
		if i == 0 {
			text = a.log(builds[0].ID).text // dropped later
		}
		tails[i].is(t, text)
		if got := fmt.Sprint(messages(t, text)); got != fmt.Sprintf("[early late %d]", i) {
			t.Errorf("log %d has %s", i, got)
		}
	}
	must(t, m.Drop(t.Context(), builds[0]))
	closed(t, writers[2])
	tails[2].is(t, a.log(builds[2].ID).text)
	for _, b := range builds {
		if n := messagesIn(t, js, b.ID); n != 1 {
			t.Errorf("%d messages are left", n)
		}
	}
}

// What is wrong with a stream that somebody else made is said.
func TestStrangeStream(t *testing.T) {
	t.Parallel()
	js := embedded(t)
	_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "strange", Subjects: []string{"strange.*"}, Storage: jetstream.MemoryStorage, MaxAge: time.Hour, MaxBytes: 1 << 20, MaxMsgSize: 100, AllowDirect: true,
	})
	must(t, err)
	m := newMachine(t, js, newArchive(), func(o *buildlog.SharedOptions) { o.Stream = "strange" })
	for _, want := range []string{"in memory", "forgets logs after 1h0m0s", "beginnings", "rollups", "direct reads", "messages of 100 bytes"} {
		if !strings.Contains(m.said.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, m.said)
		}
	}
	good := newMachine(t, js, newArchive())
	b := attempt(build.NewID(), 1)
	w := good.create(t, b)
	say(w, "one")
	good.end(t, w, b)
	if s := newMachine(t, js, newArchive()).said.String() + good.said.String(); s != "" {
		t.Errorf("of its own stream it says %s", s)
	}
}

// A server with less room than the stream would take has a smaller one.
func TestLittleRoom(t *testing.T) {
	t.Parallel()
	s := serve(t, server.Options{ServerName: "small", DontListen: true, StoreDir: t.TempDir(), JetStreamMaxStore: 700 << 20})
	js := connect(t, "", nats.InProcessServer(s))
	m := newMachine(t, js, newArchive())
	stream, err := js.Stream(t.Context(), "logs")
	must(t, err)
	if n := stream.CachedInfo().Config.MaxBytes; n != 512<<20 || !strings.Contains(m.said.String(), "little room") {
		t.Errorf("the stream may take %d bytes; it says %s", n, m.said)
	}
}

func TestLittleRoomInACluster(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 700<<20)
	js := c.connect(t)
	newMachine(t, js, newArchive(), func(o *buildlog.SharedOptions) { o.Replicas = 3 })
	stream, err := js.Stream(t.Context(), "logs")
	must(t, err)
	if n := stream.CachedInfo().Config.MaxBytes; n != 512<<20 {
		t.Errorf("the stream may take %d bytes", n)
	}
}

// The archive forgets logs that are as old as the local ones that go.
func TestSharedPrune(t *testing.T) {
	t.Parallel()
	local, dir := open(t, buildlog.Options{Retention: time.Hour})
	a := newArchive()
	s, err := buildlog.OpenShared(t.Context(), buildlog.SharedOptions{Local: local, JetStream: embedded(t), Archive: a})
	must(t, err)
	now := time.Now()
	aged(t, local, dir, now, 9)
	n, err := s.Prune(t.Context(), now)
	if n != 1 || err != nil || !a.pruned.Equal(now.Add(-time.Hour)) {
		t.Errorf("Prune = %d, %v, before %s", n, err, a.pruned)
	}
}

// A stream that somebody made takes small messages only, and smaller ones later:
// a log is shipped in as many as it takes.
func TestSmallMessages(t *testing.T) {
	t.Parallel()
	js, a := embedded(t), newArchive()
	c := jetstream.StreamConfig{Name: "logs", Subjects: []string{"logs.*"}, Discard: jetstream.DiscardNew, AllowRollup: true, MaxMsgSize: 5000}
	_, err := js.CreateStream(t.Context(), c)
	must(t, err)
	worker, api := newMachine(t, js, a), newMachine(t, js, a)
	b, done := attempt(build.NewID(), 1), make(chan struct{})
	f := api.follow(t, b.ID, 0, done)
	w := worker.create(t, b)
	say(w, "%s", strings.Repeat("long ", 10_000))
	say(w, "first")
	f.sees(t, "first")
	c.MaxMsgSize = 1100
	_, err = js.UpdateStream(t.Context(), c)
	must(t, err)
	say(w, "%s", strings.Repeat("long ", 10_000))
	say(w, "second")
	f.sees(t, "second")
	text := f.String()
	worker.end(t, w, b)
	close(done)
	f.is(t, text)
	if got := api.read(t, b.ID, 0); got != text {
		t.Error(first(got, text))
	}
}
