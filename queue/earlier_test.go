package queue_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/queue"
)

// earlierData is where data directories of earlier programs are kept.
const earlierData = "../cmd/cargo/testdata/data"

// An earlier is what is known of such a directory.
type earlier struct {
	Worker string
	Builds []earlierBuild
}

type earlierBuild struct {
	ID       build.ID
	Repo     string
	Platform string
	State    build.State
	Reason   build.Reason
	Public   bool
	Attempt  int
	Artifact string
	Sealed   []byte
}

func (e earlier) find(t *testing.T, repo string, s build.State) earlierBuild {
	t.Helper()
	for _, b := range e.Builds {
		if b.Repo == repo && b.State == s {
			return b
		}
	}
	t.Fatalf("no %s build of %s", s, repo)
	return earlierBuild{}
}

// earlierQueues runs test on a copy of each.
func earlierQueues(t *testing.T, test func(t *testing.T, dir string, e earlier)) {
	data, err := os.ReadFile(filepath.Join(earlierData, "contents.json"))
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]earlier
	if err := json.Unmarshal(data, &all); err != nil || len(all) != 2 {
		t.Fatal(len(all), err)
	}
	for name, e := range all {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			tar := exec.CommandContext(t.Context(), "tar", "-xzf", filepath.Join(earlierData, name+".tar.gz"), "-C", dir)
			if out, err := tar.CombinedOutput(); err != nil {
				t.Fatalf("%v %s", err, out)
			}
			test(t, filepath.Join(dir, "queue"), e)
		})
	}
}

func TestRecordsOfEarlierPrograms(t *testing.T) {
	earlierQueues(t, func(t *testing.T, dir string, e earlier) {
		q := open(t, queue.Options{Dir: dir, Worker: "another"})
		known := func(b build.Build) earlierBuild {
			got := earlierBuild{
				ID: b.ID, Repo: b.Name, Platform: b.Platform(), State: b.State, Reason: b.Reason, Public: b.Public, Attempt: b.Attempt,
			}
			if b.Artifact != nil {
				got.Artifact = b.Artifact.SHA256
			}
			if b.AcceptedAt.IsZero() || b.Remote != "git.test" || b.Owner != "me" || b.RefName != "refs/heads/main" || b.State.Ended() && b.FinishedAt.IsZero() {
				t.Errorf("%s: %+v", b.Name, b)
			}
			return got
		}
		listed, more, err := q.List(t.Context(), queue.Filter{})
		if err != nil || more || len(listed) != len(e.Builds) {
			t.Fatalf("List: %d builds, %v, %v; want %d", len(listed), more, err, len(e.Builds))
		}
		for i, want := range e.Builds {
			want.Sealed = nil
			if diff := cmp.Diff(want, known(get(t, q, want.ID))); diff != "" {
				t.Errorf("Get (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(want, known(listed[len(listed)-1-i])); diff != "" {
				t.Errorf("List (-want +got):\n%s", diff)
			}
		}
	})
}

// The builds that lived go on where the killed program left them.
func TestBuildsOfEarlierPrograms(t *testing.T) {
	earlierQueues(t, func(t *testing.T, dir string, e earlier) {
		o := queue.Options{Dir: dir, Worker: e.Worker}
		q := open(t, o)
		if n, err := q.Recover(t.Context()); err != nil || n != 1 {
			t.Fatalf("Recover = %d, %v", n, err)
		}
		private, running := e.find(t, "private", build.Queued), e.find(t, "running", build.Running)
		for range 3 {
			c := claim(t, q)
			switch b := c.Build(); b.ID {
			case private.ID:
				if diff := cmp.Diff(private.Sealed, c.Sealed()); diff != "" || len(private.Sealed) == 0 {
					t.Errorf("its token (-want +got):\n%s", diff)
				}
			case running.ID:
				if b.Attempt != running.Attempt+1 {
					t.Errorf("claimed again: attempt %d after %d", b.Attempt, running.Attempt)
				}
			}
			finish(t, c, build.Succeeded)
		}
		idle(t, q)
		q = reopen(t, q, o)
		for _, id := range []build.ID{private.ID, running.ID} {
			if b := get(t, q, id); b.State != build.Succeeded {
				t.Errorf("build %s is %s", id, b.State)
			}
		}
	})
}
