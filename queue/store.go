package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sys/unix"
)

const (
	// endedBytes is what the records of ended builds may take on disk before
	// the oldest go: more than a million builds.
	endedBytes = 1 << 30

	// markerTTL is how long a purge marker stays in "live", so that each
	// observer learns of the purge.
	markerTTL = 10 * time.Minute

	startTimeout = 30 * time.Second
)

// A store is the embedded server and what is kept in it.
type store struct {
	lock   *os.File
	server *server.Server
	log    *serverLog
	conn   *nats.Conn
	live   jetstream.KeyValue // key digest -> record
	ended  once               // build id -> record
	tokens once               // build id -> sealed token
}

func openStore(ctx context.Context, o Options, log *slog.Logger) (_ *store, err error) {
	s := &store{}
	defer func() {
		if err != nil {
			_ = s.close()
		}
	}()
	if s.lock, err = lockDir(o.Dir); err != nil {
		return nil, err
	}
	s.log = &serverLog{log: log}
	s.server, err = server.NewServer(&server.Options{
		ServerName:             "cargo",
		DontListen:             true,
		NoSigs:                 true,
		NoSystemAccount:        true,
		DisableJetStreamBanner: true,
		JetStream:              true,
		StoreDir:               o.Dir,
		SyncAlways:             true, // an acknowledged write has been fsynced
		JetStreamMaxStore:      4 << 30,
		JetStreamMaxMemory:     16 << 20,
		WriteDeadline:          time.Minute, // of the in-process pipe, on a busy machine
	})
	if err != nil {
		return nil, fmt.Errorf("configure the store: %w", err)
	}
	s.server.SetLoggerV2(s.log, false, false, false)
	s.server.Start()
	if why := s.log.fatal.Load(); why != nil {
		return nil, fmt.Errorf("start the store: %s", *why)
	}
	if !s.server.ReadyForConnections(startTimeout) {
		return nil, fmt.Errorf("start the store: not ready after %s", startTimeout)
	}
	if s.conn, err = nats.Connect("", nats.InProcessServer(s.server), nats.MaxReconnects(-1),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { log.Warn("queue store", "err", err) })); err != nil {
		return nil, fmt.Errorf("connect to the store: %w", err)
	}
	return s, s.streams(ctx, o.Retention)
}

func (s *store) streams(ctx context.Context, retention time.Duration) error {
	js, err := jetstream.New(s.conn, jetstream.WithDefaultTimeout(writeTimeout))
	if err != nil {
		return fmt.Errorf("connect to the store: %w", err)
	}
	s.live, err = js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "live", History: 1, LimitMarkerTTL: markerTTL})
	if err != nil {
		return fmt.Errorf("open the live builds: %w", err)
	}
	if s.ended, err = openOnce(ctx, js, "ended", endedBytes, retention); err != nil {
		return err
	}
	s.tokens, err = openOnce(ctx, js, "tokens", -1, 0)
	return err
}

// close may be called at any stage of openStore.
func (s *store) close() error {
	if s.conn != nil {
		s.conn.Close()
	}
	if s.server != nil {
		s.server.Shutdown()
		s.server.WaitForShutdown()
	}
	if s.lock == nil {
		return nil
	}
	return s.lock.Close()
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
			return nil, errors.New("another process uses this directory; stop it or choose another directory")
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
	_, err = f.WriteString("probe")
	return errors.Join(err, f.Sync(), f.Close(), os.Remove(f.Name()))
}

// A once is a stream in which each name is written at most once.
type once struct {
	js     jetstream.JetStream
	stream jetstream.Stream
	prefix string
}

func openOnce(ctx context.Context, js jetstream.JetStream, name string, maxBytes int64, maxAge time.Duration) (once, error) {
	s, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name:              name,
		Subjects:          []string{name + ".*"},
		MaxMsgsPerSubject: 1,
		MaxBytes:          maxBytes,
		MaxAge:            maxAge,
		Discard:           jetstream.DiscardOld,
		AllowDirect:       true,
	})
	if err != nil {
		return once{}, fmt.Errorf("open the stream %s: %w", name, err)
	}
	return once{js: js, stream: s, prefix: name + "."}, nil
}

// put writes name unless it is there already.
func (o once) put(ctx context.Context, name string, data []byte) error {
	_, err := o.js.Publish(ctx, o.prefix+name, data, jetstream.WithExpectLastSequencePerSubject(0))
	if conflict(err) {
		return nil
	}
	return err
}

// get returns ErrNotFound if name is not there.
func (o once) get(ctx context.Context, name string) (data []byte, seq uint64, err error) {
	m, err := o.stream.GetLastMsgForSubject(ctx, o.prefix+name)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, 0, ErrNotFound
	}
	if err != nil {
		return nil, 0, err
	}
	return m.Data, m.Sequence, nil
}

// erase overwrites the bytes of name on disk and forgets it.
func (o once) erase(ctx context.Context, name string) error {
	_, seq, err := o.get(ctx, name)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	err = o.stream.SecureDeleteMsg(ctx, seq)
	if err == nil {
		return nil
	}
	if _, _, again := o.get(ctx, name); errors.Is(again, ErrNotFound) {
		return nil // somebody else was at it too
	}
	return err
}

// names are all that is there.
func (o once) names(ctx context.Context) ([]string, error) {
	info, err := o.stream.Info(ctx, jetstream.WithSubjectFilter(">"))
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(info.State.Subjects))
	for subject := range info.State.Subjects {
		names = append(names, subject[len(o.prefix):])
	}
	return names, nil
}

// conflict reports whether err is a compare-and-set that came too late.
func conflict(err error) bool {
	e, ok := errors.AsType[*jetstream.APIError](err)
	return ok && (e.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence ||
		e.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// A serverLog passes on what the embedded server complains of.
type serverLog struct {
	log   *slog.Logger
	fatal atomic.Pointer[string] // why the server cannot go on
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
		l.fatal.CompareAndSwap(nil, &why)
	}
	l.log.Error("queue store", "err", why)
}

func (l *serverLog) Fatalf(format string, v ...any) {
	why := fmt.Sprintf(format, v...)
	l.fatal.CompareAndSwap(nil, &why)
	l.log.Error("queue store", "err", why)
}

func (l *serverLog) Debugf(string, ...any) {}
func (l *serverLog) Tracef(string, ...any) {}
