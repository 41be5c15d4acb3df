package modproxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"
)

// Limits bound what one build may ask for. Zero means the default.
type Limits struct {
	Requests  int   // blocked ones count too
	Bytes     int64 // of files served
	PathBytes int64 // of all paths that passed the filter: names asked for are a way out for data
	Conns     int   // connections at once; more wait to be accepted
}

// DefaultLimits are several times what the largest Go programs ask for.
var DefaultLimits = Limits{Requests: 20_000, Bytes: 8 << 30, PathBytes: 1 << 20, Conns: 64}

func (l Limits) or(d Limits) Limits {
	return Limits{
		Requests:  cmp.Or(l.Requests, d.Requests),
		Bytes:     cmp.Or(l.Bytes, d.Bytes),
		PathBytes: cmp.Or(l.PathBytes, d.PathBytes),
		Conns:     cmp.Or(l.Conns, d.Conns),
	}
}

// A Door is one build's way to the module proxy, over plain HTTP/1.1. Its
// methods are safe for concurrent use.
type Door struct {
	proxy  *Proxy
	limits Limits
	server *http.Server
	ctx    context.Context // of all requests, ended by Close
	cancel context.CancelFunc

	mu       sync.Mutex
	closed   bool
	handlers sync.WaitGroup
	stats    Stats
	path     int64
	spent    bool // a file was refused: there were too many bytes
	// The first since Fault was called last, of this server and of upstreams.
	broken, silent *DoorError
}

// Stats is what went through a Door.
type Stats struct {
	Requests int
	Bytes    int64 // of files served
	Blocked  int   // requests that the filter or a limit refused
}

// Timeouts of a connection, which is local. There is none for an answer: it
// may have to be fetched first, and it ends with the build.
const (
	readTimeout = 10 * time.Second
	idleTimeout = time.Minute
)

// Door returns a new Door, which the caller closes.
func (p *Proxy) Door(l Limits) *Door {
	d := &Door{proxy: p, limits: l.or(DefaultLimits)}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.server = &http.Server{
		Handler:           d,
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return d.ctx },
		ErrorLog:          slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
	return d
}

// Serve answers on l until Close. It closes l and returns http.ErrServerClosed
// after Close, or else the error of l.
func (d *Door) Serve(l net.Listener) error {
	return d.server.Serve(&boundListener{Listener: l, free: make(chan struct{}, d.limits.Conns), closed: d.ctx.Done()})
}

// Close ends all requests and returns when their handlers have. Fetches that
// another build waits for go on. It may be called again.
func (d *Door) Close() error {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.cancel()
	err := d.server.Close()
	d.handlers.Wait()
	return err
}

// Stats says what went through so far; after Close, in all.
func (d *Door) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stats
}

// Usage is Stats for a log line.
func (d *Door) Usage() []slog.Attr {
	s := d.Stats()
	return []slog.Attr{slog.Int("requests", s.Requests), slog.Int64("bytes", s.Bytes), slog.Int("blocked", s.Blocked)}
}

// Fault returns, and forgets, the first [DoorError] since it was called last, one
// of this server's rather than an upstream's; nil if there was none.
func (d *Door) Fault() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := cmp.Or(d.broken, d.silent)
	d.broken, d.silent = nil, nil
	if f == nil {
		return nil
	}
	return f
}

// blame notes what kept the door from answering, if that is a DoorError.
func (d *Door) blame(q request, err error) {
	f := &DoorError{Module: cmp.Or(q.path, q.name), Err: err}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case own(err):
		d.broken = cmp.Or(d.broken, f)
	case errors.Is(err, ErrUnavailable):
		d.silent = cmp.Or(d.silent, f)
	}
}

// ServeHTTP answers one request.
func (d *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !d.enter() {
		panic(http.ErrAbortHandler)
	}
	defer d.handlers.Done()
	q, err := admit(r, d.proxy.sumdb.name)
	if err != nil {
		d.refuse(w, http.StatusForbidden, err)
		return
	}
	if err := d.count(int64(len(r.URL.Path))); err != nil {
		d.refuse(w, http.StatusTooManyRequests, err)
		return
	}
	if q.kind == kindSupported {
		return
	}
	file, from, release, err := d.open(r.Context(), q)
	if err != nil {
		if r.Context().Err() == nil {
			d.proxy.metrics.ModulesServed(from, 1)
		}
		d.fail(w, r, q, err)
		return
	}
	defer release()
	if d.send(w, r, q, file.File) {
		d.proxy.metrics.ModulesServed(from, 1)
	}
}

const (
	// openAttempts is how often a file is asked for where this server has too
	// many files open.
	openAttempts = 4
	// openPause comes before the second of them; it doubles with each.
	openPause = 250 * time.Millisecond
)

// open is Proxy.open, which tries again where it may help to wait.
func (d *Door) open(ctx context.Context, q request) (file *answer, from string, release func(), err error) {
	for n := range openAttempts {
		if n > 0 {
			d.proxy.client.CloseIdleConnections()
			select {
			case <-time.After(openPause << (n - 1)):
			case <-ctx.Done():
			}
		}
		file, from, release, err = d.proxy.open(ctx, q)
		if !scarce(err) || ctx.Err() != nil {
			break
		}
	}
	return file, from, release, err
}

// send writes all of file, unless that is more than the build may have. Ranges
// and conditions are for clients that keep half of a file, which the go command
// does not.
func (d *Door) send(w http.ResponseWriter, r *http.Request, q request, file *os.File) bool {
	fi, err := file.Stat()
	if err != nil {
		d.fail(w, r, q, cacheError(err))
		return false
	}
	if err := d.countBytes(fi.Size()); err != nil {
		d.refuse(w, http.StatusTooManyRequests, err)
		return false
	}
	w.Header().Set("Content-Type", contentTypes[q.kind])
	w.Header().Set("Content-Length", strconv.FormatInt(fi.Size(), 10))
	if r.Method == http.MethodGet {
		_, err = io.Copy(w, io.NewSectionReader(file, 0, fi.Size())) // the client sees what is missing
		if _, disk := errors.AsType[*fs.PathError](err); disk {
			d.proxy.log.Error("cannot read a module", "file", q.name, "err", err)
			d.blame(q, cacheError(err))
		}
	}
	return true
}

const text = "text/plain; charset=utf-8"

var contentTypes = map[kind]string{
	kindList: text, kindMod: text, kindSigned: text, kindLookup: text,
	kindLatest: "application/json", kindQuery: "application/json", kindInfo: "application/json",
	kindZip: "application/zip", kindTile: "application/octet-stream",
}

// enter counts a request in, unless the door is closed.
func (d *Door) enter() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return false
	}
	d.handlers.Add(1)
	d.stats.Requests++
	return true
}

func (d *Door) count(path int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stats.Requests > d.limits.Requests {
		return fmt.Errorf("this build has made more than %d requests for modules, which is its limit", d.limits.Requests)
	}
	if d.spent { // or the server would go on fetching what it then refuses
		return d.tooManyBytes()
	}
	if d.path+path > d.limits.PathBytes {
		return fmt.Errorf("the names of the modules that this build has asked for are longer than %d bytes in all, which is its limit", d.limits.PathBytes)
	}
	d.path += path
	return nil
}

func (d *Door) countBytes(n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stats.Bytes+n > d.limits.Bytes {
		d.spent = true
		return d.tooManyBytes()
	}
	d.stats.Bytes += n
	return nil
}

func (d *Door) tooManyBytes() error {
	return fmt.Errorf("this build has fetched more than %d bytes of modules, which is its limit", d.limits.Bytes)
}

func (d *Door) refuse(w http.ResponseWriter, code int, err error) {
	d.mu.Lock()
	d.stats.Blocked++
	d.mu.Unlock()
	d.proxy.metrics.ModulesServed(fromRefused, 1)
	say(w, code, err.Error())
}

// fail answers for a file that could not be had. The go command shows the text
// to whoever reads the build's log: it names no host of this server's.
func (d *Door) fail(w http.ResponseWriter, r *http.Request, q request, err error) {
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // to return would be an empty answer
	}
	d.blame(q, err) // before the answer, which may end the build
	if own(err) {
		d.proxy.log.Error("cannot hand out a module", "file", q.name, "err", err)
		say(w, http.StatusInternalServerError, "this server cannot hand out modules now; its own log says why")
		return
	}
	if status, ok := errors.AsType[*statusError](err); ok && status.code != http.StatusUnauthorized && status.code != http.StatusProxyAuthRequired {
		say(w, status.code, cmp.Or(status.text, http.StatusText(status.code)))
		return
	}
	switch {
	case errors.Is(err, errUnverified):
		d.proxy.log.Warn("module refused", "module", q.path+"@"+q.version, "err", err)
		say(w, http.StatusBadGateway, q.path+"@"+q.version+" was not confirmed by this server's checksum database, so it is not passed on")
	case errors.Is(err, fs.ErrNotExist):
		say(w, http.StatusNotFound, cmp.Or(err.Error(), "not found"))
	default:
		d.proxy.log.Warn("module proxy does not answer", "file", q.name, "err", err)
		say(w, http.StatusBadGateway, "this server's module proxy has no answer to "+q.name+" now; the server's own log says why")
	}
}

// say answers with a sentence, in the form in which the go command repeats it.
func say(w http.ResponseWriter, code int, sentence string) {
	w.Header().Set("Content-Type", text)
	w.WriteHeader(code)
	_, _ = io.WriteString(w, sentence+"\n")
}

// A boundListener accepts no more connections than free has room for.
type boundListener struct {
	net.Listener
	free   chan struct{}
	closed <-chan struct{}
}

func (l *boundListener) Accept() (net.Conn, error) {
	select {
	case l.free <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &boundConn{Conn: c, done: sync.OnceFunc(func() { <-l.free })}, nil
}

type boundConn struct {
	net.Conn
	done func()
}

func (c *boundConn) Close() error {
	defer c.done()
	return c.Conn.Close()
}
