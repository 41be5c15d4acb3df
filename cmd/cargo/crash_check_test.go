package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/monochromegane/cargo/build"
)

// mostLost is how many workers may die under a build before it is given up.
const mostLost = 3

// checkAll checks every build that was accepted, all of which have ended.
func (l *loop) checkAll() {
	ends := map[string]int{}
	attempts := 0
	all := l.accepted()
	for _, e := range all {
		b := l.check(e)
		ends[b.Result()]++
		attempts += b.Attempt
	}
	l.t.Logf("seed %d: %d builds accepted, %d attempts, %d kills, ends: %v", l.seed, len(all), attempts, l.kills.Load(), ends)
	if ends[string(build.Succeeded)] < l.rounds {
		l.problem("too little happened to prove anything: %v", ends)
	}
}

// check checks what became of one build.
func (l *loop) check(e entry) build.Build {
	var b build.Build
	a, ok := l.ask(l.t.Context(), http.MethodGet, "/builds/"+string(e.id), e.token, http.StatusOK)
	if !ok {
		l.problem("build %s (order %d) was accepted and its record cannot be had", e.id, e.n)
		return b
	}
	if err := json.Unmarshal(a.body, &b); err != nil {
		l.problem("record of build %s: %v: %s", e.id, err, a.body)
	}
	switch {
	case e.ended.ID != "" && (b.State != e.ended.State || b.Reason != e.ended.Reason || b.Attempt != e.ended.Attempt):
		l.problem("build %s had ended as %s at attempt %d, and is now %s at attempt %d", e.id, e.ended.Result(), e.ended.Attempt, b.Result(), b.Attempt)
	case b.State == build.Canceled && !e.askedToStop:
		l.problem("build %s was canceled, and nobody asked for that", e.id)
	case b.State == build.Succeeded && !e.stopAccepted.IsZero() && b.FinishedAt.Sub(e.stopAccepted) > mostStopping:
		l.problem("build %s was canceled at %v and went on until %v", e.id, e.stopAccepted, b.FinishedAt)
	case b.State == build.Failed && b.Reason == build.ReasonLost && (b.Attempt < mostLost || e.lives < mostLost):
		l.problem("build %s is given up as lost after %d attempts and %d kills", e.id, b.Attempt, e.lives)
	case b.State == build.Failed && b.Reason != build.ReasonLost:
		l.problem("build %s failed, which it cannot by itself: %s (%s)", e.id, b.Reason, b.Message)
	case !b.State.Ended():
		l.problem("build %s is %s", e.id, b.State)
	}
	l.checkLog(e, b)
	l.download(l.t.Context(), e.order, b)
	return b
}

// mostStopping is how long after its cancellation a build may still succeed.
const mostStopping = 20 * time.Second

// An attemptLine is what the checker reads of a line of a build's log.
type attemptLine struct {
	Message string `json:"msg"`
	Attempt int    `json:"attempt"`
	Stream  string `json:"stream"`
	State   string `json:"state"`
	Lost    int    `json:"lost_lines"`
}

// checkLog checks that the log is whole, that its attempts came one after the
// other, and that nothing came after the end of one but the next: an attempt
// that cannot record how it ended may have said so before it was lost.
func (l *loop) checkLog(e entry, b build.Build) {
	a, ok := l.ask(l.t.Context(), http.MethodGet, "/builds/"+string(e.id)+"/logs", e.token, http.StatusOK)
	if !ok {
		l.problem("build %s has no log", e.id)
		return
	}
	wrong := func(format string, args ...any) {
		l.problem("the log of build %s: %s:\n%s", e.id, fmt.Sprintf(format, args...), a.body)
	}
	attempt, run, ended, gaps := 0, "", false, 0
	for text := range bytes.Lines(a.body) {
		var line attemptLine
		if err := json.Unmarshal(text, &line); err != nil || !bytes.HasSuffix(text, []byte("\n")) {
			wrong("%q is no line: %v", text, err)
			return
		}
		if line.Lost > 0 && l.logsBreak {
			gaps, run, ended = gaps+line.Lost, "", false
			continue
		}
		if ended && line.Message != "Your build started." {
			wrong("it goes on after its end")
			return
		}
		switch word, of, _ := strings.Cut(line.Message, " "); {
		case line.Message == "Your build started.":
			if line.Attempt <= attempt {
				wrong("attempt %d comes after attempt %d", line.Attempt, attempt)
			}
			attempt, run = line.Attempt, ""
		case line.Stream == "stdout" && (word == "begin" || run == "" && gaps > 0):
			run = of
		case line.Stream == "stdout" && of != run:
			wrong("run %s goes on beside run %s", of, run)
		}
		ended = build.State(line.State).Ended()
	}
	switch {
	case attempt > b.Attempt, b.State == build.Succeeded && attempt != b.Attempt && gaps == 0:
		wrong("its last attempt is %d, that of the record %d", attempt, b.Attempt)
	case b.State == build.Succeeded && !ended && !l.logsBreak:
		wrong("it has no end")
	}
}

// download checks what is served of an order's build: that it is whole, what
// it says of itself, and what was made. One that did not succeed may have
// stored its archive.
func (l *loop) download(ctx context.Context, o order, b build.Build) {
	want := []int{http.StatusOK}
	if b.State != build.Succeeded {
		want = append(want, http.StatusNotFound)
	}
	a, ok := l.ask(ctx, http.MethodGet, o.path(), o.token, want...)
	if !ok || a.StatusCode == http.StatusNotFound {
		return
	}
	sum := sha256.Sum256(a.body)
	digest := hex.EncodeToString(sum[:])
	direct := a.Request.URL.RawQuery == "" // not from where we were sent
	if tag := a.Header.Get("ETag"); tag != `"`+digest+`"` && direct {
		l.problem("the archive of build %s has the SHA-256 %s and the ETag %s", b.ID, digest, tag)
	}
	if said, want := a.Header.Get("Repr-Digest"), "sha-256=:"+base64.StdEncoding.EncodeToString(sum[:])+":"; said != want && direct {
		l.problem("the archive of build %s has the Repr-Digest %s, want %s", b.ID, said, want)
	}
	if b.State == build.Succeeded && (b.Artifact == nil || b.Artifact.SHA256 != digest || b.Artifact.Size != int64(len(a.body))) {
		l.problem("the archive of build %s has %d bytes and the SHA-256 %s, its record says %+v", b.ID, len(a.body), digest, b.Artifact)
	}
	made, err := unpack(a.body)
	if err != nil {
		l.problem("the archive of build %s: %v", b.ID, err)
		return
	}
	if !maps.EqualFunc(made, l.made(o), bytes.Equal) {
		l.problem("the archive of build %s (order %d) holds something else than it made", b.ID, o.n)
	}
}

// unpack reads an archive to its end.
func unpack(archive []byte) (map[string][]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for t := tar.NewReader(z); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, z) // the checksum is at the end
			return files, err
		}
		if err != nil {
			return nil, err
		}
		if files[h.Name], err = io.ReadAll(t); err != nil {
			return nil, err
		}
	}
}

// wantSane looks into what a server has logged for what must never be there.
func (l *loop) wantSane(log string) {
	for _, never := range []string{l.token, "panic: ", "WARNING: DATA RACE", "fatal error: "} {
		if i := strings.Index(log, never); i >= 0 {
			l.problem("a server's log says %q:\n%s", never, log[i:min(len(log), i+4000)])
		}
	}
}

// wantConsistent has cargo fsck compare records with archives, every byte of them.
func (l *loop) wantConsistent(env []string, flags ...string) {
	self, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	cmd := exec.Cmd{Path: self, Args: append([]string{"cargo", "fsck"}, flags...), Env: append(os.Environ(), env...)}
	if out, err := cmd.CombinedOutput(); err != nil {
		l.problem("cargo fsck: %v\n%s", err, out)
	}
}

// wantIdle checks that the queue of a server has come to rest.
func (l *loop) wantIdle(url string) {
	resp, err := l.client.Get(url + "/metrics")
	if err != nil {
		l.problem("%v", err)
		return
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		l.problem("%v", err)
	}
	for _, gauge := range []string{"cargo_queue_depth", "cargo_builds_running"} {
		if !bytes.Contains(text, []byte("\n"+gauge+" 0\n")) {
			l.problem("the metrics do not say %s 0", gauge)
		}
	}
}
