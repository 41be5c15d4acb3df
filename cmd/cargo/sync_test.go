package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

// Power cannot be cut here, so the order of system calls has to do: the record
// of a build is written to the queue's file, that is synced, and only then is
// 202 written to the client's socket.
func TestSyncComesBeforeAccepted(t *testing.T) {
	conn, err := net.Dial("unix", defaultContainerd)
	require(t, "containerd", err)
	_ = conn.Close()
	strace, err := exec.LookPath("strace")
	require(t, "strace", err)
	const builds = 20
	host := gitsrctest.New(t)
	for i := range builds {
		host.Repository(fmt.Sprintf("me/app%d", i)).Commit("main", gitsrctest.Files(makes("echo x > out.txt")))
	}
	s := newServer(t, "containerd", t.TempDir(), host, "--concurrency", "1")

	trace := filepath.Join(t.TempDir(), "trace")
	cmd := exec.CommandContext(t.Context(), strace, "-f", "-y", "-s", "4096", "-o", trace, "-e", "signal=none",
		"-e", "trace=write,writev,pwrite64,sendto,sendmsg,fsync,fdatasync", "-p", fmt.Sprint(s.cmd.Process.Pid))
	said := &output{}
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		require(t, "strace", err)
	}
	until(t, "strace has attached itself", func() bool { return strings.Contains(said.String(), "attached") })
	want := map[string]bool{}
	for i := range builds {
		want[string(s.post(fmt.Sprintf("/git.test/me/app%d/linux/amd64/main", i), ""))] = true
	}
	_ = cmd.Process.Signal(syscall.SIGINT) // it lets go of the server
	_ = cmd.Wait()

	f, err := os.Open(trace)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	order := syncOrder{dirty: map[string]bool{}, synced: map[string]bool{}, syncing: map[string]map[string]bool{}}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	answered := 0
	for lines.Scan() {
		if id := order.see(lines.Text()); want[id] {
			if answered++; !order.synced[id] {
				t.Errorf("build %s was accepted before its record was synced", id)
			}
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	if answered != builds {
		t.Errorf("the trace shows %d answers, want %d", answered, builds)
	}
}

// A syncOrder follows the records of builds to the disk.
type syncOrder struct {
	dirty   map[string]bool            // written, in a file that was not synced since
	syncing map[string]map[string]bool // by thread: what a call that has begun covers
	synced  map[string]bool
}

var (
	recordWritten = regexp.MustCompile(`live/msgs/\d+\.blk>.*build_id\\":\\"([0-9a-f]{32})`)
	syncBegins    = regexp.MustCompile(`(?:fsync|fdatasync)\(\d+<[^>]*live/msgs/\d+\.blk>`)
	syncEnds      = regexp.MustCompile(`<\.\.\. (?:fsync|fdatasync) resumed>`)
	accepting     = regexp.MustCompile(`HTTP/1\.1 202 .*build_id\\":\\"([0-9a-f]{32})`)
)

// see takes in a line of the trace, and returns the id of the build that it
// answers for.
func (o syncOrder) see(line string) (answers string) {
	thread, call, _ := strings.Cut(line, " ")
	if m := accepting.FindStringSubmatch(call); m != nil {
		return m[1]
	}
	if m := recordWritten.FindStringSubmatch(call); m != nil {
		o.dirty[m[1]] = true
		return ""
	}
	if syncBegins.MatchString(call) {
		// What is written while it goes on may be too late for it.
		o.syncing[thread] = map[string]bool{}
		for id := range o.dirty {
			o.syncing[thread][id] = true
			delete(o.dirty, id)
		}
		if strings.HasSuffix(call, "<unfinished ...>") {
			return ""
		}
	} else if !syncEnds.MatchString(call) {
		return ""
	}
	for id := range o.syncing[thread] {
		o.synced[id] = true
	}
	delete(o.syncing, thread)
	return ""
}
