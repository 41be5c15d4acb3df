package worker_test

import (
	"archive/tar"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/executortest"
	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

func TestSuccess(t *testing.T) {
	t.Parallel()
	r := newRig(t, hello, func(ctx context.Context, p executortest.Process) error {
		for _, name := range []string{"/go", "/go/out", "/go/bin", "/go/home", "/go/cache", "/go/pkg", "/go/tmp", "/go/src/git.test", treeDir, treeDir + "/main.go"} {
			var st syscall.Stat_t
			if err := syscall.Stat(p.Path(name), &st); err != nil || st.Uid != executor.HostUID || st.Gid != executor.HostUID {
				t.Errorf("%s belongs to %d:%d, %v", name, st.Uid, st.Gid, err)
			}
		}
		fmt.Fprintln(p.Stdout, "to stdout")
		fmt.Fprint(p.Stderr, "to stderr")
		return makes("/go/out/app")(ctx, p)
	})
	r.opts.Limits = executor.Limits{CPUs: 1.5, Pids: 7}
	b, log := r.run()

	if b.State != build.Succeeded || b.Reason != "" || b.ExitCode != nil || b.Executor != "fake" || b.Attempt != 1 || b.Image != image {
		t.Errorf("record %+v", b)
	}
	if b.StartedAt.Before(b.AcceptedAt) || !b.FinishedAt.After(b.StartedAt) {
		t.Errorf("accepted %s, started %s, finished %s", b.AcceptedAt, b.StartedAt, b.FinishedAt)
	}
	if text, _ := json.Marshal(b.FinishedAt); !strings.HasSuffix(string(text), `Z"`) {
		t.Errorf("finished_at is %s, not in UTC", text)
	}
	var phases []build.PhaseName
	var seconds float64
	for _, p := range b.Phases {
		phases = append(phases, p.Name)
		seconds += p.Seconds
	}
	if took := b.FinishedAt.Sub(b.StartedAt).Seconds(); !slices.Equal(phases, build.Phases) || seconds <= 0 || seconds > took {
		t.Errorf("phases %v of %g s; the build took %g s", b.Phases, seconds, took)
	}
	checkStored(r, b, map[string]string{"app": "executable"})
	checkStep(r, b)
	checkLog(t, b, log)

	m := &r.metrics
	if !slices.Equal(m.ended, []string{"fake succeeded"}) || !slices.Equal(m.stored, []int64{b.Artifact.Size}) ||
		!slices.Equal(m.phases, names(build.Phases)) {
		t.Errorf("metrics: ended %q, stored %v, phases %q", m.ended, m.stored, m.phases)
	}
}

func names(phases []build.PhaseName) (names []string) {
	for _, p := range phases {
		names = append(names, string(p))
	}
	return names
}

// checkStored wants the artifact of b to hold files, each named with what it is.
func checkStored(r *rig, b build.Build, files map[string]string) {
	r.Helper()
	m, ok := r.stored(b)
	if !ok || b.Artifact == nil {
		r.Fatalf("artifact of the record %v; stored: %t", b.Artifact, ok)
	}
	if m.Artifact != *b.Artifact || m.Key != b.Key || m.Public != b.Public || m.BuildID != b.ID || !m.CommitTime.Equal(gitsrctest.Epoch) || m.CreatedAt.IsZero() {
		r.Errorf("stored %+v for %+v", m, b)
	}
	if m.RefName != b.RefName || !m.AcceptedAt.Equal(b.AcceptedAt) || !m.StartedAt.Equal(b.StartedAt) || m.Executor != b.Executor || m.Attempt != b.Attempt {
		r.Errorf("the record cannot be made again from %+v; it is %+v", m, b)
	}
	f, err := r.artifacts.Open(r.Context(), m)
	r.must(err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	r.must(err)
	got := map[string]string{}
	for archive := tar.NewReader(z); ; {
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		r.must(err)
		content, err := io.ReadAll(archive)
		r.must(err)
		got[h.Name] = cmp.Or(map[bool]string{true: "executable"}[strings.HasPrefix(string(content), "\x7fELF")], string(content))
	}
	if diff := gocmp.Diff(files, got); diff != "" {
		r.Errorf("the archive (-want +got):\n%s", diff)
	}
}

func checkStep(r *rig, b build.Build) {
	r.Helper()
	steps := r.fake.Steps()
	if len(steps) != 1 {
		r.Fatalf("%d steps", len(steps))
	}
	s := steps[0]
	if s.ID != string(b.ID)+"-1-1-0" || s.Image != "builder" || s.Dir != treeDir || s.Limits != (executor.Limits{CPUs: 1.5, Pids: 7}) || s.Door == nil {
		r.Errorf("step %+v", s)
	}
	at := filepath.Join(r.workspace, string(b.ID)+"-1")
	if m := s.Mounts; len(m) != 2 || m[0] != (executor.Mount{Source: filepath.Join(at, "go"), Target: "/go", Writable: true}) ||
		!strings.HasPrefix(m[1].Source, at+"/") || m[1].Target != "/go/cache" || !m[1].Writable {
		r.Errorf("mounts %+v", m)
	}
	want := []string{
		"GOOS=linux", "GOARCH=amd64", "CGO_ENABLED=0", "HOME=/go/home", "GOPATH=/go", "GOCACHE=/go/cache", "GOMODCACHE=/go/pkg/mod",
		"GOTMPDIR=/go/tmp", "TMPDIR=/go/tmp", "GOFLAGS=-buildvcs=false -trimpath", "GOPROXY=http://127.0.0.1:3128", "GOTOOLCHAIN=auto",
		fmt.Sprint("SOURCE_DATE_EPOCH=", gitsrctest.Epoch.Unix()), "TZ=UTC", "LC_ALL=C.UTF-8", "GOMAXPROCS=2", "GOSUMDB=sum.test",
		"GO111MODULE=on", "GOWORK=off",
	}
	if diff := gocmp.Diff(want, s.Env); diff != "" {
		r.Errorf("environment (-want +got):\n%s", diff)
	}
}

func checkLog(t *testing.T, b build.Build, log buildLog) {
	t.Helper()
	got := log.messages()
	slices.Sort(got[4:6]) // two streams have no order
	want := []string{
		"Your build started.", "cloning repository...", "cloned", "running", "stderr: to stderr", "stdout: to stdout", "modules",
		"collected", "stored", "Your build succeeded.",
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	for msg, fields := range map[string]map[string]any{
		"Your build started.":   {"level": "info", "workspace": string(b.ID), "attempt": 1.0, "build_id": string(b.ID)},
		"cloning repository...": {"phase": "fetch", "repo": "git.test/me/app", "ref": "refs/tags/v1"},
		"cloned":                {"phase": "fetch", "commit": b.Commit, "files": 2.0},
		"running":               {"phase": "build", "recipe": "go", "command": "go build -trimpath -o /go/out/ ."},
		"to stdout":             {"phase": "build", "stream": "stdout"},
		"modules":               {"phase": "build", "requests": 1.0},
		"collected":             {"phase": "collect", "file": "app", "bytes": 64.0},
		"stored":                {"phase": "store", "sha256": b.Artifact.SHA256, "file": "app_linux_amd64.tar.gz"},
		"Your build succeeded.": {"level": "info", "state": "succeeded"},
	} {
		for name, value := range fields {
			for _, line := range log.find(msg) {
				if line[name] != value {
					t.Errorf("%q: %s is %v, want %v", msg, name, line[name], value)
				}
			}
		}
	}
}

func TestToken(t *testing.T) {
	t.Parallel()
	const secret = "s3cr3t-t0ken-of-a-caller"
	var sealed string
	var r *rig
	r = newRig(t, hello, func(ctx context.Context, p executortest.Process) error {
		search(t, r.data, secret, sealed) // the workspace is there, the log is being written
		return makes("/go/out/app")(ctx, p)
	})
	r.host.Protect("me/app", secret)
	b := r.submit("linux/amd64", "token "+secret)
	if b.Public {
		t.Fatal("the repository is taken for public")
	}
	c, err := r.queue.Claim(t.Context())
	r.must(err)
	sealed = string(c.Sealed())
	r.must(c.Requeue(t.Context()))
	asked := len(r.host.Requests())
	b = r.work(b)
	if b.State != build.Succeeded || b.Public {
		t.Fatalf("record %+v", b)
	}
	if m, ok := r.stored(b); !ok || m.Public {
		t.Errorf("stored: %t, %+v", ok, m)
	}
	fetches := r.host.Requests()[asked:]
	if len(fetches) < 2 || slices.ContainsFunc(fetches, func(q gitsrctest.Request) bool { return q.Secret != secret }) {
		t.Errorf("%d requests to the forge, not all with the token", len(fetches))
	}
	search(t, r.data, secret, sealed)
	record, _ := json.Marshal(b)
	steps, _ := json.Marshal(r.fake.Steps()[0].Env)
	for where, text := range map[string]string{"record": string(record), "environment": string(steps), "operator's log": r.operator.String(), "args": fmt.Sprint(r.fake.Steps()[0].Args)} {
		if holds(text, secret, sealed) {
			t.Errorf("the token is in the %s", where)
		}
	}
}

// search looks for a token in all files below dir; its sealed form may wait in the queue.
func search(t *testing.T, dir, secret, sealed string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil // the queue and the log are at work
		}
		content, err := os.ReadFile(path)
		foreign := sealed
		if strings.HasPrefix(path, filepath.Join(dir, "queue")) {
			foreign = ""
		}
		if files++; err == nil && (holds(string(content), secret, foreign) || holds(path, secret, foreign)) {
			t.Errorf("the token is in %s", path)
		}
		return nil
	})
	if err != nil || files < 5 {
		t.Errorf("searched %d files, %v", files, err)
	}
}

func holds(text, secret, sealed string) bool {
	for i := range 3 { // base64 has three forms of what stands inside another text
		if strings.Contains(text, base64.StdEncoding.EncodeToString([]byte("xx"[:i] + secret))[4:28]) {
			return true
		}
	}
	return strings.Contains(text, secret) || sealed != "" && (strings.Contains(text, sealed) || strings.Contains(text, base64.StdEncoding.EncodeToString([]byte(sealed))))
}

// All steps of a build go through one door, whose bounds are thus the build's.
func TestOneDoor(t *testing.T) {
	t.Parallel()
	r := newRig(t, map[string]string{"main.go": hello["main.go"]}, func(ctx context.Context, p executortest.Process) error {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.DoorAddr)
		if err != nil {
			return err
		}
		defer c.Close()
		if greeting, err := io.ReadAll(c); string(greeting) != "welcome" {
			t.Errorf("the door says %q, %v", greeting, err)
		}
		return makes("/go/out/app")(ctx, p)
	})
	b, log := r.run()
	if b.State != build.Succeeded {
		t.Fatalf("record %+v", b)
	}
	var commands []string
	for _, s := range r.fake.Steps() {
		commands = append(commands, strings.Join(s.Args[:3], " "))
	}
	if want := []string{"go mod init", "go mod tidy", "go build -trimpath"}; !slices.Equal(commands, want) {
		t.Errorf("steps %q, want %q", commands, want)
	}
	if len(r.doors) != 1 || r.doors[0].served != 3 {
		t.Errorf("%d doors, the first served %d steps", len(r.doors), r.doors[0].served)
	}
	if used := log.find("modules"); len(used) != 1 || used[0]["requests"] != 3.0 {
		t.Errorf("the log says of the door: %v", used)
	}
}

// patientExecutor leaves it to the door to end Serve, as the contract allows.
type patientExecutor struct{ *executortest.Fake }

func (e patientExecutor) Run(ctx context.Context, s executor.Step) error {
	d := s.Door
	for _, closeFirst := range []bool{false, true} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		var serving sync.WaitGroup
		if closeFirst {
			_ = d.Close()
		}
		serving.Go(func() { _ = d.Serve(ln) })
		if !closeFirst {
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp", ln.Addr().String())
			if err == nil {
				_, err = io.ReadAll(c)
				_ = c.Close()
			}
			if err != nil {
				return err
			}
			_ = d.Close()
		}
		ended := make(chan struct{})
		go func() {
			serving.Wait()
			close(ended)
		}()
		select {
		case <-ended:
		case <-ctx.Done():
			return errors.New("the door is still open")
		}
	}
	s.Door = nil
	return e.Fake.Run(ctx, s)
}

func TestDoorEndsWithItsStep(t *testing.T) {
	t.Parallel()
	r := newRig(t, hello, makes("/go/out/app"))
	r.opts.Executor = patientExecutor{r.fake}
	if b, _ := r.run(); b.State != build.Succeeded {
		t.Errorf("record %+v", b)
	}
}
