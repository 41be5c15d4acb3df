package worker_test

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/disk"
	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/executortest"
)

// fill writes to the build's disk until that has no room. It takes nothing away
// again: on a busy machine that may be missed.
func fill(p executortest.Process) error {
	name := p.Path("/go/tmp/filler")
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	for block := make([]byte, 1<<20); err == nil; {
		_, err = f.Write(block)
	}
	return nil
}

func TestDiskFull(t *testing.T) {
	t.Parallel()
	for name, play := range map[string]script{
		"filled": func(_ context.Context, p executortest.Process) error {
			if err := fill(p); err != nil {
				return err
			}
			return &executor.ExitError{Code: 2}
		},
		"said": func(_ context.Context, p executortest.Process) error {
			fmt.Fprint(p.Stderr, "link: mapping output file failed: no space ")
			fmt.Fprintln(p.Stderr, "left on device") // in two writes
			return &executor.ExitError{Code: 1}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, hello, play)
			r.openLoop()
			b, _ := r.run()
			r.checkFailed(b, build.ReasonDiskFull, "used up its disk of 33554432 bytes")
			r.checkFailed(b, build.ReasonDiskFull, "--disk raises that")
		})
	}
}

// openLoop has disks of 32 MiB that the kernel bounds.
func (r *rig) openLoop() {
	r.Helper()
	r.openDisks(disk.Options{Limit: 32 << 20})
	r.needLoop()
}

func (r *rig) needLoop() {
	r.Helper()
	d, err := disk.Open(r.Context(), disk.Options{Dir: r.TempDir()})
	r.must(err)
	if d.Kind() != disk.Loop {
		if slices.Contains(strings.Split(os.Getenv("CARGO_TEST_REQUIRE"), ","), "loop") {
			r.Fatal("no loop devices here: ", d.Weakness())
		}
		r.Skip("no loop devices here: ", d.Weakness())
	}
}

// A source that does not fit on the disk is no fault of the server's.
func TestSourceLargerThanDisk(t *testing.T) {
	t.Parallel()
	files := map[string]string{"go.mod": "module m\n"}
	for i := range 10 {
		files[fmt.Sprint("data", i)] = strings.Repeat(fmt.Sprint(i), 4<<20)
	}
	r := newRig(t, files, nil)
	r.openLoop()
	b, log := r.run()
	r.checkFailed(b, build.ReasonDiskFull, "used up its disk")
	if again := log.find("Something broke on our side, not yours. Trying again."); len(again) > 0 {
		t.Error("it was tried again")
	}
}

// A disk that the kernel does not bound is measured, and the build ended.
func TestDiskThatIsMeasured(t *testing.T) {
	t.Parallel()
	r := newRig(t, hello, func(ctx context.Context, p executortest.Process) error {
		if err := os.WriteFile(p.Path("/go/tmp/filler"), make([]byte, 40<<20), 0o600); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	})
	r.openDisks(disk.Options{Limit: 32 << 20, Kind: disk.Watch})
	b, _ := r.run()
	r.checkFailed(b, build.ReasonDiskFull, "used up its disk")
}

// A limit that a command ran into and got over is a line in the log.
func TestLimitThatWasSurvived(t *testing.T) {
	t.Parallel()
	r := newRig(t, hello, func(ctx context.Context, p executortest.Process) error {
		p.Limited(executor.ErrTooManyProcesses)
		p.Limited(executor.ErrOutOfMemory)
		return errors.Join(fill(p), makes("/go/out/app")(ctx, p))
	})
	r.openLoop()
	b, log := r.run()
	if b.State != build.Succeeded {
		t.Fatalf("record %+v", b)
	}
	for flag, bound := range map[string]float64{
		"--pids": float64(executor.DefaultLimits.Pids), "--memory": float64(executor.DefaultLimits.Memory), "--disk": 32 << 20,
	} {
		if !slices.ContainsFunc(log, func(l map[string]any) bool {
			return l["level"] == "warn" && strings.Contains(l["msg"].(string), flag+" raises that") && (l["processes"] == bound || l["bytes"] == bound)
		}) {
			t.Errorf("no line says what the limit was and names %s: %v", flag, log)
		}
	}
}

// Only a Makefile that wanted something from a network is told of that.
func TestNetworkHint(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		files map[string]string
		says  string
		want  int
		piece int // bytes a write; 0 for all at once
	}{
		"make that resolves":          {files: withMakefile, says: "curl: (6) Could not resolve host: example.com", want: 1},
		"make that breaks":            {files: withMakefile, says: "undefined: x", want: 0},
		"the longest word, piecemeal": {files: withMakefile, says: "wget: Temporary Failure in Name Resolution", want: 1, piece: 1},
		"in a long write":             {files: withMakefile, says: strings.Repeat("x", 4080) + " Temporary failure in name resolution", want: 1},
		"go build of a network app":   {files: hello, says: "dial tcp: lookup example.com: no such host", want: 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, tc.files, func(_ context.Context, p executortest.Process) error {
				for text := range slices.Chunk([]byte(tc.says+"\n"), cmp.Or(tc.piece, len(tc.says)+1)) {
					_, _ = p.Stderr.Write(text)
				}
				return &executor.ExitError{Code: 2}
			})
			b, log := r.run()
			r.checkFailed(b, build.ReasonExit, "exit status 2")
			hints := slices.DeleteFunc(log, func(l map[string]any) bool { return !strings.Contains(l["msg"].(string), "docs/builds.md") })
			if len(hints) != tc.want || tc.want > 0 && !strings.Contains(hints[0]["msg"].(string), "--network modules") {
				t.Errorf("hints %v, want %d", hints, tc.want)
			}
		})
	}
}

// What a build has compiled is there for the next that may read it, and the
// library for its target is wanted.
func TestCompiledPackagesAreKept(t *testing.T) {
	t.Parallel()
	output := sha256.Sum256([]byte("hello"))
	action := sha256.Sum256([]byte("an action"))
	entry := fmt.Sprintf("/go/cache/%02x/%x-", action[0], action) + "a"
	files := map[string]string{
		entry: fmt.Sprintf("v1 %x %x %20d %20d\n", action, output, len("hello"), 1),
		fmt.Sprintf("/go/cache/%02x/%x-", output[0], output) + "d": "hello",
	}
	found := make(chan bool, 2)
	r := newRig(t, hello, func(ctx context.Context, p executortest.Process) error {
		_, err := os.Stat(p.Path(entry))
		found <- err == nil
		if err != nil {
			for name, content := range files {
				if err := write(p, name, []byte(content)); err != nil {
					return err
				}
			}
		}
		return makes("/go/out/app")(ctx, p)
	})
	b, log := r.run()
	if kept := log.find("kept compiled packages"); len(kept) != 1 || kept[0]["files"] != 2.0 {
		t.Errorf("log: %q", log.messages())
	}
	r.work(r.submit("linux/arm64", ""))
	if first, second := <-found, <-found; first || !second {
		t.Errorf("found in the first build: %t, in the second: %t", first, second)
	}
	if want := []string{"linux/amd64", "linux/arm64"}; !slices.Equal(r.library.wanted, want) {
		t.Errorf("wanted %q, want %q", r.library.wanted, want)
	}
	if b.State != build.Succeeded {
		t.Errorf("record %+v", b)
	}
}

// A build whose disk is larger than the room of the machine, which fills up
// under it, has neither failed nor made anything, whatever its commands say.
func TestMachineFull(t *testing.T) {
	t.Parallel()
	big := func(_ context.Context, p executortest.Process) error {
		return os.WriteFile(p.Path("/go/tmp/filler"), make([]byte, 100<<20), 0o600)
	}
	for name, tc := range map[string]struct {
		kind disk.Kind
		play script
	}{
		"exit": {disk.Loop, func(ctx context.Context, p executortest.Process) error {
			return errors.Join(big(ctx, p), exits(2)(ctx, p))
		}},
		"success": {disk.Loop, func(ctx context.Context, p executortest.Process) error {
			return errors.Join(big(ctx, p), makes("/go/out/app")(ctx, p))
		}},
		"no disk of its own": {disk.Watch, func(ctx context.Context, p executortest.Process) error {
			fmt.Fprintln(p.Stderr, big(ctx, p))
			return exits(2)(ctx, p)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var attempts atomic.Int32
			r := newRig(t, hello, func(ctx context.Context, p executortest.Process) error {
				if attempts.Add(1) == 1 {
					return tc.play(ctx, p)
				}
				return makes("/go/out/app")(ctx, p)
			})
			r.must(os.MkdirAll(r.workspace, 0o700))
			if err := syscall.Mount("tmpfs", r.workspace, "tmpfs", 0, "size=48m"); err != nil {
				t.Skipf("cannot mount a small disk: %v", err)
			}
			t.Cleanup(func() { _ = syscall.Unmount(r.workspace, syscall.MNT_DETACH) })
			if tc.kind == disk.Loop {
				r.needLoop()
			}
			r.openDisks(disk.Options{Limit: 256 << 20, Kind: tc.kind})
			b, log := r.run()
			if b.State != build.Succeeded || b.Attempt != 2 {
				t.Errorf("record %+v of attempt %d, %s: %s", b, b.Attempt, b.Reason, b.Message)
			}
			if said := log.find("The server has no room left on its disk. Your build will start again."); len(said) != 1 {
				t.Errorf("log: %q", log.messages())
			}
		})
	}
}
