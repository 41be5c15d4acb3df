package main

import (
	"context"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"github.com/monochromegane/cargo/build"
)

// An entry is what is known of an order: what a server has said, and was read.
type entry struct {
	order

	id    build.ID // accepted
	kills int64    // of workers, before it was
	ended build.Build
	lives int64 // kills of workers since it was accepted, as its end was seen

	askedToStop  bool      // DELETE was sent
	stopAccepted time.Time // 202 to that was read
}

// order has clients that keep builds in flight, until finish.
func (l *loop) order() {
	ctx, cancel := context.WithCancel(l.t.Context())
	l.t.Cleanup(func() { cancel(); l.clients.Wait() })
	for range inFlight {
		l.clients.Go(func() {
			for ctx.Err() == nil {
				select {
				case <-l.over:
					return
				default:
					l.see(ctx, &entry{order: l.newOrder(int(l.number.Add(1)))})
				}
			}
		})
	}
}

// finish has no new orders made, and waits for the end of those that were.
func (l *loop) finish() {
	close(l.over)
	done := make(chan struct{})
	go func() { l.clients.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		for _, e := range l.accepted() {
			if e.ended.ID == "" {
				l.problem("build %s (order %d) has not ended %v after the last harm", e.id, e.n, patience)
			}
		}
		l.t.FailNow()
	}
}

// awaitEnds waits until n more builds have ended, and not for ever: how fast
// the machine is shall not decide whether any do.
func (l *loop) awaitEnds(n int) {
	const most = 20 * time.Second
	began, wanted := time.Now(), l.ends.Load()+int64(n)
	for l.ends.Load() < wanted && time.Since(began) < most {
		pause(l.t.Context(), 5*time.Millisecond)
	}
}

// accepted are the orders that were, as they are now.
func (l *loop) accepted() (all []entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.entries {
		all = append(all, *e)
	}
	return all
}

// set changes an entry that others may look at.
func (l *loop) set(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
}

// see takes an order from its repository to the end of its build.
func (l *loop) see(ctx context.Context, e *entry) {
	l.publish(e.order)
	kills := l.kills.Load()
	id := l.submit(ctx, e.order)
	if id == "" {
		return
	}
	l.set(func() {
		e.id, e.kills = id, kills
		l.entries = append(l.entries, e)
	})
	if e.canceled {
		pause(ctx, e.after)
		l.cancel(ctx, e)
	}
	b := l.await(ctx, e)
	if b.State == build.Succeeded && rand.IntN(4) == 0 { // what is served in the midst of it is whole, too
		l.download(ctx, e.order, b)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// retryPause is the pause of a client that got no answer.
const retryPause = 100 * time.Millisecond

// submit asks for a build until it is accepted and returns its id, or "" when
// the loop is over.
func (l *loop) submit(ctx context.Context, o order) build.ID {
	for ; ctx.Err() == nil; pause(ctx, retryPause) {
		a, ok := l.ask(ctx, http.MethodPost, o.path(), o.token, http.StatusAccepted, http.StatusConflict)
		if !ok {
			continue
		}
		var body struct {
			ID build.ID `json:"build_id"`
		}
		if err := json.Unmarshal(a.body, &body); err != nil || !body.ID.Valid() {
			l.problem("POST %s = %d %s", o.path(), a.StatusCode, a.body)
			return ""
		}
		return body.ID // with 409 that of an earlier answer, which was never read
	}
	return ""
}

// cancel asks for the end of a build until that is accepted, or it has ended.
func (l *loop) cancel(ctx context.Context, e *entry) {
	l.set(func() { e.askedToStop = true })
	for ; ctx.Err() == nil; pause(ctx, retryPause) {
		if a, ok := l.askOf(ctx, e, http.MethodDelete, http.StatusAccepted, http.StatusConflict); ok {
			if a.StatusCode == http.StatusAccepted {
				l.set(func() { e.stopAccepted = time.Now() })
			}
			return
		}
	}
}

// await returns the record of a build as soon as it has ended.
func (l *loop) await(ctx context.Context, e *entry) (b build.Build) {
	for ; ctx.Err() == nil; pause(ctx, retryPause) {
		a, ok := l.askOf(ctx, e, http.MethodGet, http.StatusOK)
		if !ok {
			continue
		}
		if err := json.Unmarshal(a.body, &b); err != nil || b.ID != e.id {
			l.problem("GET /builds/%s = %s", e.id, a.body)
			return build.Build{}
		}
		if b.State.Ended() {
			l.set(func() { e.ended, e.lives = b, l.kills.Load()-e.kills })
			l.ends.Add(1)
			return b
		}
	}
	return build.Build{}
}

// askOf is ask about an accepted build.
func (l *loop) askOf(ctx context.Context, e *entry, method string, want ...int) (reply, bool) {
	return l.ask(ctx, method, "/builds/"+string(e.id), e.token, want...)
}

// ask sends a request to one of the servers. It is not ok if there was no
// whole answer, or 503: then the client comes again. Any other status than
// those that are wanted is a problem, and the client comes again, too.
func (l *loop) ask(ctx context.Context, method, path, token string, want ...int) (reply, bool) {
	urls := l.urls()
	req, err := http.NewRequestWithContext(ctx, method, urls[rand.IntN(len(urls))]+path, nil)
	if err != nil {
		l.problem("%v", err)
		return reply{}, false
	}
	if token != "" {
		req.Header.Set("Authorization", "token "+token)
	}
	resp, err := l.client.Do(req)
	if err != nil {
		return reply{}, false // nobody there, which is not known to be wrong
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return reply{}, false
	}
	switch {
	case slices.Contains(want, resp.StatusCode):
		return reply{resp, body}, true
	case resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != "": // come again
	default:
		l.problem("%s %s = %s %v %s", method, path, resp.Status, resp.Header, body)
		pause(ctx, time.Second)
	}
	return reply{}, false
}
