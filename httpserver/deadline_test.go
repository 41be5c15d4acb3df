package httpserver_test

import (
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/monochromegane/cargo/httpserver"
)

// A client that stops reading is let go a minute later, though the server has
// no WriteTimeout; one that is slow but reads is not.
func TestStalledClient(t *testing.T) {
	for name, tc := range map[string]struct {
		pause time.Duration // of the client before each piece
		whole bool          // whether it gets all
	}{
		"stalled": {2 * time.Minute, false},
		"slow":    {10 * time.Second, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const pieces, size = 5, 64 << 10
				var writeErr error
				ended := make(chan struct{})
				ln := newPipeListener()
				server := &http.Server{Handler: httpserver.New(httpserver.Options{
					MetricsHandler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
						defer close(ended)
						for range pieces {
							if _, err := w.Write(make([]byte, size)); err != nil {
								writeErr = err
								return
							}
						}
					}),
				})}
				var wg sync.WaitGroup
				wg.Go(func() { _ = server.Serve(ln) })
				conn := ln.dial()
				if _, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
					t.Fatal(err)
				}
				wg.Go(func() {
					for buf := make([]byte, size/4); ; {
						time.Sleep(tc.pause)
						if _, err := io.ReadFull(conn, buf); err != nil {
							return
						}
					}
				})
				<-ended
				if (writeErr == nil) != tc.whole {
					t.Errorf("the handler's writes ended with %v", writeErr)
				}
				_ = conn.Close()
				_ = server.Close()
				wg.Wait()
			})
		})
	}
}

// A pipeListener is a network in memory, whose deadlines follow a test's clock.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) dial() net.Conn {
	client, server := net.Pipe()
	l.conns <- server
	return client
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error { close(l.done); return nil }

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }
