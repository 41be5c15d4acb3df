package buildlog_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/buildlog"
)

// What a full disk does not take is missing, and what comes later is not; who
// follows sees the same.
func TestDiskFullForAWhile(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		if strings.Contains(","+os.Getenv("CARGO_TEST_REQUIRE")+",", ",loop,") { // who requires those may mount
			t.Fatal(err)
		}
		t.Skip(err)
	}
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	s, err := buildlog.Open(dir, buildlog.Options{Flush: time.Millisecond})
	must(t, err)
	id := build.NewID()
	w := create(t, s, id, 0)
	followed, done := make(chan string), make(chan struct{})
	go func() {
		var lines strings.Builder
		err := s.Follow(t.Context(), id, 0, done, func(line []byte, _ int64) error {
			lines.Write(line)
			return nil
		})
		if err != nil {
			t.Errorf("Follow = %v", err)
		}
		followed <- lines.String()
	}()
	const lines = 10_000 // more than fits
	for i := range lines {
		w.Log(slog.LevelInfo, fmt.Sprint("line ", i))
	}
	wait(t, "the disk is full", func() bool {
		var fs unix.Statfs_t
		return unix.Statfs(dir, &fs) == nil && fs.Bavail == 0
	})
	must(t, unix.Mount("", dir, "", unix.MS_REMOUNT, "size=8m"))
	w.Log(slog.LevelInfo, "there is room again")
	if err := w.Close(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Close = %v", err)
	}
	close(done)
	text, _ := read(t, s, id, 0)
	if text != <-followed {
		t.Error("who followed has seen something else than is in the log")
	}
	kept, lost, last := 0, 0, ""
	for text := range strings.Lines(text) {
		var l struct {
			Message string `json:"msg"`
			Lost    int    `json:"lost_lines"`
		}
		must(t, json.Unmarshal([]byte(text), &l))
		if lost += l.Lost; l.Message == fmt.Sprint("line ", kept+lost) {
			kept++
		}
		last = l.Message
	}
	if lost == 0 || kept+lost != lines || last != "there is room again" {
		t.Errorf("%d lines are kept, %d are said to be lost; the last is %q", kept, lost, last)
	}
}
