package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	socketName = "socket"

	// maxGuests bounds the connections of other processes on this machine: they
	// are commands of an operator.
	maxGuests = 16

	// maxSocketPath is what the kernel takes for the address of a socket.
	maxSocketPath = 107
)

// A porch lets other processes of this user talk to the embedded server, by a
// socket in the queue's directory.
type porch struct {
	listener net.Listener
	server   nats.InProcessConnProvider
	guests   chan struct{} // has room for each

	mu    sync.Mutex
	conns map[net.Conn]bool
	done  sync.WaitGroup
}

func openPorch(dir string, server nats.InProcessConnProvider) (*porch, error) {
	path := filepath.Join(dir, socketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err // whoever made it is dead: the directory is locked
	}
	address, done, err := socketAddress(path)
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: address, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // by an address that may be no more
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	p := &porch{listener: l, server: server, guests: make(chan struct{}, maxGuests), conns: map[net.Conn]bool{}}
	p.done.Go(p.receive)
	return p, nil
}

// socketAddress is how to name path to the kernel, until done is called.
func socketAddress(path string) (address string, done func(), err error) {
	if len(path) <= maxSocketPath {
		return path, func() {}, nil
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), func() { _ = dir.Close() }, nil
}

// close ends all connections and waits for them.
func (p *porch) close(dir string) {
	_ = p.listener.Close()
	_ = os.Remove(filepath.Join(dir, socketName))
	p.mu.Lock()
	for c := range p.conns {
		_ = c.Close()
	}
	p.conns = nil
	p.mu.Unlock()
	p.done.Wait()
}

func (p *porch) receive() {
	for {
		guest, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of file descriptors; it passes
			time.Sleep(firstPause)
			continue
		}
		select {
		case p.guests <- struct{}{}:
			p.done.Go(func() {
				defer func() { <-p.guests }()
				p.serve(guest)
			})
		default:
			_ = guest.Close()
		}
	}
}

func (p *porch) serve(guest net.Conn) {
	defer guest.Close()
	inside, err := p.server.InProcessConn()
	if err != nil {
		return
	}
	defer inside.Close()
	if !p.enter(guest) {
		return
	}
	defer p.leave(guest)
	var both sync.WaitGroup
	both.Go(func() { pipe(inside, guest) })
	both.Go(func() { pipe(guest, inside) })
	both.Wait()
}

// pipe copies until either side ends, and then ends both.
func pipe(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	_, _ = to.Close(), from.Close()
}

func (p *porch) enter(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conns == nil {
		return false
	}
	p.conns[c] = true
	return true
}

func (p *porch) leave(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// A socketDialer connects to a porch, whatever address it is asked for.
type socketDialer string

func (path socketDialer) Dial(_, _ string) (net.Conn, error) {
	address, done, err := socketAddress(string(path))
	if err != nil {
		return nil, err
	}
	defer done()
	d := net.Dialer{Timeout: dialTimeout}
	return d.DialContext(context.Background(), "unix", address) // the library gives no context
}

// Dial opens the queue that another process on this machine has open, through
// the file "socket" in its directory. It takes nothing back from workers, mends
// nothing and makes nothing; Recover does nothing. o.Dir and o.Cluster do not matter.
func Dial(ctx context.Context, socketPath string, o Options) (*Queue, error) {
	q, err := newQueue(ctx, o)
	if err != nil {
		return nil, err
	}
	q.store = newStore(q.log)
	q.store.guest = true
	if err = q.store.knock(ctx, socketPath); err != nil {
		_ = q.store.close()
	}
	return q.opened(ctx, socketPath, err)
}

func (s *store) knock(ctx context.Context, socketPath string) error {
	conn, err := socketDialer(socketPath).Dial("", "")
	if err != nil {
		return fmt.Errorf("%w; cargo serve must be running with this data directory", err)
	}
	_ = conn.Close()
	if err := s.connect("nats://127.0.0.1", nats.SetCustomDialer(socketDialer(socketPath)), nats.Timeout(dialTimeout)); err != nil {
		return fmt.Errorf("%w; too many commands may be at it already: try again", err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return s.findStreams(ctx)
}
