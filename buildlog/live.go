package buildlog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/monochromegane/cargo/build"
)

const (
	// maxBatch is how much of a log is one message.
	maxBatch = 256 << 10

	// headerRoom is what the headers of a message may take beside the batch.
	headerRoom = 512

	// leastMessage is how much must fit into a message with its headers.
	leastMessage = 2 * headerRoom

	// liveAge is how long the stream keeps what nobody dropped.
	liveAge = 7 * 24 * time.Hour

	// callTimeout is how long one answer of NATS is waited for. An election of
	// a leader loses requests, so asking again beats waiting longer.
	callTimeout = 5 * time.Second
)

// Headers of a message.
const (
	offsetHeader  = "Cargo-Log-Offset"
	attemptHeader = "Cargo-Log-Attempt"
	kindHeader    = "Cargo-Log-Kind"
)

// A kind says what a message tells. All but lines have no data.
type kind string

const (
	kindLines   kind = ""        // what was logged
	kindOpen    kind = "open"    // a later attempt goes on from here; earlier ones are fenced out
	kindClosed  kind = "closed"  // its writer has shipped all there is
	kindSettled kind = "settled" // no writer is expected any more, and whoever there is is fenced out
	kindDropped kind = "dropped" // the log has left the stream for the archive
)

// A message is one message about a log in the stream.
type message struct {
	seq     uint64 // 0: there is no message
	kind    kind
	attempt int
	offset  int64 // of data in the log
	data    []byte
	alone   bool // takes the place of all messages before it; only for put
}

func (m message) end() int64 { return m.offset + int64(len(m.data)) }

// shut reports whether m ends what a writer of the attempt may add.
func (m message) shut(attempt int) bool {
	return m.attempt > attempt || m.attempt == attempt && (m.kind == kindSettled || m.kind == kindDropped)
}

var (
	errConflict = errors.New("another message came first")                     // of put: nothing was written
	errFull     = fmt.Errorf("%w: the stream of logs is full", ErrUnavailable) // of put: nothing was written
)

// A live is the stream that holds the logs of running builds: subject
// <name>.<build id>. What is written to a subject is written by
// compare-and-set on its last message, so that of two writers only one goes on.
type live struct {
	js       jetstream.JetStream
	name     string
	replicas int
	bytes    int64 // that it may take
	log      *slog.Logger

	mu      sync.Mutex
	stream  jetstream.Stream // nil until first use
	longest atomic.Int32     // message that the stream takes; 0: not known, or any
}

func (l *live) subject(id build.ID) string { return l.name + "." + string(id) }

// batch is how many bytes of a log fit into a message.
func (l *live) batch() int {
	room := int64(maxBatch)
	for _, longest := range []int64{l.js.Conn().MaxPayload(), int64(l.longest.Load())} { // 0 before the first connection
		if longest > 0 {
			room = min(room, max(longest, leastMessage)-headerRoom)
		}
	}
	return int(room)
}

// open returns the stream, which is made if it is not there.
func (l *live) open(ctx context.Context) (jetstream.Stream, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stream != nil {
		return l.stream, nil
	}
	s, err := l.js.Stream(ctx, l.name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		s, err = l.create(ctx)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // somebody else made it, in another way
			s, err = l.js.Stream(ctx, l.name)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open the stream %s: %w", l.name, err)
	}
	for _, unsafe := range l.unsafe(s.CachedInfo().Config) {
		l.log.Warn("the stream of logs is not as cargo makes it", "stream", l.name, "problem", unsafe)
	}
	l.stream = s
	l.longest.Store(max(s.CachedInfo().Config.MaxMsgSize, 0))
	return s, nil
}

// create makes the stream, smaller where there is no room for all of it.
func (l *live) create(ctx context.Context) (jetstream.Stream, error) {
	const least = 64 << 20
	for bytes := l.bytes; ; bytes /= 2 {
		s, err := l.js.CreateStream(ctx, l.config(bytes))
		if bytes/2 >= least && noRoom(err) {
			continue
		}
		if err == nil && bytes < l.bytes {
			l.log.Warn("there is little room for the logs of running builds; followers wait while it is full", "stream", l.name, "bytes", bytes)
		}
		return s, err
	}
}

// noRoom reports whether NATS has not as many bytes left as were asked for; the
// client has no names for that. A server that is away is something else.
func noRoom(err error) bool {
	e, ok := errors.AsType[*jetstream.APIError](err)
	if !ok {
		return false
	}
	switch e.ErrorCode {
	case 10002, 10047: // the account's, the server's
		return true
	case 10005: // no suitable peers
		return strings.Contains(e.Description, "insufficient storage") && !strings.Contains(e.Description, "offline")
	}
	return false
}

func (l *live) config(bytes int64) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        l.name,
		Description: "logs of running builds",
		Subjects:    []string{l.name + ".*"},
		Storage:     jetstream.FileStorage,
		Replicas:    l.replicas,
		MaxAge:      liveAge,
		MaxBytes:    bytes,
		Discard:     jetstream.DiscardNew, // the writer has a file to wait with; a log without its head is lost
		AllowRollup: true,                 // drop replaces a log by one message, in one step
		AllowDirect: false,                // any replica would answer, also one that lags
	}
}

// unsafe says in words what is wrong with a stream that was there.
func (l *live) unsafe(c jetstream.StreamConfig) []string {
	var problems []string
	if c.Storage != jetstream.FileStorage {
		problems = append(problems, "it is kept in memory: the logs of running builds are lost when NATS restarts")
	}
	if c.Replicas < l.replicas {
		problems = append(problems, fmt.Sprintf("it has %d of %d copies", c.Replicas, l.replicas))
	}
	if c.MaxAge > 0 && c.MaxAge < 24*time.Hour {
		problems = append(problems, fmt.Sprintf("it forgets logs after %s, also those that are not archived yet", c.MaxAge))
	}
	if c.Discard != jetstream.DiscardNew && (c.MaxBytes > 0 || c.MaxMsgs > 0) || c.MaxMsgsPerSubject > 0 {
		problems = append(problems, "it discards the beginnings of logs at its limit")
	}
	if !c.AllowRollup || c.DenyPurge {
		problems = append(problems, "it does not allow rollups: logs that have ended stay in it until they are too old")
	}
	if c.MaxMsgSize > 0 && c.MaxMsgSize < leastMessage {
		problems = append(problems, fmt.Sprintf("it takes messages of %d bytes at most, and a log's have up to %d: no log gets into it", c.MaxMsgSize, leastMessage))
	}
	if c.AllowDirect {
		problems = append(problems, "it allows direct reads, which may lag behind")
	}
	return problems
}

// forget makes the next use look for the stream again.
func (l *live) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stream = nil
}

// failed makes an error of NATS one that the caller may try again after.
func (l *live) failed(what string, err error) error {
	if errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, jetstream.ErrNoStreamResponse) {
		l.forget()
	}
	return fmt.Errorf("%w: %s: %v", ErrUnavailable, what, err)
}

// last is the last message about a log, read from the stream's leader; its seq
// is 0 if there is none.
func (l *live) last(ctx context.Context, id build.ID) (message, error) {
	return l.get(ctx, func(ctx context.Context, s jetstream.Stream) (*jetstream.RawStreamMsg, error) {
		return s.GetLastMsgForSubject(ctx, l.subject(id))
	})
}

// at is the first message about a log at seq or after it.
func (l *live) at(ctx context.Context, id build.ID, seq uint64) (message, error) {
	return l.get(ctx, func(ctx context.Context, s jetstream.Stream) (*jetstream.RawStreamMsg, error) {
		return s.GetMsg(ctx, max(seq, 1), jetstream.WithGetMsgSubject(l.subject(id)))
	})
}

func (l *live) get(ctx context.Context, ask func(context.Context, jetstream.Stream) (*jetstream.RawStreamMsg, error)) (message, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	s, err := l.open(ctx)
	if err != nil {
		return message{}, l.failed("read a log", err)
	}
	raw, err := ask(ctx, s)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return message{}, nil
	}
	if err != nil {
		return message{}, l.failed("read a log", err)
	}
	return decode(raw.Sequence, raw.Header, raw.Data)
}

func decode(seq uint64, h nats.Header, data []byte) (message, error) {
	offset, err := strconv.ParseInt(h.Get(offsetHeader), 10, 64)
	attempt, err2 := strconv.Atoi(h.Get(attemptHeader))
	if err = errors.Join(err, err2); err != nil || offset < 0 {
		return message{}, fmt.Errorf("message %d of the stream of logs is not one of ours: %w", seq, cmp.Or(err, errors.New("negative offset")))
	}
	return message{seq: seq, kind: kind(h.Get(kindHeader)), attempt: attempt, offset: offset, data: data}, nil
}

// put writes m behind the message after, which must be the last one about this
// log; 0: there must be none. Unless the error is errConflict or errFull, the
// message may have been written, now or later.
func (l *live) put(ctx context.Context, id build.ID, after uint64, m message) (seq uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := l.open(ctx); err != nil {
		return 0, l.failed("write a log", err)
	}
	msg := &nats.Msg{Subject: l.subject(id), Data: m.data, Header: nats.Header{
		offsetHeader:  {strconv.FormatInt(m.offset, 10)},
		attemptHeader: {strconv.Itoa(m.attempt)},
	}}
	if m.kind != kindLines {
		msg.Header.Set(kindHeader, string(m.kind))
	}
	if m.alone {
		msg.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
	}
	ack, err := l.js.PublishMsg(ctx, msg, jetstream.WithExpectLastSequencePerSubject(after), jetstream.WithExpectStream(l.name))
	if err == nil {
		return ack.Sequence, nil
	}
	if e, ok := errors.AsType[*jetstream.APIError](err); ok {
		switch e.ErrorCode {
		case jetstream.JSErrCodeStreamWrongLastSequence, jetstream.JSErrCodeStreamWrongLastSequenceConstant:
			return 0, errConflict
		case errCodeTooLong:
			l.forget() // it takes less than when it was opened
		case errCodeStoreFailed:
			if e.Description == errMaxBytes {
				return 0, errFull
			}
		}
	}
	return 0, l.failed("write a log", err)
}

// How a server says that a stream has reached a limit; the client has no names for it.
const (
	errCodeTooLong     jetstream.ErrorCode = 10054
	errCodeStoreFailed jetstream.ErrorCode = 10077
	errMaxBytes                            = "maximum bytes exceeded"
)

// purge removes the messages of a log up to seq.
func (l *live) purge(ctx context.Context, id build.ID, seq uint64) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	s, err := l.open(ctx)
	if err == nil {
		err = s.Purge(ctx, jetstream.WithPurgeSubject(l.subject(id)), jetstream.WithPurgeSequence(seq+1))
	}
	if err != nil {
		return l.failed("purge a log", err)
	}
	return nil
}

// several are the logs of which there is more than one message: more than that
// they were dropped.
func (l *live) several(ctx context.Context) ([]build.ID, error) {
	s, err := l.open(ctx)
	if err != nil {
		return nil, l.failed("list logs", err)
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(l.name+".*"))
	if err != nil {
		return nil, l.failed("list logs", err)
	}
	var ids []build.ID
	for subject, n := range info.State.Subjects {
		if n > 1 {
			ids = append(ids, build.ID(subject[len(l.name)+1:]))
		}
	}
	return ids, nil
}
