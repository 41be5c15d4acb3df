package main

import (
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

// A token is nowhere on any machine, whatever becomes of the build that it is for.
func TestTokenOnCluster(t *testing.T) {
	t.Parallel()
	conn, err := net.Dial("unix", defaultContainerd)
	require(t, "containerd", err)
	_ = conn.Close()
	_, _ = bin(t, "nats-server"), bin(t, "versitygw")
	if testing.Short() {
		t.Skip("it takes a quarter of a minute and more")
	}
	if !inHub(t) {
		return
	}
	l := newLoop(t, 0)
	s := newSite(t, l, 8*time.Second, 1, 1)
	api, worker := &server{t: t, url: s.servers[0].url}, s.workers[0]
	for name, makefile := range map[string]string{
		"made": "all:\n\techo x > out\n", "fails": "all:\n\texit 3\n", "canceled": "all:\n\tsleep 600\n", "lost": "all:\n\tsleep 600\n", "waits": "all:\n\tsleep 600\n",
	} {
		l.host.Repository("me/"+name).Commit("main", gitsrctest.Files(map[string]string{"Makefile": makefile}))
		l.host.Protect("me/"+name, l.token)
	}
	post := func(name string) build.ID { return api.post("/git.test/me/"+name+"/linux/amd64/main", l.token) }
	runs := func(id build.ID, attempt int) {
		until(t, "the build runs", func() bool {
			b := api.record(id, l.token)
			return b.State == build.Running && b.Attempt == attempt && worker.running()[id]
		})
	}
	nowhere := func(urls ...string) {
		t.Helper()
		wantInNoFile(t, s.dir, l.token)
		wantNoProcessSays(t, l.token)
		for _, url := range urls {
			if strings.Contains(string((&server{t: t, url: url}).do(http.MethodGet, "/metrics", "").body), l.token) {
				t.Errorf("the metrics of %s hold the token", url)
			}
		}
	}

	api.want(post("made"), l.token, build.Succeeded, "")
	api.want(post("fails"), l.token, build.Failed, build.ReasonExit)
	canceled := post("canceled")
	runs(canceled, 1)
	nowhere(api.url, "http://"+worker.address+":8080")
	api.do(http.MethodDelete, "/builds/"+string(canceled), l.token)
	api.want(canceled, l.token, build.Canceled, "")
	lost := post("lost")
	for attempt := range 3 {
		runs(lost, attempt+1)
		worker.end(syscall.SIGKILL)
		worker.start()
	}
	api.want(lost, l.token, build.Failed, build.ReasonLost)
	nowhere(api.url)
	worker.end(syscall.SIGKILL)
	waits := post("waits") // its token is in the queue now, sealed
	nowhere(api.url)
	if b := api.record(waits, l.token); b.State != build.Queued {
		t.Errorf("without a worker the build is %s", b.State)
	}
}
