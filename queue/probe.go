package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// probePeriod is how often the queue is asked whether it is there, or a
	// twelfth of a shorter lease.
	probePeriod = time.Second

	// lagLimit is how long the watch may be behind the stream before it is
	// started anew.
	lagLimit = 5 * time.Second

	// silentLimit is how long the queue may be away before Err says so, and
	// before another server of the cluster is tried.
	silentLimit = 5 * time.Second

	// followerSilence is how long a follower may be silent before its leader
	// does not count on it; it is heard about once in a second.
	followerSilence = 4 * time.Second
)

// A hearing is how long this process has heard the queue: all together, not
// counting the time in which it was away, or this process stood still. Only
// such time is held against a silent worker, who could not renew in any other.
type hearing struct {
	mu    sync.Mutex
	gap   time.Duration // between two signs of life, at most
	total time.Duration
	last  time.Time // sign of life, on the monotonic clock
}

// sign tells that the queue was there at some moment, and everything of before
// has been observed.
func (h *hearing) sign(at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d := at.Sub(h.last); !h.last.IsZero() && d <= h.gap {
		h.total += d
	}
	h.last = at
}

// now is when something is observed, which may turn out to be later than what
// has passed since: then it counts for less.
func (h *hearing) now() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.last.IsZero() {
		return h.total
	}
	return h.total + min(time.Since(h.last), h.gap)
}

// passed is how much time is certain.
func (h *hearing) passed() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.total
}

// silence is how long ago the last sign of life was.
func (h *hearing) silence() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Since(h.last)
}

// A progress is the sequence up to which the live records were observed.
type progress struct {
	mu    sync.Mutex
	seq   uint64
	moved chan struct{} // closed when seq grows; nil if nobody waits
}

func (p *progress) reach(seq uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if seq <= p.seq {
		return
	}
	p.seq = seq
	if p.moved != nil {
		close(p.moved)
		p.moved = nil
	}
}

func (p *progress) at() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seq
}

// wait reports whether seq is reached before ctx ends.
func (p *progress) wait(ctx context.Context, seq uint64) bool {
	for {
		p.mu.Lock()
		if p.seq >= seq {
			p.mu.Unlock()
			return true
		}
		if p.moved == nil {
			p.moved = make(chan struct{})
		}
		moved := p.moved
		p.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			return false
		}
	}
}

func (p *progress) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seq = 0
}

// probe asks the queue again and again whether it is there and whether the
// watch has brought all that it has.
func (q *Queue) probe() {
	period := q.period()
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	var behind, moved time.Time
	for {
		select {
		case <-ticker.C:
		case <-q.ctx.Done():
			return
		}
		at := time.Now()
		err := q.look(period)
		switch {
		case err == nil:
			q.view.heard.sign(at)
			behind = time.Time{}
		case !errors.Is(err, errLag):
			if q.store.cluster != nil && q.view.heard.silence() > silentLimit && time.Since(moved) > silentLimit {
				moved = time.Now()
				q.store.move(err)
			}
		case behind.IsZero():
			behind = at
		case time.Since(behind) > lagLimit:
			behind = time.Time{}
			q.store.watched.end(err)
		}
	}
}

func (q *Queue) period() time.Duration {
	return min(probePeriod, max(q.lease/12, 10*time.Millisecond))
}

// look returns nil if the queue has a quorum and the watch is up to date.
func (q *Queue) look(period time.Duration) error {
	ctx, cancel := context.WithTimeout(q.ctx, max(2*period, time.Second))
	defer cancel()
	info, err := q.store.info(ctx, q.store.records)
	if err != nil {
		return err
	}
	if !quorum(info) {
		return fmt.Errorf("%w: it has lost its quorum", ErrUnavailable)
	}
	if info.Created.Sub(q.created) > time.Second && info.State.LastSeq < q.seen.at() {
		q.created = info.Created
		q.startAnew()
		return errAnew
	}
	soon, cancel := context.WithTimeout(ctx, period)
	defer cancel()
	if q.seen.wait(soon, info.State.LastSeq) {
		return nil
	}
	newest, err := q.store.newest(ctx)
	if err != nil {
		return err
	}
	if newest > q.seen.at() {
		return errLag
	}
	q.seen.reach(info.State.LastSeq) // the marker of a purge, which has gone
	return nil
}

// startAnew forgets all revisions: somebody has removed the stream and it was
// made again, or it was restored from an older copy.
func (q *Queue) startAnew() {
	q.log.Error("the stream of the live builds was made anew; builds that it had are lost", "stream", q.store.liveConfig().Name)
	q.seen.reset()
	q.view.reset()
	q.store.watched.end(errAnew)
}

// newest is the sequence of the newest record, 0 if there is none.
func (s *store) newest(ctx context.Context) (uint64, error) {
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message struct {
			Sequence uint64 `json:"seq"`
		} `json:"message"`
	}
	request, err := json.Marshal(map[string]string{"last_by_subj": s.key(">")})
	if err != nil {
		return 0, err
	}
	err = s.ask(ctx, func(ctx context.Context) error {
		m, err := s.conn.RequestWithContext(ctx, jetstream.DefaultAPIPrefix+"STREAM.MSG.GET."+s.liveConfig().Name, request)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(m.Data, &answer); err != nil {
			return fmt.Errorf("decode an answer of the queue: %w", err)
		}
		if answer.Error != nil && answer.Error.ErrorCode != jetstream.JSErrCodeMessageNotFound {
			return answer.Error
		}
		return nil
	})
	return answer.Message.Sequence, err
}

// quorum reports whether the leader who answered has heard most of its
// followers lately. One that was cut off from them goes on answering for a while.
func quorum(info *jetstream.StreamInfo) bool {
	if info.Cluster == nil {
		return true
	}
	if info.Cluster.Leader == "" { // then a server answers that leads nothing
		return false
	}
	there := 1
	for _, f := range info.Cluster.Replicas {
		if !f.Offline && f.Active < followerSilence {
			there++
		}
	}
	return there > (len(info.Cluster.Replicas)+1)/2
}

// move connects to another server of the cluster: the present one may be alive
// and cut off from the others.
func (s *store) move(why error) {
	if s.conn.IsConnected() && len(s.conn.Servers()) > 1 {
		s.log.Warn("the queue does not answer; another server of the cluster is tried", "server", s.conn.ConnectedUrlRedacted(), "err", why)
		_ = s.conn.ForceReconnect() // fails only when the connection is closed
	}
}
