package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"golang.org/x/sys/unix"
)

const (
	startTimeout = 30 * time.Second

	// What a probe writes: as much room as a server needs to start and take
	// some builds, so that a nearly full disk is not tried again and again.
	probeBytes = 256 << 10

	firstPause = 250 * time.Millisecond // before a broken server is tried anew
	lastPause  = 4 * time.Second
)

// errHealing is what a connection is told while there is no server.
var errHealing = errors.New("the embedded server is being started again")

// An embedded is the server in this process. A write that fails makes NATS
// refuse all later ones until the server is started again; then that is what
// happens here, as soon as the directory can be written. Connections go to the
// server that is there (nats.InProcessConnProvider), so they outlive each.
type embedded struct {
	dir  string
	lock *os.File
	log  *slog.Logger

	mu     sync.Mutex
	server *server.Server // nil while there is none
	said   *serverLog     // what it complains of
	why    string         // the last one cannot go on
	healed chan struct{}  // closed and replaced when there is one again

	failed  chan struct{} // has room for one: look at trouble
	ctx     context.Context
	stop    context.CancelFunc
	healing sync.WaitGroup
}

func openEmbedded(dir string, log *slog.Logger) (*embedded, error) {
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	e := &embedded{dir: dir, lock: lock, log: log, failed: make(chan struct{}, 1), healed: make(chan struct{})}
	if err := e.start(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	e.ctx, e.stop = context.WithCancel(context.Background())
	e.healing.Go(e.heal)
	return e, nil
}

func (e *embedded) close() error {
	e.stop()
	e.healing.Wait()
	e.end("closed")
	return e.lock.Close()
}

// start makes a server on the directory.
func (e *embedded) start() error {
	said := &serverLog{log: e.log, failed: e.failed}
	s, err := server.NewServer(&server.Options{
		ServerName:             "cargo",
		DontListen:             true,
		NoSigs:                 true,
		NoSystemAccount:        true,
		DisableJetStreamBanner: true,
		JetStream:              true,
		StoreDir:               e.dir,
		SyncAlways:             true, // an acknowledged write has been fsynced
		JetStreamMaxStore:      4 << 30,
		JetStreamMaxMemory:     16 << 20,
		WriteDeadline:          time.Minute, // of the in-process pipe, on a busy machine
	})
	if err != nil {
		return fmt.Errorf("configure the store: %w", err)
	}
	s.SetLoggerV2(said, false, false, false)
	s.Start()
	ready := said.fatal.Load() == nil && s.ReadyForConnections(startTimeout)
	if why := said.fatal.Load(); why != nil || !ready {
		s.Shutdown()
		s.WaitForShutdown()
		if why == nil {
			return fmt.Errorf("start the store: not ready after %s", startTimeout)
		}
		return fmt.Errorf("start the store: %s", *why)
	}
	e.mu.Lock()
	e.server, e.said = s, said
	e.mu.Unlock()
	return nil
}

// end takes the server away and waits until it has let go of the directory.
func (e *embedded) end(why string) {
	e.mu.Lock()
	s := e.server
	e.server, e.why = nil, why
	e.mu.Unlock()
	if s != nil {
		s.Shutdown()
		s.WaitForShutdown()
	}
}

// trouble is why nothing can be written, or "".
func (e *embedded) trouble() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.server == nil {
		return e.why
	}
	if why := e.said.fatal.Load(); why != nil {
		return *why
	}
	if !e.server.JetStreamEnabled() { // of some failures it says no more than a warning
		return "the store has switched itself off"
	}
	return ""
}

// InProcessConn connects to the server that is there.
func (e *embedded) InProcessConn() (net.Conn, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.server == nil {
		return nil, errHealing
	}
	return e.server.InProcessConn()
}

// heal starts the server again whenever it has failed, for as long as that takes.
func (e *embedded) heal() {
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for {
		select {
		case <-e.failed:
		case <-look.C:
		case <-e.ctx.Done():
			return
		}
		why := e.trouble()
		if why == "" {
			continue
		}
		e.log.Error("the queue cannot be written; it is started again as soon as it can be", "dir", e.dir, "why", why)
		e.end(why)
		if !e.again() {
			return
		}
		e.log.Info("the queue can be written again", "dir", e.dir)
	}
}

// again starts a server as soon as the directory can be written; false if the
// queue is closed before.
func (e *embedded) again() bool {
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		select {
		case <-time.After(pause):
		case <-e.ctx.Done():
			return false
		}
		err := probe(e.dir)
		if err == nil {
			err = e.start()
		}
		if err == nil {
			e.mu.Lock()
			close(e.healed)
			e.healed = make(chan struct{})
			e.mu.Unlock()
			return true
		}
		e.log.Debug("the queue cannot be written yet", "dir", e.dir, "err", err)
	}
}

// whole is closed once the server has been started again.
func (e *embedded) whole() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.healed
}

// lockDir makes dir and takes it for this process until the file is closed.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory: %w; choose one that this user can write", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w; the directory must be writable by this user", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrInUse
		}
		return nil, fmt.Errorf("lock the directory: %w", err)
	}
	if err := probe(dir); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%w; the directory must be writable and its disk must have room", err)
	}
	return f, nil
}

// probe writes and syncs a file: a full disk is better found now.
func probe(dir string) error {
	f, err := os.CreateTemp(dir, "probe-*")
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, probeBytes))
	return errors.Join(err, f.Sync(), f.Close(), os.Remove(f.Name()))
}

// A serverLog passes on what the embedded server complains of.
type serverLog struct {
	log    *slog.Logger
	fatal  atomic.Pointer[string] // why the server cannot go on
	failed chan<- struct{}
}

func (l *serverLog) Noticef(format string, v ...any) {
	l.log.Debug("queue store", "notice", fmt.Sprintf(format, v...))
}

func (l *serverLog) Warnf(format string, v ...any) {
	l.log.Warn("queue store", "warning", fmt.Sprintf(format, v...))
}

// Errorf also listens for a write that failed: the server then refuses every
// later write, without an answer, and says so nowhere else.
func (l *serverLog) Errorf(format string, v ...any) {
	why := fmt.Sprintf(format, v...)
	if strings.Contains(strings.ToLower(why), "critical write error") {
		l.fail(why)
	}
	l.log.Error("queue store", "err", why)
}

func (l *serverLog) Fatalf(format string, v ...any) {
	why := fmt.Sprintf(format, v...)
	l.fail(why)
	l.log.Error("queue store", "err", why)
}

func (l *serverLog) fail(why string) {
	l.fatal.CompareAndSwap(nil, &why)
	select {
	case l.failed <- struct{}{}:
	default:
	}
}

func (l *serverLog) Debugf(string, ...any) {}
func (l *serverLog) Tracef(string, ...any) {}
