package gitsrc_test

import (
	"archive/zip"
	"encoding/json"
	"fmt"
	"io/fs"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/monochromegane/cargo/gitsrc"
	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

// benchModule is a real app of about 130 files, if it is in the module cache
// or can be had; else a made-up tree of that size is measured.
const benchModule = "github.com/junegunn/fzf@v0.65.2"

// BenchmarkFetch compares the processor time of Resolve and Fetch with that of
// git clone --depth 1, on the same repository with 1,600 refs, which both have
// to list. The host's own time counts for neither.
func BenchmarkFetch(b *testing.B) {
	host := gitsrctest.New(b)
	repo := host.Repository("o/app")
	commit := repo.Commit("main", benchTree(b))
	repo.Tag("v1", commit)
	var packed strings.Builder
	for i := range 1600 {
		fmt.Fprintf(&packed, "%s refs/pull/%d/head\n", commit, i)
	}
	if err := os.WriteFile(filepath.Join(repo.Dir, "packed-refs"), []byte(packed.String()), 0o644); err != nil {
		b.Fatal(err)
	}
	git(b, repo.Dir, "repack", "-adq")
	address := serveElsewhere(b, host.Root)

	b.Run("git", func(b *testing.B) {
		measure(b, syscall.RUSAGE_CHILDREN, func(dir string) {
			git(b, dir, "-c", "advice.detachedHead=false", "clone", "-q", "--depth", "1", "-b", "v1", address+"/o/app.git", ".")
		})
	})
	b.Run("gitsrc", func(b *testing.B) {
		s := newSource(b, host, func(o *gitsrc.Options) {
			o.Remotes = map[string]string{remote: address}
			o.Log = nil
		})
		measure(b, syscall.RUSAGE_SELF, func(dir string) {
			ref, err := s.Resolve(b.Context(), app, "v1", gitsrc.Token{}, 0)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := s.Fetch(b.Context(), app, ref, gitsrc.Token{}, dir); err != nil {
				b.Fatal(err)
			}
		})
	})
}

// measure reports the processor time of one run of f, in milliseconds.
func measure(b *testing.B, who int, f func(dir string)) {
	b.Helper()
	total := time.Duration(0)
	for b.Loop() {
		b.StopTimer()
		dir := b.TempDir()
		b.StartTimer()
		before := processorTime(b, who)
		f(dir)
		total += processorTime(b, who) - before
	}
	b.ReportMetric(total.Seconds()*1000/float64(b.N), "cpu-ms/op")
}

func processorTime(b *testing.B, who int) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(who, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// serveElsewhere serves root from a process of its own, so that the host's
// processor time is counted neither as ours nor as that of a child that has ended.
func serveElsewhere(b *testing.B, root string) (address string) {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "GITSRC_SERVE="+root)
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if _, err := fmt.Fscanln(out, &address); err != nil {
		b.Fatal(err)
	}
	return address
}

// TestMain is also the process of serveElsewhere.
func TestMain(m *testing.M) {
	root := os.Getenv("GITSRC_SERVE")
	if root == "" {
		os.Exit(m.Run())
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("http://" + listener.Addr().String())
	server := &http.Server{Handler: gitsrctest.Handler(root, nil), ReadHeaderTimeout: time.Minute}
	log.Fatal(server.Serve(listener))
}

func benchTree(b *testing.B) fs.FS {
	b.Helper()
	out, err := exec.CommandContext(b.Context(), "go", "mod", "download", "-json", benchModule).Output()
	var module struct{ Zip string }
	if err != nil || json.Unmarshal(out, &module) != nil {
		b.Logf("%s cannot be had (%v); a made-up tree is measured", benchModule, err)
		return madeUp()
	}
	archive, err := zip.OpenReader(module.Zip)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { archive.Close() })
	sub, err := fs.Sub(archive, benchModule)
	if err != nil {
		b.Fatal(err)
	}
	return sub
}

// madeUp is 160 files of 10 kB, about as compressible as source code.
func madeUp() fs.FS {
	random := rand.New(rand.NewPCG(1, 2))
	words := strings.Fields("func return if err != nil { } := range for string int var package import struct type")
	tree := fstest.MapFS{}
	for i := range 160 {
		var text strings.Builder
		for text.Len() < 10_000 {
			fmt.Fprintf(&text, "%s %x ", words[random.IntN(len(words))], random.Uint32()&0xfff)
		}
		tree[fmt.Sprintf("pkg%d/file%d.go", i%12, i)] = &fstest.MapFile{Data: []byte(text.String()), Mode: 0o644}
	}
	return tree
}
