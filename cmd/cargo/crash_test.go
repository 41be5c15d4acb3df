package main

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

// Whatever was accepted ends, private builds too, although the server is
// killed again and again at moments that nobody chose.
func TestKilledServerLosesNothing(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		const token = "s3cret-Token-0123456789"
		const builds = 8
		host := gitsrctest.New(t)
		for i := range builds {
			name := fmt.Sprintf("me/app%d", i)
			host.Repository(name).Commit("main", gitsrctest.Files(map[string]string{"Makefile": fmt.Sprintf("all:\n\tsleep 0.4; echo %d > out\n", i)}))
			if i%2 == 1 {
				host.Protect(name, token)
			}
		}
		data := t.TempDir()
		s := newServer(t, engine, data, host)
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		var accepted []build.ID
		for i := range builds {
			accepted = append(accepted, s.post(fmt.Sprintf("/git.test/me/app%d/linux/amd64/main", i), token))
			if i%2 == 1 {
				time.Sleep(time.Duration(random.IntN(1500)) * time.Millisecond)
				s.kill()
				s.start()
			}
		}
		for i, id := range accepted {
			if b, log := s.ended(id, token); b.State != build.Succeeded && b.Reason != build.ReasonLost {
				t.Errorf("build %s is %s %s; its log:\n%s", id, b.State, b.Reason, log)
			} else if b.State == build.Succeeded {
				s.download(fmt.Sprintf("/git.test/me/app%d/linux/amd64/main", i), token)
			}
		}
		wantNothingLeft(t, data)
	})
}

// A killed server's containers are gone after the next start, and what they
// were building is built again.
func TestKilledInEachPhase(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		host := gitsrctest.New(t)
		host.Repository("me/app").Commit("main", gitsrctest.Files(map[string]string{
			"Makefile": "all:\n\techo started; sleep 2; head -c 100000000 /dev/urandom > out\n"}))
		data := t.TempDir()
		s := newServer(t, engine, data, host)
		for _, mark := range []string{`"cloning repository..."`, `"started"`, `"collected"`} {
			id := s.post("/git.test/me/app/linux/amd64/main?rebuild=1", "")
			until(t, "the log says "+mark, func() bool {
				return strings.Contains(string(s.do(http.MethodGet, "/builds/"+string(id)+"/logs", "").body), mark)
			})
			s.kill()
			s.start()
			if b, _ := s.want(id, "", build.Succeeded, ""); b.Attempt != 2 {
				t.Errorf("killed at %s: succeeded at attempt %d, want 2", mark, b.Attempt)
			}
			s.download("/git.test/me/app/linux/amd64/main", "")
		}
		wantNothingLeft(t, data)
	})
}

// SIGTERM hands back what does not end in time; the next start builds it.
func TestTerminated(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		host := gitsrctest.New(t)
		host.Repository("me/app").Commit("main", gitsrctest.Files(map[string]string{
			"Makefile": "all:\n\techo started; test -e /go/src/git.test/fast || sleep 8; echo x > out\n"}))
		data := t.TempDir()
		s := newServer(t, engine, data, host, "--grace", "7s")
		id := s.post("/git.test/me/app/linux/amd64/main", "")
		until(t, "the build runs", func() bool {
			return strings.Contains(string(s.do(http.MethodGet, "/builds/"+string(id)+"/logs", "").body), `"started"`)
		})
		began := time.Now()
		if code := s.stop(); code != 0 {
			t.Errorf("exit status %d\n%s", code, s.stderr)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("it took %v to stop with a grace of 7s", took)
		}
		wantNothingLeft(t, data)
		s.start()
		s.want(id, "", build.Succeeded, "")
	})
}

// wantNothingLeft fails the test if an engine, the workspace or the machine
// still holds something of the server on the data directory, which has nothing
// to do any more.
func wantNothingLeft(t *testing.T, data string) {
	t.Helper()
	var left []string
	for deadline := time.Now().Add(settleTime); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if left = heldBy(t, data); len(left) == 0 {
			wantNone(t, data, data)
			return
		}
	}
	t.Errorf("left after %v: %q", settleTime, left)
}

// heldBy lists the workspaces and the containers of the server on data.
func heldBy(t *testing.T, data string) []string {
	held, _ := filepath.Glob(filepath.Join(data, "workspace", "*"))
	for _, list := range [][]string{
		{"ctr", "-n", "cargo", "containers", "ls", "-q", "labels.\"cargo.owner\"==\"" + owner(data) + "\""},
		{"docker", "ps", "-aq", "--filter", "label=io.github.monochromegane.cargo.owner=" + owner(data)},
	} {
		out, _ := exec.CommandContext(t.Context(), list[0], list[1:]...).Output() // an engine that is not there holds nothing
		held = append(held, strings.Fields(string(out))...)
	}
	return held
}
