package main

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

// The directories that the programs of former releases left when they were
// killed are taken over: what had ended is remembered and can be downloaded,
// what waited or ran is built.
func TestFormerData(t *testing.T) {
	for _, release := range []string{"db9b631", "9d6b802"} {
		t.Run(release, func(t *testing.T) {
			conn, err := net.Dial("unix", defaultContainerd)
			require(t, "containerd", err)
			_ = conn.Close()
			f := unpackFormer(t, release)
			s := newServer(t, "containerd", f.dir, formerHost(t), "--record-retention", "876000h", "--log-retention", "876000h")
			for _, b := range f.builds {
				f.check(s, b)
			}
			f.checkFsck(t)
			s.stop()
			f.checkFsck(t)
		})
	}
}

// After the loss of the queue, the records of what is stored come back.
func TestRebuiltRecords(t *testing.T) {
	f := unpackFormer(t, "9d6b802")
	if err := os.RemoveAll(filepath.Join(f.dir, "queue")); err != nil {
		t.Fatal(err)
	}
	if out, err := cargo(t, "fsck", "--data-dir", f.dir); err == nil || !strings.Contains(out, "no queue in it") {
		t.Errorf("fsck without a queue: %v\n%s", err, out)
	}
	out, err := cargo(t, "fsck", "--rebuild-records", "--data-dir", f.dir)
	if err != nil || strings.Count(out, "record made: ") != 3 {
		t.Errorf("rebuild: %v\n%s", err, out)
	}
	f.checkFsck(t)

	for _, name := range []string{"blobs", "meta"} { // what is wrong is found, and said
		files, err := filepath.Glob(filepath.Join(f.dir, "storage", name, "*"))
		if err != nil || len(files) == 0 {
			t.Fatal(files, err)
		}
		text, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		text[len(text)/2] ^= 1
		if err := os.WriteFile(files[0], text, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := cargo(t, "fsck", "--data-dir", f.dir); err == nil {
			t.Errorf("fsck finds nothing wrong with a changed file of %s:\n%s", name, out)
		}
		text[len(text)/2] ^= 1
		if err := os.WriteFile(files[0], text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f.checkFsck(t)
}

// A former is a data directory of a former release.
type former struct {
	dir    string
	builds []formerBuild
}

type formerBuild struct {
	ID       build.ID     `json:"id"`
	Repo     string       `json:"repo"`
	Platform string       `json:"platform"`
	State    build.State  `json:"state"`
	Reason   build.Reason `json:"reason"`
	Artifact string       `json:"artifact"`
}

const formerToken = "made-up-token-of-a-fixture"

func unpackFormer(t *testing.T, release string) former {
	t.Helper()
	text, err := os.ReadFile("testdata/data/contents.json")
	if err != nil {
		t.Fatal(err)
	}
	var contents map[string]struct{ Builds []formerBuild }
	if err := json.Unmarshal(text, &contents); err != nil {
		t.Fatal(err)
	}
	f := former{dir: t.TempDir(), builds: contents[release].Builds}
	if out, err := exec.CommandContext(t.Context(), "tar", "xzf", "testdata/data/"+release+".tar.gz", "-C", f.dir, "--no-same-owner").CombinedOutput(); err != nil {
		t.Fatalf("unpack: %v\n%s", err, out)
	}
	return f
}

// formerHost has the repositories of the builds, at the same commits.
func formerHost(t *testing.T) *gitsrctest.Host {
	t.Helper()
	host := gitsrctest.New(t)
	slow := "all:\n\techo started; test -e ../go; sleep 8; echo x > out.txt\n"
	for name, makefile := range map[string]string{
		"hello":    "all:\n\tseq 1 20000 > numbers.txt\n",
		"made":     "all:\n\techo made; echo x > out.txt\n",
		"private":  "all:\n\techo private; echo x > out.txt\n",
		"nothing":  "all:\n\techo nothing to do\n",
		"canceled": slow, "lost": slow, "running": slow,
	} {
		host.Repository("me/"+name).Commit("main", gitsrctest.Files(map[string]string{"Makefile": makefile}))
	}
	host.Repository("me/broken").Commit("main", gitsrctest.Files(map[string]string{
		"go.mod": "module git.test/me/broken\n\ngo 1.22\n", "main.go": "package main\n\nfunc main() { undefined() }\n",
	}))
	host.Protect("me/private", formerToken)
	return host
}

func (f former) check(s *server, b formerBuild) {
	s.t.Helper()
	token := ""
	if b.Repo == "private" {
		token = formerToken
	}
	path := "/git.test/me/" + b.Repo + "/" + b.Platform + "/main"
	if !b.State.Ended() {
		s.want(b.ID, token, build.Succeeded, "")
		s.download(path, token)
		return
	}
	now, log := s.want(b.ID, token, b.State, b.Reason)
	if log == "" {
		s.t.Errorf("the log of %s (%s) is empty", b.ID, b.Repo)
	}
	if b.State != build.Succeeded {
		return
	}
	r := s.do(http.MethodGet, path, token)
	if r.StatusCode != http.StatusOK || r.Header.Get("ETag") != `"`+b.Artifact+`"` || now.Artifact.SHA256 != b.Artifact {
		s.t.Errorf("GET %s = %s, ETag %s, record %s, want %s", path, r.Status, r.Header.Get("ETag"), now.Artifact.SHA256, b.Artifact)
	}
}

// checkFsck fails the test if something is wrong with the directory.
func (f former) checkFsck(t *testing.T) {
	t.Helper()
	if out, err := cargo(t, "fsck", "--data-dir", f.dir); err != nil {
		t.Errorf("fsck: %v\n%s", err, out)
	}
}

// cargo runs the program to its end and returns what it said.
func cargo(t *testing.T, args ...string) (string, error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := &exec.Cmd{Path: self, Args: append([]string{"cargo"}, args...), Stdout: &out, Stderr: &out}
	err = cmd.Run()
	return out.String(), err
}
