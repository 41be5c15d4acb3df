package main

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

// A server that is killed while it prepares the standard library leaves
// nothing of that, and nothing half.
func TestKilledWhilePreparing(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		data := t.TempDir()
		s := newServer(t, engine, data, gitsrctest.New(t), "--prepare", "linux/amd64")
		until(t, "a part of it is prepared", func() bool {
			return regexp.MustCompile(`cargo_cache_prepared\{goarch="amd64",goos="linux"\} 0\.\d`).Match(s.do(http.MethodGet, "/metrics", "").body)
		})
		s.kill()
		if len(heldBy(t, data)) < 2 {
			t.Errorf("there is no workspace with a container to leave behind: %q", heldBy(t, data))
		}
		s.args = slices.DeleteFunc(s.args, func(a string) bool { return a == "--prepare" || a == "linux/amd64" })
		s.args = append(s.args, "--prepare", "none")
		s.start()
		wantNothingLeft(t, data)
		s.wantKept(data)
		if kept := s.kept("packages"); kept != 0 {
			t.Errorf("%d bytes of a library are kept that was not whole", kept)
		}
	})
}

// A moment is something that a server does on its disk and that a test can see.
type moment struct {
	name string
	seen func(data string) bool
}

// A server that is killed while it seals, merges or removes what builds have
// compiled, or lays out modules, has nothing half after its next start, and
// the build that it was at ends well.
func TestKilledAtItsCaches(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		if engine == "docker" && os.Getenv("CARGO_TEST_HOSTILE") != "all" {
			t.Skip("the caches are the same on both engines; CARGO_TEST_HOSTILE=all runs it here too")
		}
		proxy, sums := moduleProxy(t)
		t.Setenv("GOPROXY", "file://"+proxy)
		t.Setenv("GOSUMDB", "off")
		host := gitsrctest.New(t)
		repo := host.Repository("me/app")
		data := t.TempDir()
		// So that the ninth layer of a class makes it merge, and a later one remove.
		s := newServer(t, engine, data, host, "--cache-limit", "32MiB")
		const path = "/git.test/me/app/linux/amd64/main"
		former := map[string]bool{} // layers that once were whole
		for _, m := range []moment{
			{"laying out modules", func(data string) bool { return len(glob(data, "cache/modules/tmp/*")) > 0 }},
			{"sealing", func(data string) bool { return drafts(data, former, func(links uint64) bool { return links == 1 }) }},
			{"compaction", func(data string) bool { return drafts(data, former, func(links uint64) bool { return links > 1 }) }},
			{"eviction", func(data string) bool {
				return slices.ContainsFunc(glob(data, "cache/packages/tmp/*"), func(dir string) bool { return former[filepath.Base(dir)] })
			}},
		} {
			const most = 24 // builds
			hit := false
			for n := 0; n < most && !hit; n++ {
				for _, layer := range glob(data, "cache/packages/layers/*") {
					former[filepath.Base(layer)] = true
				}
				repo.Commit("main", gitsrctest.Files(plants(sums, 100)))
				id := s.post(path, "")
				if hit = s.killAt(m, id, data); hit {
					s.start()
				}
				if b, _ := s.want(id, "", build.Succeeded, ""); hit && b.Attempt < 2 {
					t.Logf("%s: the build had ended", m.name)
				}
			}
			if !hit {
				t.Errorf("%s was not seen in %d builds", m.name, most)
			}
			wantNothingLeft(t, data)
			s.wantKept(data)
			if list := cacheCommandSays(t, data, "list"); !strings.Contains(list, "repository  go1.") || !strings.Contains(list, "git.test/me/app") {
				t.Errorf("cargo cache list:\n%s", list)
			}
			s.download(path, "")
		}
	})
}

// killAt kills the server as soon as it is seen at m, unless the build ends
// and a second passes before that: what a build leased is removed after it.
func (s *server) killAt(m moment, id build.ID, data string) bool {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if resp, err := http.Get(s.url + "/builds/" + string(id) + "/logs?follow=1"); err == nil {
			defer resp.Body.Close()
			for b := make([]byte, 4096); err == nil; {
				_, err = resp.Body.Read(b)
			}
		}
	}()
	defer func() { <-ended }()
	running := ended
	var over <-chan time.Time
	for {
		if m.seen(data) {
			s.kill()
			return true
		}
		select {
		case <-running:
			running, over = nil, time.After(time.Second)
		case <-over:
			return false
		case <-time.After(100 * time.Microsecond):
		}
	}
}

// drafts reports whether a layer that is being made has a file with as many
// links as is says.
func drafts(data string, former map[string]bool, is func(links uint64) bool) bool {
	for _, dir := range glob(data, "cache/packages/tmp/*") {
		if former[filepath.Base(dir)] {
			continue
		}
		for _, f := range glob(dir, "0?/*") {
			if fi, err := os.Lstat(f); err == nil && is(uint64(fi.Sys().(*syscall.Stat_t).Nlink)) {
				return true
			}
		}
	}
	return false
}

func glob(dir, pattern string) []string {
	found, _ := filepath.Glob(filepath.Join(dir, pattern)) // the pattern is well-formed
	return found
}

// plants is a repository that needs a module, and whose Makefile compiles n
// packages of 4 KiB: it has them with it, as the go command would cache them.
func plants(sums string, n int) map[string]string {
	files := map[string]string{
		"go.mod":   "module git.test/me/app\n\ngo 1.26\n\nrequire example.test/dep v1.0.0\n",
		"go.sum":   sums,
		"Makefile": "all:\n\t@cp -r cache/. $$GOCACHE/; echo made > out.txt; rm -r cache\n",
	}
	for i := range n {
		output := make([]byte, 4<<10)
		_, _ = rand.Read(output) // never fails
		sum, action := sha256.Sum256(output), sha256.Sum256(output[:i+1])
		files[fmt.Sprintf("cache/%02x/%x-d", sum[0], sum)] = string(output)
		files[fmt.Sprintf("cache/%02x/%x-a", action[0], action)] = fmt.Sprintf("v1 %x %x %20d %20d\n", action, sum, len(output), time.Now().UnixNano())
	}
	return files
}

// kept is what the server says it keeps of something, in bytes.
func (s *server) kept(what string) int64 {
	s.t.Helper()
	m := regexp.MustCompile(`cargo_kept_bytes\{what="` + what + `"\} (\S+)`).FindSubmatch(s.do(http.MethodGet, "/metrics", "").body)
	if m == nil {
		s.t.Fatalf("no metric says how many bytes of %s are kept", what)
	}
	n, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return int64(n)
}

// wantKept fails the test unless the server keeps what it says it keeps, and
// has nothing half in its caches, as soon as it has nothing to do any more.
func (s *server) wantKept(data string) {
	s.t.Helper()
	var wrong []string
	for deadline := time.Now().Add(settleTime); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if wrong = s.keptWrongly(data); len(wrong) == 0 {
			return
		}
	}
	s.t.Errorf("after %v: %q", settleTime, wrong)
}

func (s *server) keptWrongly(data string) (wrong []string) {
	s.t.Helper()
	for what, dir := range map[string]string{"packages": "cache/packages/layers", "modules": "cache/modules", "artifacts": "storage"} {
		said, there := s.kept(what), onDisk(s.t, filepath.Join(data, dir))
		if diff := max(said-there, there-said); diff > 64<<10+there/20 {
			wrong = append(wrong, fmt.Sprintf("%d bytes of %s are kept as the metric has it, %d are in %s", said, what, there, dir))
		}
	}
	return slices.Concat(wrong, glob(data, "cache/packages/tmp/*"), glob(data, "cache/modules/tmp/*"))
}

// onDisk is what the files below dir take of the disk, each file once.
func onDisk(t *testing.T, dir string) (n int64) {
	t.Helper()
	seen := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		var fi fs.FileInfo
		if err == nil && !d.IsDir() {
			fi, err = d.Info()
		}
		switch {
		case errors.Is(err, fs.ErrNotExist): // the server goes on removing
			return nil
		case err != nil || fi == nil:
			return err
		}
		if st := fi.Sys().(*syscall.Stat_t); !seen[st.Ino] {
			seen[st.Ino] = true
			n += st.Blocks * 512
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return n
}

// cacheCommandSays is what a command of cargo cache prints.
func cacheCommandSays(t *testing.T, data, command string) string {
	t.Helper()
	var out, said strings.Builder
	if code := run(t.Context(), []string{"cargo", "cache", command, "--data-dir", data}, &out, &said); code != 0 {
		t.Fatalf("cargo cache %s: exit status %d: %s", command, code, said.String())
	}
	return out.String()
}
