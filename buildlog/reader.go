package buildlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/monochromegane/cargo/build"
)

const (
	// fetchBytes and fetchMessages bound what waits in memory for one reader.
	fetchBytes    = 1 << 20
	fetchMessages = 256

	fetchTime      = 30 * time.Second
	fetchHeartbeat = 2 * time.Second // twice this without one, and the consumer is taken for lost

	// consumerAge is how long the server keeps a consumer that nobody asks.
	consumerAge = time.Minute
)

var (
	errStopped = errors.New("stopped")
	errDropped = errors.New("the log has left the stream")
	errGap     = fmt.Errorf("%w: a part of it is missing in the stream", ErrUnavailable)
)

// A reader takes the messages about one log, in order, each once, and passes
// on whole lines. Its place is offset and seq: what it has of the server may
// be lost at any time, and is made anew from there.
type reader struct {
	live   *live
	id     build.ID
	offset int64  // of the first byte that is not passed on
	check  bool   // the byte at offset must be the end of a line; it is not passed on
	part   []byte // what is there of the line at offset
	seq    uint64 // of the last message taken
	pass   func(lines []byte, next int64) error

	consumer jetstream.Consumer // nil: there is none
	batch    jetstream.MessageBatch
	cancel   context.CancelFunc // of batch
}

// newReader wants a line to end just before offset.
func newReader(l *live, id build.ID, offset int64, pass func(lines []byte, next int64) error) *reader {
	r := &reader{live: l, id: id, offset: offset, pass: pass}
	if offset > 0 {
		r.offset, r.check = offset-1, true
	}
	return r
}

// catchUp takes all messages up to seq. errDropped if the log was dropped there
// or later; where it was dropped before, the build was queued again, and what
// follows is all of its log.
func (r *reader) catchUp(ctx context.Context, seq uint64) error {
	if r.offset > 0 && r.seq == 0 {
		if err := r.skip(ctx, seq); err != nil {
			return err
		}
	}
	for r.seq < seq {
		// What is to be taken is there already, unless it was removed meanwhile.
		late := make(chan struct{})
		timer := time.AfterFunc(callTimeout, func() { close(late) })
		m, err := r.next(ctx, late)
		timer.Stop()
		if errors.Is(err, errStopped) {
			r.lose()
			return fmt.Errorf("%w: a message does not come", ErrUnavailable)
		}
		if err == nil {
			err = r.take(m)
		}
		if errors.Is(err, errDropped) && r.seq < seq {
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// wait takes messages as they come until stop is closed or the log is dropped.
func (r *reader) wait(ctx context.Context, stop <-chan struct{}) error {
	for {
		m, err := r.next(ctx, stop)
		if err == nil {
			err = r.take(m)
		}
		if errors.Is(err, errStopped) || errors.Is(err, errDropped) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// skip looks for the message in which offset lies, among those up to last, by
// bisection: what comes before it need not be sent here. To begin too early
// does no harm.
func (r *reader) skip(ctx context.Context, last uint64) error {
	m, err := r.live.at(ctx, r.id, 1)
	if err != nil {
		return err
	}
	const few = 16 // are read faster than looked through
	for low, high := m.seq, last; ; {
		if m.seq == 0 || high <= low+few {
			r.seq = max(low, 1) - 1
			return nil
		}
		middle := low + (high-low)/2
		if m, err = r.live.at(ctx, r.id, middle); err != nil {
			return err
		}
		if m.offset <= r.offset {
			low = m.seq
		} else {
			high = middle - 1
		}
	}
}

func (r *reader) next(ctx context.Context, stop <-chan struct{}) (message, error) {
	for {
		if err := r.fetch(ctx); err != nil {
			r.lose()
			return message{}, r.live.failed("follow a log", err)
		}
		select {
		case msg, ok := <-r.batch.Messages():
			if ok {
				return received(msg)
			}
			err := r.batch.Error()
			r.cancel()
			r.batch = nil
			if err != nil {
				r.lose()
				return message{}, r.live.failed("follow a log", err)
			}
		case <-stop:
			return message{}, errStopped
		case <-ctx.Done():
			return message{}, context.Cause(ctx)
		}
	}
}

func received(msg jetstream.Msg) (message, error) {
	meta, err := msg.Metadata()
	if err != nil {
		return message{}, fmt.Errorf("a message of the stream of logs: %w", err)
	}
	return decode(meta.Sequence.Stream, msg.Headers(), msg.Data())
}

// fetch sees that there is a batch under way.
func (r *reader) fetch(ctx context.Context) error {
	if r.batch != nil {
		return nil
	}
	if r.consumer == nil {
		if err := r.consume(ctx); err != nil {
			return err
		}
	}
	ctx, r.cancel = context.WithTimeout(ctx, fetchTime)
	var err error
	r.batch, err = r.consumer.Fetch(fetchMessages, jetstream.FetchMaxBytes(fetchBytes), jetstream.FetchContext(ctx), jetstream.FetchHeartbeat(fetchHeartbeat))
	return err
}

// consume makes a consumer that begins behind seq. It is in memory on one
// server; when that is gone, another one is made.
func (r *reader) consume(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := r.live.open(ctx); err != nil {
		return err
	}
	var err error
	r.consumer, err = r.live.js.CreateConsumer(ctx, r.live.name, jetstream.ConsumerConfig{
		FilterSubject:     r.live.subject(r.id),
		DeliverPolicy:     jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:       r.seq + 1,
		AckPolicy:         jetstream.AckNonePolicy,
		InactiveThreshold: consumerAge,
		Replicas:          1,
		MemoryStorage:     true,
	})
	return err
}

// lose forgets what the server has for this reader.
func (r *reader) lose() {
	if r.cancel != nil {
		r.cancel()
	}
	r.batch, r.cancel, r.consumer = nil, nil, nil
}

// close also removes it from the server, which would do that by itself later.
func (r *reader) close(ctx context.Context) {
	c := r.consumer
	r.lose()
	if c == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = r.live.js.DeleteConsumer(ctx, r.live.name, c.CachedInfo().Name)
}

// take passes on the lines that m completes.
func (r *reader) take(m message) error {
	held := r.offset + int64(len(r.part))
	if m.kind == kindDropped {
		r.seq, r.part = m.seq, nil
		return errDropped
	}
	if m.offset > held {
		r.lose() // it has gone past what is missing
		return errGap
	}
	r.seq = m.seq
	if m.offset >= r.offset { // a later attempt drops a line that an earlier one left torn
		r.part = r.part[:m.offset-r.offset]
		return r.feed(m.data)
	}
	r.part = r.part[:0]
	if m.end() <= r.offset {
		return nil // passed on already
	}
	return r.feed(m.data[r.offset-m.offset:])
}

// feed takes the bytes that come next in the log.
func (r *reader) feed(data []byte) error {
	end := bytes.LastIndexByte(data, '\n') + 1
	if end == 0 {
		if len(r.part)+len(data) > maxLine {
			return fmt.Errorf("log of build %s: the line at offset %d does not end", r.id, r.offset)
		}
		r.part = append(r.part, data...)
		return nil
	}
	whole := data[:end]
	if len(r.part) > 0 {
		whole = append(r.part, whole...)
	}
	if r.check {
		if whole[0] != '\n' {
			return fmt.Errorf("log of build %s: offset %d: %w", r.id, r.begin(), ErrOffset)
		}
		whole, r.offset, r.check = whole[1:], r.offset+1, false
	}
	if len(whole) > 0 {
		if err := r.pass(whole, r.offset+int64(len(whole))); err != nil {
			return err
		}
	}
	r.offset += int64(len(whole))
	r.part = append(r.part[:0:0], data[end:]...)
	return nil
}

// begin is the offset of the first line that is not passed on.
func (r *reader) begin() int64 {
	if r.check {
		return r.offset + 1
	}
	return r.offset
}

// place changes when r gets on.
func (r *reader) place() [2]int64 { return [2]int64{r.offset, int64(r.seq)} }
