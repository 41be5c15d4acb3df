package queue_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/monochromegane/cargo/queue"
)

// A cluster is three NATS servers on this machine.
type cluster struct {
	nodes []*node
	urls  []string
}

type node struct {
	name, config, url string
	cmd               *exec.Cmd
}

// natsServer skips the test if there is no nats-server, unless it is required.
func natsServer(t testing.TB) string {
	t.Helper()
	if path, err := filepath.Abs("../bin/nats-server"); err == nil {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	needs(t, "nats-server")
	return "nats-server"
}

// newCluster writes the configuration of n servers below dir, each with more
// lines if there are any, and starts them.
func newCluster(t testing.TB, dir string, n int, more ...string) *cluster {
	t.Helper()
	c := &cluster{}
	ports := freePorts(t, 2*n)
	var routes []string
	for i := range n {
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", ports[n+i]))
	}
	for i := range n {
		nd := &node{name: fmt.Sprint("n", i), config: filepath.Join(dir, fmt.Sprint("n", i, ".conf")), url: fmt.Sprintf("nats://127.0.0.1:%d", ports[i])}
		config := fmt.Sprintf("server_name: n%d\nlisten: 127.0.0.1:%d\njetstream { store_dir: %q, sync_interval: always }\n", i, ports[i], filepath.Join(dir, nd.name))
		if n > 1 {
			config += fmt.Sprintf("cluster { name: c, listen: 127.0.0.1:%d, routes: [%s] }\n", ports[n+i], strings.Join(routes, ", "))
		}
		config += strings.Join(more, "\n")
		if err := os.WriteFile(nd.config, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		c.nodes, c.urls = append(c.nodes, nd), append(c.urls, nd.url)
		nd.start(t)
	}
	return c
}

func freePorts(t testing.TB, n int) (ports []int) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

func (n *node) start(t testing.TB) {
	t.Helper()
	n.cmd = exec.Command(natsServer(t), "-c", n.config, "-l", n.config+".log")
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

// kill ends the server as a power switch would.
func (n *node) kill() {
	_ = n.cmd.Process.Kill()
	_ = n.cmd.Wait()
}

func (c *cluster) kill() {
	for _, n := range c.nodes {
		n.kill()
	}
}

func ownCluster(t *testing.T) *cluster {
	c := newCluster(t, t.TempDir(), 3)
	t.Cleanup(c.kill)
	return c
}

// leader is the server that leads a stream.
func (c *cluster) leader(t *testing.T, stream string) *node {
	t.Helper()
	nc, err := nats.Connect(strings.Join(c.urls, ","))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	for ctx := within(t); ; time.Sleep(50 * time.Millisecond) {
		once, cancel := context.WithTimeout(ctx, 2*time.Second)
		s, err := js.Stream(once, stream)
		cancel()
		if err == nil {
			for _, n := range c.nodes {
				if n.name == s.CachedInfo().Cluster.Leader {
					return n
				}
			}
		}
		if ctx.Err() != nil {
			t.Fatalf("no leader of %s: %v", stream, err)
		}
	}
}

// shared is the cluster that most tests use, each with names of its own.
var shared struct {
	once sync.Once
	dir  string
	*cluster
}

func sharedCluster(t testing.TB) *cluster {
	t.Helper()
	natsServer(t)
	shared.once.Do(func() {
		var err error
		if shared.dir, err = os.MkdirTemp("", "cargo-queue-cluster-*"); err != nil { //nolint:usetesting // outlives this test
			t.Fatal(err)
		}
		shared.cluster = newCluster(t, shared.dir, 3)
	})
	if shared.cluster == nil {
		t.Fatal("no cluster")
	}
	return shared.cluster
}

func closeShared() {
	if shared.cluster != nil {
		shared.kill()
	}
	if shared.dir != "" {
		_ = os.RemoveAll(shared.dir)
	}
}

func (c *cluster) options(prefix string) *queue.Cluster {
	return &queue.Cluster{URLs: c.urls, Prefix: prefix}
}

// openSoon opens a queue on a cluster that is just coming up.
func openSoon(ctx context.Context, o queue.Options) (q *queue.Queue, err error) {
	for {
		if q, err = queue.Open(ctx, o); err == nil || ctx.Err() != nil {
			return q, err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// prefixOf makes names of a directory's, so that a test which opens a
// directory again finds the same queue.
func prefixOf(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return "t" + hex.EncodeToString(sum[:6]) + "-"
}

// What holds on an embedded server holds on a cluster.
func TestOnCluster(t *testing.T) {
	sharedCluster(t)
	for _, c := range []struct {
		name string
		test func(*testing.T)
	}{
		{"LifeOfABuild", TestLifeOfABuild},
		{"UnknownBuild", TestUnknownBuild},
		{"FiftyEqualSubmitsMakeOneBuild", TestFiftyEqualSubmitsMakeOneBuild},
		{"SubmitAgainWithTheSameID", TestSubmitAgainWithTheSameID},
		{"Full", TestFull},
		{"ClaimsAreFirstInFirstOut", TestClaimsAreFirstInFirstOut},
		{"ConcurrentClaimsNeverShareABuild", TestConcurrentClaimsNeverShareABuild},
		{"ClaimWaitsForASubmit", TestClaimWaitsForASubmit},
		{"Cancel", TestCancel},
		{"RecoverLeavesClaimsOfThisProcess", TestRecoverLeavesClaimsOfThisProcess},
		{"WorkerDiesThreeTimes", TestWorkerDiesThreeTimes},
		{"LeaseOfAnotherWorkerRunsOut", TestLeaseOfAnotherWorkerRunsOut},
		{"CloseEndsWaitsAndClaims", TestCloseEndsWaitsAndClaims},
		{"List", TestList},
		{"RestartKeepsEverything", TestRestartKeepsEverything},
		{"TurnsGoRound", TestTurnsGoRound},
		{"RunningBuildsCount", TestRunningBuildsCount},
		{"CallerLimit", TestCallerLimit},
		{"CallerLimitOfSubmitsAtOnce", TestCallerLimitOfSubmitsAtOnce},
	} {
		t.Run(c.name, c.test)
	}
}
