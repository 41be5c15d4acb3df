package queue

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A Cluster is a NATS cluster with JetStream that keeps the queue instead of
// the embedded server.
type Cluster struct {
	URLs        []string    // nats://host:port or tls://host:port, without credentials in them
	Credentials string      // path of a NATS credentials file; "" for none
	Token       string      // "" for none
	TLS         *tls.Config // nil: the system's roots, where the server wants TLS
	Replicas    int         // of streams and buckets that are made; 0 means 3

	// Prefix begins the names of streams and buckets; "" means "cargo-". Two
	// queues in one NATS account need two.
	Prefix string
}

const (
	dialTimeout = 3 * time.Second

	// A connection into the void, as after a cut cable, is given up after a
	// few pings; by itself the kernel would wait for a quarter of an hour.
	pingInterval = 2 * time.Second
	pingsMissed  = 3
)

func openClusterStore(ctx context.Context, o Options, worker string, log *slog.Logger) (_ *store, err error) {
	c := *o.Cluster
	s := newStore(log)
	s.cluster, s.prefix, s.replicas = &c, cmp.Or(c.Prefix, clusterPrefix), cmp.Or(c.Replicas, 3)
	defer func() {
		if err != nil {
			_ = s.close()
		}
	}()
	if err := c.check(); err != nil {
		return nil, err
	}
	if err := s.connect(strings.Join(c.URLs, ","), c.options(worker)...); err != nil {
		return nil, c.unreachable(err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if s.guest = o.Guest; s.guest {
		return s, s.findStreams(ctx)
	}
	return s, s.meetStreams(ctx, o.Retention)
}

func (c *Cluster) check() error {
	if len(c.URLs) == 0 {
		return errors.New("no address of a NATS server is given; say nats://host:port")
	}
	for _, address := range c.URLs {
		u, err := url.Parse(address)
		if err != nil || u.Host == "" || u.Scheme != "nats" && u.Scheme != "tls" {
			return fmt.Errorf("%q is not the address of a NATS server; say nats://host:port or tls://host:port", redact(address))
		}
		if u.User != nil {
			return fmt.Errorf("the address of %s has a user or a token in it, where others can read it; use --queue-creds, --queue-token-file or CARGO_QUEUE_TOKEN", u.Host)
		}
	}
	return nil
}

func (c *Cluster) String() string {
	hosts := make([]string, len(c.URLs))
	for i, address := range c.URLs {
		hosts[i] = redact(address)
	}
	return strings.Join(hosts, ",")
}

// redact leaves out what stands before the host, if that is a secret.
func redact(address string) string {
	if _, host, ok := strings.Cut(address, "@"); ok {
		return host
	}
	return address
}

func (c *Cluster) options(worker string) []nats.Option {
	options := []nats.Option{
		nats.Name("cargo " + worker),
		nats.Timeout(dialTimeout),
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(pingsMissed),
		nats.IgnoreAuthErrorAbort(), // a server that is being configured anew may refuse us for a while
	}
	if c.Credentials != "" {
		options = append(options, nats.UserCredentials(c.Credentials))
	}
	if c.Token != "" {
		options = append(options, nats.Token(c.Token))
	}
	if c.TLS != nil {
		options = append(options, nats.Secure(c.TLS))
	}
	return options
}

func (c *Cluster) secure() bool {
	return c.TLS != nil || slices.ContainsFunc(c.URLs, func(u string) bool { return strings.HasPrefix(u, "tls:") })
}

// brokenOff reports whether the other side ended the connection, as it does
// where it misses a certificate.
func brokenOff(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op != "dial" || errors.Is(err, io.EOF)
}

// unreachable says what to do about the failure of the first connection.
func (c *Cluster) unreachable(err error) error {
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked),
		errors.Is(err, nats.ErrPermissionViolation):
		return fmt.Errorf("%w; give what the cluster asks for with --queue-creds, --queue-token-file or CARGO_QUEUE_TOKEN", err)
	case errors.Is(err, nats.ErrSecureConnRequired), errors.Is(err, nats.ErrSecureConnWanted):
		return fmt.Errorf("%w; check --queue (tls:// or nats://) and --queue-ca", err)
	case errors.Is(err, nats.ErrTLS), c.secure() && brokenOff(err): // what the server did not like about our certificate is in its log only
		return fmt.Errorf("%w; check --queue-ca, and --queue-cert and --queue-key if the cluster wants a certificate", err)
	case errors.Is(err, nats.ErrNoServers), errors.Is(err, nats.ErrTimeout), isNetwork(err):
		return fmt.Errorf("%w: none of the servers answers (%w); check the addresses in --queue and that NATS runs there", ErrUnavailable, err)
	}
	return fmt.Errorf("%w; check --queue, and --queue-creds if it is set", err)
}

// isNetwork reports whether err is about the way to a server, or its name.
func isNetwork(err error) bool {
	_, ok := errors.AsType[net.Error](err)
	return ok
}

// meetStreams makes the streams that are not there, and takes those that are
// as they are: check says what is wrong with them.
func (s *store) meetStreams(ctx context.Context, retention time.Duration) error {
	live, ended, tokens := s.configs(retention)
	return s.bind(ctx, live, ended, tokens, func(ctx context.Context, config jetstream.StreamConfig) (stream jetstream.Stream, err error) {
		err = patiently(ctx, func() error {
			err := s.ask(ctx, func(ctx context.Context) error {
				stream, err = s.meetStream(ctx, config)
				return err
			})
			switch {
			case off(err):
				return errOff
			case is(err, notClustered):
				return s.few()
			case is(err, noPeers): // they may be starting, too
				return fmt.Errorf("%w: %w", ErrUnavailable, s.few())
			case is(err, subjectsOverlap):
				return fmt.Errorf("another stream of this NATS account has its subject %s; remove that one, or give Cargo an account of its own", config.Subjects[0])
			}
			return err
		})
		return stream, err
	})
}

func (s *store) meetStream(ctx context.Context, config jetstream.StreamConfig) (jetstream.Stream, error) {
	if stream, err := s.js.Stream(ctx, config.Name); !errors.Is(err, jetstream.ErrStreamNotFound) {
		return stream, err
	}
	stream, err := s.js.CreateStream(ctx, config)
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		return s.js.Stream(ctx, config.Name) // another process was first
	}
	return stream, err
}

var errOff = errors.New("JetStream is off; switch it on in the configuration of the servers and for this account")

func off(err error) bool {
	return errors.Is(err, jetstream.ErrJetStreamNotEnabled) || errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount)
}

// What NATS answers where a stream cannot be made, or nothing more be written;
// its client has no names for these.
const (
	accountFull     = 10002 // which it counts as a mistake of ours
	noPeers         = 10005
	subjectsOverlap = 10065
	notClustered    = 10074
)

func is(err error, code jetstream.ErrorCode) bool {
	e, ok := errors.AsType[*jetstream.APIError](err)
	return ok && e.ErrorCode == code
}

func (s *store) few() error {
	return fmt.Errorf("the cluster has too few servers with JetStream to keep %d copies; start more of them, or say --queue-replicas 1 and have no copy", s.replicas)
}

// unsynced is said of every cluster: no client can see it.
const unsynced = "Whether the NATS servers write to disk before they answer cannot be seen from here. Each must have sync_interval: always in its jetstream block, or a power failure may lose accepted builds."

// inspect says in words what is unsafe about the streams as they were found.
func (s *store) inspect(ctx context.Context, retention time.Duration) ([]string, error) {
	live, ended, tokens := s.configs(retention)
	warnings := []string{unsynced}
	for _, c := range []struct {
		stream jetstream.Stream
		want   jetstream.StreamConfig
		what   string
	}{{s.records, live, "live builds"}, {s.ended.stream, ended, "ended builds"}, {s.tokens.stream, tokens, "sealed tokens"}} {
		info, err := s.info(ctx, c.stream)
		if err != nil {
			return nil, err
		}
		for _, w := range compare(info.Config, c.want) {
			warnings = append(warnings, fmt.Sprintf("The stream %s, which keeps the %s, %s.", c.want.Name, c.what, w))
		}
	}
	return warnings, nil
}

// compare says what about the configuration got may lose what want would keep.
func compare(got, want jetstream.StreamConfig) (warnings []string) {
	warn := func(bad bool, format string, args ...any) {
		if bad {
			warnings = append(warnings, fmt.Sprintf(format, args...))
		}
	}
	switch {
	case got.Replicas == 1 && want.Replicas == 1:
		warn(true, "has one copy: when its server is away, so is the queue, and when its disk is lost, so are the builds")
	case got.Replicas < want.Replicas:
		warn(true, "has %d of the %d copies that --queue-replicas asks for", got.Replicas, want.Replicas)
	case got.Replicas%2 == 0:
		warn(true, "has %d copies, which survive no more than %d would", got.Replicas, got.Replicas-1)
	}
	warn(got.Storage != jetstream.FileStorage, "is kept in memory: a restart of the servers loses it")
	warn(got.PersistMode == jetstream.AsyncPersistMode, "has the persist mode async: what is accepted may not be on disk when a server is killed")
	warn(got.Retention != jetstream.LimitsPolicy, "has the retention %s and not Limits: records vanish when they are read", got.Retention)
	warn(got.AllowDirect, "allows direct reads, which a server that lags may answer")
	warn(got.Sealed, "is sealed: nothing can be written")
	warn(got.MaxMsgsPerSubject != 1, "keeps more than one message of a subject: erased tokens and old records stay")
	for _, subject := range want.Subjects {
		warn(!slices.Contains(got.Subjects, subject), "does not have the subject %s: nothing can be written", subject)
	}
	if want.Discard == jetstream.DiscardOld && want.MaxBytes > 0 { // ended builds, which go at last
		warn(got.MaxAge != want.MaxAge, "keeps them for %s and not for %s, as --record-retention says; change the stream's max-age, or the flag", age(got.MaxAge), age(want.MaxAge))
		return warnings
	}
	warn(got.MaxAge > 0, "forgets records after %s, also of builds that are not done", got.MaxAge)
	warn(got.Discard != want.Discard && (got.MaxMsgs > 0 || got.MaxBytes > 0), "discards the oldest records when it is full, also of builds that are not done")
	if want.AllowMsgTTL {
		warn(!got.AllowMsgTTL, "does not allow a time to live of messages, without which no build can be taken out")
		warn(!got.AllowRollup || got.DenyPurge, "does not allow the roll-up of a subject, without which no build can be taken out")
	} else {
		warn(got.DenyDelete, "does not allow messages to be deleted, without which tokens stay when their builds have ended")
	}
	return warnings
}

func age(d time.Duration) string {
	if d == 0 {
		return "as long as there is room"
	}
	return d.String()
}
