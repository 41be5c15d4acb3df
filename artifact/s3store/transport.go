package s3store

import (
	"context"
	"net"
	"net/http"
	"time"
)

const (
	dialTimeout   = 10 * time.Second
	headerTimeout = time.Minute // from the last byte of a request to the first of its answer

	// stall is how long a connection may take to accept or deliver anything at
	// all. What is slower than that is not slow but dead.
	stall = 30 * time.Second
)

// newTransport has a bound on every wait. It speaks HTTP/1.1: one upload that
// stalls must not hold up what shares its connection.
func newTransport() *http.Transport {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return impatientConn{c}, nil
		},
		TLSHandshakeTimeout:    dialTimeout,
		ResponseHeaderTimeout:  headerTimeout,
		IdleConnTimeout:        30 * time.Second,
		MaxIdleConns:           32,
		MaxIdleConnsPerHost:    32,
		MaxResponseHeaderBytes: 64 << 10,
		ReadBufferSize:         32 << 10,
		WriteBufferSize:        32 << 10,
		DisableCompression:     true, // archives are what they are
	}
}

// An impatientConn fails a write that makes no progress.
type impatientConn struct{ net.Conn }

func (c impatientConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(stall)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}
