package queue

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// leaveTimeout bounds what a worker does to leave, which it does by itself, too,
// or to come back.
const leaveTimeout = 5 * time.Second

// A Membership is the place of this process among the workers of a queue.
type Membership struct {
	q       *Queue
	fleet   *fleet
	entry   announcement
	running func() int
	rev     uint64 // of the entry; run's, and after it Close's

	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{} // closed when run has ended

	mu       sync.Mutex
	draining bool
	drainRev uint64
	changed  chan struct{} // closed, and replaced, when draining changes
}

// Join announces this process as the worker w until Close, and how many builds
// running says that it runs, six times in a lease. The name stands for one
// process: ErrNameTaken if another one that lives has it.
//
// A process of this machine that is dead gives way at once. Of another one,
// as in a container that is no more, nothing is known but what it writes: then
// Join takes one and a half of its renewals, as a rule 15 s, to see that
// it writes no more.
func (q *Queue) Join(ctx context.Context, w Worker, running func() int) (*Membership, error) {
	m := &Membership{
		q:       q,
		entry:   announcement{Form: 1, Worker: w, Instance: rand.Text(), Process: thisProcess(), Every: q.lease / 6},
		running: running,
		done:    make(chan struct{}),
		changed: make(chan struct{}),
	}
	err := w.check()
	if err == nil {
		err = m.enter(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("join as worker %.150q: %w", w.Name, err)
	}
	m.ctx, m.cancel = context.WithCancel(q.ctx)
	q.wg.Go(m.run)
	return m, nil
}

// enter takes the name, and reads what has been said to whoever has it.
func (m *Membership) enter(ctx context.Context) error {
	for {
		there, err := m.look(ctx)
		if err != nil {
			return err
		}
		if there.rev != 0 && there.Instance != m.entry.Instance {
			if there, err = m.outlive(ctx, there); err != nil {
				return err
			}
		}
		err = m.q.withFleet(ctx, true, "announce it", func(ctx context.Context, f *fleet) error {
			m.fleet, m.rev = f, there.rev
			if err := m.readDrain(ctx); err != nil {
				return err
			}
			if err := m.leaveImage(ctx); err != nil {
				return err
			}
			return m.announce(ctx)
		})
		if !errors.Is(err, errBehind) {
			return err
		}
	}
}

// A predecessor is the entry that stands under our name, at rev 0 if none does.
type predecessor struct {
	announcement
	rev uint64
}

func (m *Membership) look(ctx context.Context) (p predecessor, err error) {
	err = m.q.withFleet(ctx, true, "look for its name", func(ctx context.Context, f *fleet) error {
		msg, err := f.get(ctx, entryKey+m.entry.Name)
		if errors.Is(err, ErrNotFound) {
			p = predecessor{}
			return nil
		}
		if err != nil {
			return err
		}
		p = predecessor{rev: msg.Sequence}
		if err := json.Unmarshal(msg.Data, &p.announcement); err != nil {
			p.announcement = announcement{} // what cannot be read may be alive all the same
		}
		return nil
	})
	return p, err
}

// outlive waits until it is known that p is dead, and returns what then stands
// in its place: p as it was, or nothing.
func (m *Membership) outlive(ctx context.Context, p predecessor) (predecessor, error) {
	if p.Process.dead() {
		return p, nil
	}
	const looks = 6 // in one and a half of its renewals
	every := min(max(p.Every, m.entry.Every), time.Minute)
	for range looks {
		if err := rest(ctx, every/4); err != nil {
			return p, err
		}
		now, err := m.look(ctx)
		if err != nil || now.rev == 0 {
			return now, err
		}
		if now.rev != p.rev {
			return now, fmt.Errorf("%w: it runs on host %q as process %d, since %s; stop that one, or give this one another name",
				ErrNameTaken, now.Host, now.Process.ID, now.Started.Format(time.RFC3339))
		}
	}
	return p, nil
}

// announce writes the entry as it is now.
func (m *Membership) announce(ctx context.Context) error {
	if m.running != nil {
		m.entry.Running = m.running()
	}
	data, err := json.Marshal(m.entry)
	if err != nil {
		return err
	}
	rev, err := m.fleet.put(ctx, entryKey+m.entry.Name, data, m.rev)
	if err == nil {
		m.rev = rev
	}
	return err
}

// leaveImage notes the image for those who accept builds while no worker is there.
func (m *Membership) leaveImage(ctx context.Context) error {
	if m.entry.ImageDigest == "" {
		return nil
	}
	return m.fleet.set(ctx, imageKey, []byte(m.entry.ImageDigest))
}

// run renews the entry and listens to Drain. Each renewal also reads what Drain
// has said, so that a watch that hears nothing any more delays it, no more.
func (m *Membership) run() {
	defer close(m.done)
	ticker := time.NewTicker(m.entry.Every)
	defer ticker.Stop()
	m.timed("remove workers that are gone", func(ctx context.Context) error { return m.fleet.forget(ctx, vanish) })
	w := m.watch()
	for {
		var updates <-chan jetstream.KeyValueEntry
		if w != nil {
			updates = w.Updates()
		}
		select {
		case <-ticker.C:
			m.timed("announce this worker", m.renew)
			m.timed("read whether this worker is drained", m.readDrain)
			if w == nil {
				w = m.watch()
			}
		case e, ok := <-updates:
			if !ok {
				w = nil
			} else if e != nil && e.Operation() == jetstream.KeyValuePut {
				m.heard(e.Value(), e.Revision())
			}
		case <-m.ctx.Done():
			return // which also ends the watch
		}
	}
}

// timed does something in the time of one renewal. What fails is done again at
// the next.
func (m *Membership) timed(doing string, do func(context.Context) error) {
	ctx, cancel := context.WithTimeout(m.ctx, m.entry.Every)
	defer cancel()
	if err := do(ctx); err != nil && m.ctx.Err() == nil {
		m.q.log.Warn("a worker could not be tended", "doing", doing, "worker", m.entry.Name, "err", err)
	}
}

// renew announces again. Where somebody else has removed the entry it is made
// anew; where somebody else has taken the name, as while this process was
// stopped, it is left alone until that one is gone.
func (m *Membership) renew(ctx context.Context) error {
	err := m.announce(ctx)
	if errors.Is(err, ErrUnavailable) {
		return m.reenter(err) // ctx may be over by now
	}
	if !errors.Is(err, errBehind) {
		return err
	}
	msg, err := m.fleet.get(ctx, entryKey+m.entry.Name)
	var now announcement
	switch {
	case errors.Is(err, ErrNotFound):
		m.rev = 0
	case err != nil:
		return err
	case json.Unmarshal(msg.Data, &now) == nil && now.Instance == m.entry.Instance:
		m.rev = msg.Sequence // an earlier renewal did it and never knew
	default:
		return fmt.Errorf("%w: it came while this one was silent, and runs on host %q as process %d; stop one of them", ErrNameTaken, now.Host, now.Process.ID)
	}
	return m.announce(ctx)
}

// reenter announces in a bucket that was made anew, if that is why: it was kept
// in memory, say, or lost with the whole queue.
func (m *Membership) reenter(why error) error {
	ctx, cancel := context.WithTimeout(m.ctx, leaveTimeout)
	defer cancel()
	f, err := m.q.fleet(ctx, true)
	if err != nil || f.stream.CachedInfo().Created.Equal(m.fleet.stream.CachedInfo().Created) {
		return why
	}
	m.q.log.Warn("the bucket of the workers was made anew", "worker", m.entry.Name)
	m.fleet, m.rev = f, 0
	if err := m.leaveImage(ctx); err != nil {
		return err
	}
	return m.announce(ctx)
}

// watch is nil if there can be none now.
func (m *Membership) watch() jetstream.KeyWatcher {
	w, err := m.fleet.kv.Watch(m.ctx, drainKey+m.entry.Name)
	if err != nil { // the next renewal tries again
		m.q.log.Debug("drains cannot be watched", "worker", m.entry.Name, "err", err)
		return nil
	}
	return w
}

func (m *Membership) readDrain(ctx context.Context) error {
	msg, err := m.fleet.get(ctx, drainKey+m.entry.Name)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err == nil {
		m.heard(msg.Data, msg.Sequence)
	}
	return err
}

// heard takes over what Drain has said, unless something newer is known.
func (m *Membership) heard(data []byte, rev uint64) {
	var d drain
	if err := json.Unmarshal(data, &d); err != nil {
		m.q.log.Warn("unreadable word on draining this worker", "worker", m.entry.Name, "err", err)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if rev <= m.drainRev {
		return
	}
	m.drainRev = rev
	if d.On == m.draining {
		return
	}
	m.q.log.Info("drain", "worker", m.entry.Name, "on", d.On)
	m.draining = d.On
	close(m.changed)
	m.changed = make(chan struct{})
}

// Draining reports whether this worker shall take no more builds. changed is
// closed when that is not so any more.
func (m *Membership) Draining() (on bool, changed <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.draining, m.changed
}

// Close takes this worker off the list. Whether it is to be drained is kept for
// the next of its name.
func (m *Membership) Close() error {
	m.cancel()
	<-m.done
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.ctx), leaveTimeout)
	defer cancel()
	if err := m.fleet.remove(ctx, entryKey+m.entry.Name, m.rev); err != nil {
		return fmt.Errorf("leave the workers: %w", m.q.explain(err))
	}
	return nil
}
