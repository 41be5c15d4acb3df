package worker_test

import (
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/executortest"
)

func exits(code int) script {
	return func(context.Context, executortest.Process) error { return &executor.ExitError{Code: code} }
}

func hitsLimit(limit error) script {
	return func(context.Context, executortest.Process) error {
		return &executor.LimitError{Limit: limit, Exit: &executor.ExitError{Code: 2}}
	}
}

// replaces is a command that leaves a link to target where path was, after a
// program in /go/bin and at path.
func replaces(path, target string) script {
	return func(ctx context.Context, p executortest.Process) error {
		return errors.Join(makes("/go/bin/app")(ctx, p), os.RemoveAll(p.Path(path)), os.Symlink(target, p.Path(path)))
	}
}

var withMakefile = map[string]string{"Makefile": "all:\n", ".gitignore": "ignored*\n", "tracked": "x"}

// A build that fails for a reason of its own fails once, and says which.
func TestVerdict(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	for _, name := range []string{"app", "src/git.test/me/app/app"} {
		_ = os.MkdirAll(filepath.Dir(filepath.Join(outside, name)), 0o755)
		if err := os.WriteFile(filepath.Join(outside, name), program(elf.EM_X86_64), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name    string
		files   map[string]string // nil means hello
		prepare func(r *rig)      // between submit and start
		play    script            // nil: it must not come to a command
		reason  build.Reason
		exit    int
		message string
	}{
		{name: "exit", play: exits(3), reason: build.ReasonExit, exit: 3, message: "The build failed with exit status 3"},
		{name: "make", files: withMakefile, play: exits(2), reason: build.ReasonExit, exit: 2, message: "exit status 2"},
		{name: "tidy", files: map[string]string{"main.go": hello["main.go"]}, play: func(_ context.Context, p executortest.Process) error {
			if p.Args[2] == "tidy" {
				return &executor.ExitError{Code: 1}
			}
			return nil
		}, reason: build.ReasonSource, exit: 1, message: "Resolving the imports of a repository without go.mod failed with exit status 1"},
		{name: "memory", play: hitsLimit(executor.ErrOutOfMemory), reason: build.ReasonOutOfMemory, exit: 2, message: "more than 4294967296 bytes of memory; --memory raises that"},
		{name: "pids", play: hitsLimit(executor.ErrTooManyProcesses), reason: build.ReasonTooManyProcesses, exit: 2, message: "more than 1024 processes; --pids raises that"},
		{name: "nothing made", play: func(context.Context, executortest.Process) error { return nil }, reason: build.ReasonNoArtifact, message: "No artifact: "},
		{name: "another machine", play: func(_ context.Context, p executortest.Process) error {
			return write(p, "/go/out/app", program(elf.EM_AARCH64))
		}, reason: build.ReasonWrongPlatform, message: "Wrong platform: the build made no executable for linux/amd64: app is "},
		{name: "another machine, installed", files: withMakefile, play: func(_ context.Context, p executortest.Process) error {
			return write(p, "/go/bin/app", program(elf.EM_AARCH64))
		}, reason: build.ReasonWrongPlatform, message: "Wrong platform: "},
		{name: "too much", prepare: func(r *rig) { r.opts.ArtifactLimit = 63 }, play: makes("/go/out/app"), reason: build.ReasonArtifactTooLarge, message: "--artifact-limit"},
		{name: "too much in the tree", files: withMakefile, prepare: func(r *rig) { r.opts.ArtifactLimit = 5000 }, play: func(ctx context.Context, p executortest.Process) error {
			return errors.Join(write(p, treeDir+"/data", make([]byte, 5001)), makes("/go/bin/app")(ctx, p))
		}, reason: build.ReasonArtifactTooLarge, message: "--artifact-limit"},
		{name: "archive too large", prepare: func(r *rig) { r.opts.ArtifactLimit = 64 }, play: makes("/go/out/app"), reason: build.ReasonArtifactTooLarge, message: "--artifact-limit"},

		{name: "out removed", play: func(_ context.Context, p executortest.Process) error { return os.Remove(p.Path("/go/out")) }, reason: build.ReasonNoArtifact, message: "/go/out"},
		{name: "out a file", play: func(ctx context.Context, p executortest.Process) error {
			return errors.Join(os.Remove(p.Path("/go/out")), makes("/go/out")(ctx, p))
		}, reason: build.ReasonNoArtifact, message: "/go/out"},
		{name: "out a link outside", play: replaces("/go/out", outside), reason: build.ReasonNoArtifact, message: "/go/out"},
		{name: "out a link up", play: replaces("/go/out", "../.."), reason: build.ReasonNoArtifact, message: "/go/out"},
		{name: "out a link inside", play: replaces("/go/out", "bin"), reason: build.ReasonNoArtifact, message: "/go/out"},
		{name: "tree a link", files: withMakefile, play: func(ctx context.Context, p executortest.Process) error {
			return errors.Join(replaces(treeDir, outside)(ctx, p), os.Remove(p.Path("/go/bin/app")))
		}, reason: build.ReasonNoArtifact, message: treeDir},
		{name: "tree and bin links", files: withMakefile, play: func(ctx context.Context, p executortest.Process) error {
			return errors.Join(replaces("/go/src", outside+"/src")(ctx, p), replaces("/go/bin", outside)(ctx, p))
		}, reason: build.ReasonNoArtifact, message: treeDir},

		{name: "no program", files: map[string]string{"go.mod": hello["go.mod"]}, reason: build.ReasonSource, message: "main"},
		{name: "refused", prepare: func(r *rig) { r.opts.Source = newSource(r, 1) }, reason: build.ReasonSource, message: "The source was refused: "},
		{name: "moved", prepare: func(r *rig) { r.repo.Tag("v1", r.repo.CommitTree(r.repo.Tree())) }, reason: build.ReasonSource, message: "moved to another commit"},
		{name: "gone", prepare: func(r *rig) { r.must(os.RemoveAll(r.repo.Dir)) }, reason: build.ReasonSource, message: "is gone, or can no longer be read"},
		{name: "became private", prepare: func(r *rig) { r.host.Protect("me/app", "T") }, reason: build.ReasonSource, message: "is gone, or can no longer be read"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			files := tc.files
			if files == nil {
				files = hello
			}
			play := tc.play
			if play == nil {
				play = func(_ context.Context, p executortest.Process) error {
					t.Errorf("runs %q", p.Args)
					return nil
				}
			}
			r := newRig(t, files, play)
			b := r.submit("linux/amd64", "")
			if tc.prepare != nil {
				tc.prepare(r)
			}
			b = r.work(b)
			r.checkFailed(b, tc.reason, tc.message)
			if exit := b.ExitCode; tc.exit == 0 && exit != nil || tc.exit != 0 && (exit == nil || *exit != tc.exit) {
				t.Errorf("exit status %v, want %d", exit, tc.exit)
			}
			if again := r.log(b.ID).find("Your build started."); len(again) != 1 || strings.Contains(r.operator.String(), "trying again") {
				t.Error("it was tried again")
			}
		})
	}
}

// checkFailed wants b to have failed for a reason, in its record, in its log
// and in the metrics, and to have left nothing in the store.
func (r *rig) checkFailed(b build.Build, reason build.Reason, message string) {
	r.Helper()
	if b.State != build.Failed || b.Reason != reason || !strings.Contains(b.Message, message) || b.Artifact != nil || b.Executor != "fake" {
		r.Errorf("%s, %s: %q; artifact %v; want %s: %q", b.State, b.Reason, b.Message, b.Artifact, reason, message)
	}
	if strings.Contains(b.Message, r.data) {
		r.Errorf("the message names a path of the host: %q", b.Message)
	}
	last := r.log(b.ID).last()
	if last["state"] != "failed" || last["reason"] != string(reason) || last["msg"] != b.Message || last["level"] != "error" {
		r.Errorf("last line of the log: %v", last)
	}
	if m, ok := r.stored(b); ok {
		r.Errorf("stored %+v", m)
	}
	if ended := r.metrics.endings(); len(ended) != r.submitted || !slices.Contains(ended, "fake "+string(reason)) {
		r.Errorf("counted %q", ended)
	}
}

// What breaks on our side is tried three times, each in a workspace of its
// own, and what it was is for the operator alone.
func TestOurFault(t *testing.T) {
	t.Parallel()
	const detail = "detail-of-the-runtime"
	faults := map[string]error{ // by GOARCH
		"amd64": errors.New(detail),
		"386":   fmt.Errorf("%w: %s", errors.New("what nobody knows"), detail),
	}
	r := newRig(t, hello, func(_ context.Context, p executortest.Process) error {
		for _, name := range []string{treeDir + "/left", "/go/out/left", "/go/cache/left"} {
			if _, err := os.Lstat(p.Path(name)); err == nil {
				t.Errorf("step %s finds %s", p.ID, name)
			}
			if err := write(p, name, nil); err != nil {
				t.Error(err)
			}
		}
		return faults[strings.TrimPrefix(p.Env[1], "GOARCH=")]
	})
	r.opts.Concurrency = len(faults)
	var builds []build.Build
	for arch := range faults {
		builds = append(builds, r.submit("linux/"+arch, ""))
	}
	stop := r.start(0)
	for i, b := range builds {
		builds[i] = r.wait(b.ID)
	}
	stop()
	for _, b := range builds {
		r.checkFailed(b, build.ReasonInternal, "Something broke on our side, not yours.")
		var ids []string
		for _, s := range r.fake.Steps() {
			if id, ok := strings.CutPrefix(s.ID, string(b.ID)); ok {
				ids = append(ids, id)
			}
		}
		if want := []string{"-1-1-0", "-1-2-0", "-1-3-0"}; !slices.Equal(ids, want) {
			t.Errorf("steps %q, want %q", ids, want)
		}
		log := r.log(b.ID)
		if again := log.find("Something broke on our side, not yours. Trying again."); len(again) != 2 || again[1]["try"] != 3.0 || again[0]["level"] != "warn" {
			t.Errorf("the log says of trying again: %v", again)
		}
		record, _ := json.Marshal(b)
		text, _ := json.Marshal(log)
		if strings.Contains(string(record)+string(text), detail) {
			t.Errorf("the user is told what broke: %s\n%s", record, text)
		}
		if len(b.Phases) != 4 {
			t.Errorf("phases of the last try: %v", b.Phases)
		}
	}
	if said := r.operator.String(); strings.Count(said, detail) != 6 || strings.Count(said, "level=ERROR") != 2 {
		t.Error("the operator is not told what broke each time")
	}
	if n := len(r.metrics.phases); n != 24 {
		t.Errorf("%d phases counted, want 4 of 3 tries of 2 builds", n)
	}
}

// A fault that passes is nobody's business; a secret file that was replaced is
// not the caller's.
func TestFaultThatPasses(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	r := newRig(t, hello, func(ctx context.Context, p executortest.Process) error {
		if calls.Add(1) == 1 {
			return errors.New("broken for a moment")
		}
		return makes("/go/out/app")(ctx, p)
	})
	r.opts.Concurrency = 2
	b := r.submit("linux/amd64", "")
	private, _ := r.request("linux/arm64", "")
	private.Public = false
	r.enqueue(private, []byte("sealed under another secret"))
	stop := r.start(0)
	b, private = r.wait(b.ID), r.wait(private.ID)
	stop()
	if b.State != build.Succeeded || len(b.Phases) != len(build.Phases) || b.Attempt != 1 {
		t.Errorf("record %+v", b)
	}
	checkStored(r, b, map[string]string{"app": "executable"})
	r.checkFailed(private, build.ReasonInternal, "Something broke on our side")
}

func TestForgeThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	r := newRig(t, hello, nil)
	b := r.submit("linux/amd64", "")
	r.host.Fail(http.StatusBadGateway)
	asked := len(r.host.Requests())
	b = r.work(b)
	r.checkFailed(b, build.ReasonSource, "The forge did not answer; try again later.")
	if n := len(r.host.Requests()) - asked; n != 3 {
		t.Errorf("asked %d times", n)
	}
	log := r.log(b.ID)
	if again := log.find("The forge did not answer. Trying again."); len(again) != 2 {
		t.Errorf("log: %q", log.messages())
	}
}

func TestTimeout(t *testing.T) {
	t.Parallel()
	r := newRig(t, hello, func(ctx context.Context, _ executortest.Process) error {
		<-ctx.Done()
		return nil
	})
	r.opts.Timeout = time.Second
	b, _ := r.run()
	r.checkFailed(b, build.ReasonTimeout, "The build took longer than 1s; --build-timeout raises that.")
}

func TestLogTooLarge(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]script{
		"stopped": makes("/go/out/app"),
		"ended":   makes("/go/out/app"),
		"failed":  exits(2),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, hello, func(ctx context.Context, p executortest.Process) error {
				if name == "stopped" {
					defer func() { <-ctx.Done() }()
				}
				defer fmt.Fprint(p.Stdout, strings.Repeat(strings.Repeat("x", 100)+"\n", 100))
				return end(ctx, p)
			})
			r.opts.LogLimit = 5000
			b, _ := r.run()
			r.checkFailed(b, build.ReasonLogTooLarge, "more than 5000 bytes of log; --log-limit raises that")
		})
	}
}

// A Makefile's output is what it adds to the tree, or what it installs.
func TestMakefile(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name     string
		platform string
		play     script
		want     map[string]string
		skipped  map[string]string // each with the beginning of the reason
	}{
		{"in the tree", "linux/amd64", func(ctx context.Context, p executortest.Process) error {
			return errors.Join(makes(treeDir+"/bin/app")(ctx, p), makes(treeDir+"/ignored-app")(ctx, p), makes(treeDir+"/tracked")(ctx, p),
				write(p, treeDir+"/ignored.txt", []byte("i")), write(p, treeDir+"/new.txt", []byte("n")), makes("/go/bin/tool")(ctx, p),
				os.Symlink("app", p.Path(treeDir+"/bin/link")), write(p, treeDir+"/arm", program(elf.EM_AARCH64)))
		}, map[string]string{"bin/app": "executable", "ignored-app": "executable", "new.txt": "n"},
			map[string]string{"bin/link": "is a symbolic link", "arm": "is an ELF executable"}},
		{"installed", "linux/amd64", func(ctx context.Context, p executortest.Process) error {
			return errors.Join(makes("/go/bin/app")(ctx, p), os.Symlink("app", p.Path("/go/bin/link")), os.Symlink("app", p.Path(treeDir+"/link")))
		}, map[string]string{"app": "executable"}, map[string]string{"link": "is a symbolic link"}},
		{"installed for another platform", "linux/arm64", func(ctx context.Context, p executortest.Process) error {
			return errors.Join(write(p, "/go/bin/linux_arm64/app", program(elf.EM_AARCH64)), makes("/go/bin/tool")(ctx, p))
		}, map[string]string{"linux_arm64/app": "executable"}, map[string]string{"tool": "is an ELF executable"}},
		{"tree removed, installed", "linux/amd64", func(ctx context.Context, p executortest.Process) error {
			return errors.Join(os.RemoveAll(p.Path("/go/src")), makes("/go/bin/app")(ctx, p))
		}, map[string]string{"app": "executable"}, nil},
		{"no program, tools elsewhere", "linux/arm64", func(ctx context.Context, p executortest.Process) error {
			return errors.Join(os.WriteFile(p.Path(treeDir+"/page.html"), []byte("h"), 0o600), makes("/go/bin/tool")(ctx, p))
		}, map[string]string{"page.html": "h"}, map[string]string{"tool": "is an ELF executable"}},
		{"no program at all", "linux/amd64", func(_ context.Context, p executortest.Process) error {
			return errors.Join(os.WriteFile(p.Path(treeDir+"/page.html"), []byte("h"), 0o600), os.WriteFile(p.Path("/go/bin/notes"), []byte("n"), 0o600))
		}, map[string]string{"page.html": "h"}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, withMakefile, tc.play)
			b := r.submit(tc.platform, "")
			b = r.work(b)
			if b.State != build.Succeeded || len(b.Phases) != len(build.Phases) {
				t.Fatalf("record %+v", b)
			}
			checkStored(r, b, tc.want)
			skipped := map[string]string{}
			for _, l := range r.log(b.ID).find("left out") {
				file, why := l["file"].(string), l["why"].(string)
				if l["level"] != "warn" || l["phase"] != "collect" || !strings.HasPrefix(why, tc.skipped[file]) {
					t.Errorf("line %v", l)
				}
				skipped[file] = why
			}
			if len(skipped) != len(tc.skipped) {
				t.Errorf("left out %v, want %v", skipped, tc.skipped)
			}
		})
	}
}
