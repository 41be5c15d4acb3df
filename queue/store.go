package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// endedBytes is what the records of ended builds may take on disk before
	// the oldest go: more than a million builds.
	endedBytes = 1 << 30

	// markerTTL is how long a purge marker stays in "live", so that each
	// observer learns of the purge.
	markerTTL = 10 * time.Minute

	// clusterPrefix keeps our names apart from others' in a shared account. The
	// names of an embedded server have none.
	clusterPrefix = "cargo-"

	// reconnectWait is the pause between two tries to connect again.
	reconnectWait = 200 * time.Millisecond
)

// A store is the connection to a server, be it in this process, in another one
// on this machine or a cluster, and what is kept there.
type store struct {
	embedded *embedded // nil if the server is not in this process
	cluster  *Cluster  // nil if there is none
	guest    bool      // the queue is other processes'
	porch    *porch    // of the embedded server; nil if it could not be made
	log      *slog.Logger
	prefix   string // of the names of streams and buckets
	replicas int

	conn    *nats.Conn
	js      jetstream.JetStream
	live    jetstream.KeyValue // key digest -> record
	records jetstream.Stream   // what live is kept in
	ended   once               // build id -> record
	tokens  once               // build id -> sealed token

	watched canceler // of the present watch

	mu      sync.Mutex
	session context.Context // ends with the present connection
	lose    context.CancelFunc
}

func newStore(log *slog.Logger) *store {
	s := &store{log: log, replicas: 1}
	s.session, s.lose = context.WithCancel(context.Background())
	return s
}

func openEmbeddedStore(ctx context.Context, o Options, log *slog.Logger) (_ *store, err error) {
	s := newStore(log)
	defer func() {
		if err != nil {
			_ = s.close()
		}
	}()
	if s.embedded, err = openEmbedded(o.Dir, log); err != nil {
		return nil, err
	}
	if err = s.connect("", nats.InProcessServer(s.embedded)); err != nil {
		return nil, fmt.Errorf("connect to the store: %w", err)
	}
	if s.guest = o.Guest; s.guest {
		return s, s.findStreams(ctx)
	}
	if err = s.makeStreams(ctx, o.Retention); err != nil {
		return nil, err
	}
	if s.porch, err = openPorch(o.Dir, s.embedded); err != nil {
		return nil, fmt.Errorf("make the socket for commands: %w", err)
	}
	return s, nil
}

// connect makes the connection that comes back by itself. What is sent while
// there is none fails at once: a compare-and-set that is sent later, when its
// caller has long been told that it failed, does harm.
func (s *store) connect(urls string, options ...nats.Option) (err error) {
	options = append([]nats.Option{
		nats.MaxReconnects(-1),
		nats.ReconnectWait(reconnectWait),
		nats.ReconnectJitter(reconnectWait, reconnectWait),
		nats.ReconnectBufSize(-1),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { s.disconnected(err) }),
		nats.ReconnectHandler(func(*nats.Conn) { s.watched.end(errReconnected) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { s.log.Warn("queue store", "err", err) }),
	}, options...)
	if s.conn, err = nats.Connect(urls, options...); err != nil {
		return err
	}
	s.js, err = jetstream.New(s.conn, jetstream.WithDefaultTimeout(writeTimeout))
	return err
}

// disconnected ends what waits for an answer that will not come.
func (s *store) disconnected(err error) {
	s.mu.Lock()
	s.lose()
	s.session, s.lose = context.WithCancel(context.Background())
	s.mu.Unlock()
	if err != nil {
		s.log.Debug("disconnected from the queue", "err", err)
	}
}

func (s *store) connection() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.session
}

// liveConfig is the configuration of a key-value bucket, spelt out: with
// AllowDirect, which the library always sets, a server that lags could answer
// that a build is not there, so a cluster must not have it.
func (s *store) liveConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:                   "KV_" + s.prefix + "live",
		Subjects:               []string{s.key(">")},
		MaxMsgsPerSubject:      1,
		MaxMsgs:                -1,
		MaxBytes:               -1,
		MaxMsgSize:             -1,
		MaxConsumers:           -1,
		Discard:                jetstream.DiscardNew,
		Replicas:               s.replicas,
		Duplicates:             2 * time.Minute,
		AllowRollup:            true,
		DenyDelete:             true,
		AllowDirect:            s.cluster == nil,
		AllowMsgTTL:            true,
		SubjectDeleteMarkerTTL: markerTTL,
	}
}

// onceConfig is the configuration of a stream in which each name is there once.
func (s *store) onceConfig(name string, maxBytes int64, maxAge time.Duration) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              s.prefix + name,
		Subjects:          []string{s.prefix + name + ".*"},
		MaxMsgsPerSubject: 1,
		MaxBytes:          maxBytes,
		MaxAge:            maxAge,
		Discard:           jetstream.DiscardOld,
		Replicas:          s.replicas,
		AllowDirect:       s.cluster == nil,
	}
}

func (s *store) configs(retention time.Duration) (live, ended, tokens jetstream.StreamConfig) {
	return s.liveConfig(), s.onceConfig("ended", endedBytes, retention), s.onceConfig("tokens", -1, 0)
}

// makeStreams makes the streams of an embedded server, or changes them to what
// this program wants.
func (s *store) makeStreams(ctx context.Context, retention time.Duration) error {
	live, ended, tokens := s.configs(retention)
	return s.bind(ctx, live, ended, tokens, s.js.CreateOrUpdateStream)
}

var errUnused = errors.New("no server has used it yet")

// findStreams takes the streams as they are.
func (s *store) findStreams(ctx context.Context) error {
	live, ended, tokens := s.configs(0)
	return s.bind(ctx, live, ended, tokens, func(ctx context.Context, c jetstream.StreamConfig) (stream jetstream.Stream, err error) {
		err = s.ask(ctx, func(ctx context.Context) error {
			stream, err = s.js.Stream(ctx, c.Name)
			return err
		})
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return nil, errUnused
		}
		return stream, err
	})
}

func (s *store) bind(ctx context.Context, live, ended, tokens jetstream.StreamConfig, open func(context.Context, jetstream.StreamConfig) (jetstream.Stream, error)) (err error) {
	if s.records, err = open(ctx, live); err != nil {
		return fmt.Errorf("open the live builds: %w", err)
	}
	if s.live, err = s.js.KeyValue(ctx, s.prefix+"live"); err != nil {
		return fmt.Errorf("open the live builds: %w", err)
	}
	for _, o := range []struct {
		at     *once
		config jetstream.StreamConfig
	}{{&s.ended, ended}, {&s.tokens, tokens}} {
		stream, err := open(ctx, o.config)
		if err != nil {
			return fmt.Errorf("open the stream %s: %w", o.config.Name, err)
		}
		*o.at = once{store: s, stream: stream, prefix: o.config.Name + "."}
	}
	return nil
}

// close may be called at any stage of opening.
func (s *store) close() error {
	if s.conn != nil {
		s.conn.Close()
	}
	s.mu.Lock()
	s.lose()
	s.mu.Unlock()
	if s.porch != nil {
		s.porch.close(s.embedded.dir)
	}
	if s.embedded == nil {
		return nil
	}
	return s.embedded.close()
}

// broken is nil, or wraps ErrBroken while the embedded server cannot write.
func (s *store) broken() error {
	if s.embedded == nil {
		return nil
	}
	if why := s.embedded.trouble(); why != "" {
		return fmt.Errorf("%w (%s)", ErrBroken, why)
	}
	return nil
}

// key is the subject of a live build.
func (s *store) key(digest string) string { return "$KV." + s.prefix + "live." + digest }

// create, update and purge write a live record by compare-and-set.
func (s *store) create(ctx context.Context, key string, data []byte) (rev uint64, err error) {
	err = s.ask(ctx, func(ctx context.Context) error {
		rev, err = s.live.Create(ctx, key, data)
		return err
	})
	return rev, err
}

func (s *store) update(ctx context.Context, key string, data []byte, last uint64) (rev uint64, err error) {
	err = s.ask(ctx, func(ctx context.Context) error {
		rev, err = s.live.Update(ctx, key, data, last)
		return err
	})
	return rev, err
}

func (s *store) purge(ctx context.Context, key string, last uint64) error {
	return s.ask(ctx, func(ctx context.Context) error {
		return s.live.Purge(ctx, key, jetstream.LastRevision(last), jetstream.PurgeTTL(markerTTL))
	})
}

// last is the newest message of a subject, or ErrNotFound. seen is the newest
// one that the caller knows of.
//
// A server answers "not found" also when it could not read the message, and a
// leader that has lost its followers goes on answering for some seconds from
// what it has. So it is asked about its index too.
func (s *store) last(ctx context.Context, stream jetstream.Stream, subject string, seen uint64) (m *jetstream.RawStreamMsg, err error) {
	err = s.ask(ctx, func(ctx context.Context) error {
		m, err = stream.GetLastMsgForSubject(ctx, subject)
		return err
	})
	if err == nil && m.Sequence < seen {
		return nil, fmt.Errorf("%w: a server that lags has answered", ErrUnavailable)
	}
	if !errors.Is(err, jetstream.ErrMsgNotFound) {
		return m, err
	}
	info, err := s.info(ctx, stream, jetstream.WithSubjectFilter(subject))
	switch {
	case err != nil:
		return nil, err
	case len(info.State.Subjects) > 0:
		return nil, fmt.Errorf("%w: %s is there, and cannot be read", ErrUnavailable, subject)
	case info.State.LastSeq < seen || !quorum(info):
		return nil, fmt.Errorf("%w: a server that lags has answered", ErrUnavailable)
	}
	return nil, ErrNotFound
}

func (s *store) info(ctx context.Context, stream jetstream.Stream, opts ...jetstream.StreamInfoOpt) (info *jetstream.StreamInfo, err error) {
	err = s.ask(ctx, func(ctx context.Context) error {
		info, err = stream.Info(ctx, opts...)
		return err
	})
	return info, err
}

// A once is a stream in which each name is written at most once.
type once struct {
	store  *store
	stream jetstream.Stream
	prefix string
}

// put writes name if its newest message is that at seq, 0 for none; exists
// tells that it is not.
func (o once) put(ctx context.Context, name string, data []byte, seq uint64) (exists bool, err error) {
	err = o.store.ask(ctx, func(ctx context.Context) error {
		_, err := o.store.js.Publish(ctx, o.prefix+name, data, jetstream.WithExpectLastSequencePerSubject(seq))
		return err
	})
	if conflict(err) {
		return true, nil
	}
	return false, err
}

// get returns ErrNotFound if name is not there.
func (o once) get(ctx context.Context, name string) (data []byte, seq uint64, err error) {
	m, err := o.store.last(ctx, o.stream, o.prefix+name, 0)
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
	return o.eraseAt(ctx, name, seq)
}

func (o once) eraseAt(ctx context.Context, name string, seq uint64) error {
	err := o.store.ask(ctx, func(ctx context.Context) error { return o.stream.SecureDeleteMsg(ctx, seq) })
	if err == nil {
		return nil
	}
	if _, now, again := o.get(ctx, name); errors.Is(again, ErrNotFound) || again == nil && now != seq {
		return nil // somebody else was at it too
	}
	return err
}

// names are all that is there.
func (o once) names(ctx context.Context) ([]string, error) {
	info, err := o.store.info(ctx, o.stream, jetstream.WithSubjectFilter(">"))
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
