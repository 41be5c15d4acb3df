package main

import (
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/monochromegane/cargo/executor/sandbox"
	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

// A scene is a fixture about to be played.
type scene struct {
	*hostileRun
	t    *testing.T
	repo *gitsrctest.Repository
	tree fstest.MapFS // the scene's own
}

// scenes set up what a file cannot say, and return what is to be checked when
// the build has ended.
var scenes = map[string]func(*scene) (check func()){
	"door":            (*scene).listeners,
	"names-in-source": (*scene).manyNames,
	"other-platform":  (*scene).preparation,
	"probe":           (*scene).listeners,
	"tag-moves":       (*scene).movingTag,
}

// listeners adds to the tree where we listen: on the host's loopback, on an
// abstract socket and in a network namespace made for that. Nobody may come.
func (sc *scene) listeners() (check func()) {
	t := sc.t
	elsewhere := exec.CommandContext(t.Context(), "sleep", "1000")
	elsewhere.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := elsewhere.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = elsewhere.Process.Kill()
		_ = elsewhere.Wait()
	})
	abstract := "@cargo-hostile-" + owner(sc.data)
	var came atomic.Int64
	listen := func(ln net.Listener, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ln.Close() })
		go func() { // ends when the listener is closed
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				came.Add(1)
				_ = c.Close()
			}
		}()
		_, port, _ := net.SplitHostPort(ln.Addr().String())
		return port
	}
	host := listen(net.Listen("tcp", "127.0.0.1:0"))
	other := listen(sandbox.Listen(fmt.Sprintf("/proc/%d/ns/net", elsewhere.Process.Pid), "127.0.0.1:0"))
	listen(net.Listen("unix", abstract))
	sc.tree["targets.go"] = &fstest.MapFile{Mode: 0o644, Data: fmt.Appendf(nil, "package main\n\nconst (\n\thostPort = %s\n\totherPort = %s\n\tabstract = %q\n\tserver = %d\n)\n",
		host, other, abstract, sc.server.cmd.Process.Pid)}
	sc.tree["targets.sh"] = &fstest.MapFile{Mode: 0o644, Data: fmt.Appendf(nil, "host=%s other=%s\n", host, other)}
	return func() {
		if n := came.Load(); n > 0 {
			sc.t.Errorf("the build reached us %d times", n)
		}
	}
}

// manyNames adds 10 MB of file names to the tree.
func (sc *scene) manyNames() (check func()) {
	long := strings.Repeat("n", 240)
	empty := &fstest.MapFile{Mode: 0o644}
	deep := strings.Repeat(long+"/", 7)
	for i := range 5_200 {
		sc.tree[fmt.Sprintf("names/%s%s%06d", deep, long, i)] = empty
	}
	return func() {}
}

// preparation waits until a library is being prepared: the next honest build
// and the end of the server fall into that.
func (sc *scene) preparation() (check func()) {
	return func() {
		until(sc.t, "the library is being prepared", func() bool {
			return strings.Contains(sc.server.stderr.String(), `msg="preparing the standard library" platform=linux/arm64`)
		})
	}
}

// movingTag moves the tag after the request has resolved it and before the
// build fetches it.
func (sc *scene) movingTag() (check func()) {
	other := sc.repo.Commit("other", sc.tree)
	var listings atomic.Int64
	sc.host.Intercept(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/tag-moves.git/info/refs") && listings.Add(1) == 2 {
			sc.repo.Tag("v1.0.0", other)
		}
		return false
	})
	return func() { sc.host.Intercept(nil) }
}
