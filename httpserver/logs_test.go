package httpserver_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/buildlog"
	"github.com/monochromegane/cargo/httpserver"
	"github.com/monochromegane/cargo/queue"
)

// A running build and its log.
type running struct {
	claim *queue.Claim
	log   *buildlog.Writer
	path  string
}

func (a *api) start(t *testing.T) running {
	t.Helper()
	a.repository("o/r")
	id := a.do(t, "POST", target).submitted(t)
	claim, err := a.queue.Claim(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	log, err := a.logs.Create(t.Context(), claim.Build(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return running{claim: claim, log: log, path: "/builds/" + string(id) + "/logs"}
}

func (r running) say(msg string) { r.log.Log(slog.LevelInfo, msg) }

// end ends the log, then the build, as a worker does.
func (a *api) end(t *testing.T, r running) {
	t.Helper()
	if err := r.log.Close(); err != nil {
		t.Fatal(err)
	}
	a.finish(t, r.claim, []byte("x"))
}

func TestLog(t *testing.T) {
	a := newAPI(t)
	r := a.start(t)
	a.do(t, "GET", r.path+"?offset=7").problem(t, http.StatusBadRequest)
	if got := a.do(t, "GET", r.path); got.code != http.StatusOK || got.body != "" {
		t.Errorf("an empty log is %d %q", got.code, got.body)
	}
	r.say("one")
	r.say("two")
	a.end(t, r)

	resp, err := a.open(t, "GET", r.path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got := resp.Header.Get("Content-Type"); got != "application/x-ndjson" {
		t.Errorf("Content-Type is %q", got)
	}
	if got := resp.Trailer.Get("X-Log-Offset"); got != strconv.Itoa(len(body)) {
		t.Errorf("the trailer is %q after %d bytes", got, len(body))
	}
	lines := strings.SplitAfter(strings.TrimSuffix(string(body), "\n"), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], `"msg":"one"`) || !strings.Contains(lines[1], `"msg":"two"`) {
		t.Errorf("the log is %q", body)
	}

	offset := strconv.Itoa(len(lines[0]))
	if got := a.do(t, "GET", r.path+"?offset="+offset); got.body != string(body[len(lines[0]):]) {
		t.Errorf("from offset %s the log is %q", offset, got.body)
	}
	if got := a.do(t, "GET", r.path+"?follow=1"); got.body != string(body) {
		t.Errorf("followed after its end the log is %q", got.body)
	}
	if got := a.do(t, "HEAD", r.path); got.code != http.StatusOK || got.body != "" {
		t.Errorf("HEAD = %d %q", got.code, got.body)
	}
	for _, query := range []string{"?offset=1", "?offset=999", "?offset=-1", "?offset=x", "?follow=yes", "?tail=1"} {
		a.do(t, "GET", r.path+query).problem(t, http.StatusBadRequest)
	}
	for _, accept := range []string{"*/*", "text/event-stream"} {
		a.do(t, "GET", r.path+"?offset=1&follow=1", "Accept", accept).problem(t, http.StatusBadRequest)
	}
	if got := a.do(t, "GET", fmt.Sprintf("%s?offset=%d", r.path, len(body))); got.code != http.StatusOK || got.body != "" {
		t.Errorf("from its end the log is %d %q", got.code, got.body)
	}
}

// Each line is there before the next is written.
func TestFollow(t *testing.T) {
	a := newAPI(t)
	r := a.start(t)
	resp, err := a.open(t, "GET", r.path+"?follow=1")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	offset := 0
	for _, msg := range []string{"one", "two", "three"} {
		r.say(msg)
		line, err := lines.ReadString('\n')
		if err != nil || !strings.Contains(line, `"msg":"`+msg+`"`) {
			t.Fatalf("after %q came %q, %v", msg, line, err)
		}
		if msg != "three" {
			offset += len(line)
		}
	}
	resp2, err := a.open(t, "GET", fmt.Sprintf("%s?follow=1&offset=%d", r.path, offset))
	if err != nil {
		t.Fatal(err)
	}
	defer resp2.Body.Close()
	r.say("four")
	a.end(t, r)
	rest, err := io.ReadAll(lines)
	if err != nil || !strings.Contains(string(rest), `"msg":"four"`) {
		t.Errorf("to its end came %q, %v", rest, err)
	}
	rest, err = io.ReadAll(resp2.Body)
	if err != nil || strings.Count(string(rest), "\n") != 2 || !strings.Contains(string(rest), `"msg":"three"`) {
		t.Errorf("resumed at %d came %q, %v", offset, rest, err)
	}
}

// A line that comes before the build began is not waited for.
func TestFollowQueued(t *testing.T) {
	a := newAPI(t)
	a.repository("o/r")
	id := a.do(t, "POST", target).submitted(t)
	resp, err := a.open(t, "GET", "/builds/"+string(id)+"/logs?follow=1") // has the header at once
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	a.do(t, "DELETE", "/builds/"+string(id)).submitted(t)
	if body, err := io.ReadAll(resp.Body); err != nil || len(body) != 0 {
		t.Errorf("the log of a build that never ran is %q, %v", body, err)
	}
}

func TestEvents(t *testing.T) {
	a := newAPI(t)
	r := a.start(t)
	r.say("one")
	r.say("two")
	a.end(t, r)
	got := a.do(t, "GET", r.path, "Accept", "text/event-stream")
	if ct := got.header.Get("Content-Type"); ct != "text/event-stream" {
		t.Errorf("Content-Type is %q", ct)
	}
	events := strings.Split(strings.TrimSuffix(got.body, "\n\n"), "\n\n")
	if len(events) != 3 || !strings.HasPrefix(events[2], "event: end\ndata: {\"build_id\"") || !strings.Contains(events[2], `"state":"succeeded"`) {
		t.Fatalf("the events are %q", events)
	}
	id, data, _ := strings.Cut(strings.TrimPrefix(events[0], "id: "), "\ndata: ")
	if n, err := strconv.Atoi(id); err != nil || n != len(data)+1 || !strings.Contains(data, `"msg":"one"`) {
		t.Errorf("the first event is %q", events[0])
	}
	again := a.do(t, "GET", r.path+"?offset=0", "Accept", "text/event-stream", "Last-Event-ID", id)
	if again.body != strings.Join(events[1:], "\n\n")+"\n\n" {
		t.Errorf("after event %s came %q", id, again.body)
	}
}

// A server that stops breaks the connection off: the log must not look complete.
func TestFollowBreaksOffAtShutdown(t *testing.T) {
	requests, stop := context.WithCancel(t.Context())
	defer stop()
	var handler http.Handler
	a := newAPI(t, func(o *httpserver.Options) { handler = httpserver.New(*o) })
	server := httptest.NewUnstartedServer(handler)
	server.Config.BaseContext = baseContext(requests)
	server.Start()
	defer server.Close()
	a.url = server.URL

	r := a.start(t)
	resp, err := a.open(t, "GET", r.path+"?follow=1")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	stop()
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the log looks complete")
	}
	r.say("late")
	a.end(t, r)
}

// Nor must it when the queue does not know how the build ended.
func TestFollowBreaksOffWithTheQueue(t *testing.T) {
	a := newAPI(t, func(o *httpserver.Options) { o.Builds = brokenBuilds{o.Builds} })
	r := a.start(t)
	r.say("one")
	resp, err := a.open(t, "GET", r.path+"?follow=1")
	if err != nil {
		return // before the header was sent
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); resp.StatusCode == http.StatusOK && err == nil {
		t.Errorf("the log looks complete: %q", body)
	}
	a.end(t, r)
}

type brokenBuilds struct{ httpserver.Builds }

func (brokenBuilds) Wait(context.Context, build.ID) (build.Build, error) {
	return build.Build{}, errDisk
}

// What becomes of a log that cannot be read.
func TestLogBroken(t *testing.T) {
	a := newAPI(t, func(o *httpserver.Options) { o.Logs = brokenLogs{} })
	a.repository("o/r")
	id := a.do(t, "POST", target).submitted(t)
	path := "/builds/" + string(id) + "/logs"
	if p := a.do(t, "GET", path).problem(t, http.StatusInternalServerError); strings.Contains(p.Detail, "disk") {
		t.Errorf("the caller reads %q", p.Detail)
	}
	if !strings.Contains(a.log.String(), "the disk is gone") {
		t.Error("the server's log does not say why")
	}
}

type brokenLogs struct{}

var errDisk = errors.New("the disk is gone")

func (brokenLogs) Read(context.Context, build.ID, int64, io.Writer) (int64, error) { return 0, errDisk }
func (brokenLogs) Follow(context.Context, build.ID, int64, <-chan struct{}, func([]byte, int64) error) error {
	return errDisk
}
