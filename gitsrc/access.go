package gitsrc

import (
	"container/list"
	"context"
	"crypto/sha256"
	"sync"
	"time"
)

// How long an answer about access holds, and what all answers may take.
const (
	positiveAge = time.Minute
	negativeAge = 5 * time.Second
	staleAge    = time.Hour // of a public listing, while the host is unreachable

	maxAnswers     = 4096
	maxAnswerBytes = 8 << 20 // more is remembered without its refs
	maxCacheBytes  = 32 << 20
)

type cacheKey [sha256.Size]byte

// An answer is what a git host said about a repository to one token.
type answer struct {
	at      time.Time // when the question was asked
	denied  bool
	tips    tips
	partial bool // tips were too many to be kept
}

// fresh reports whether a still holds for a caller who accepts maxAge.
func (a answer) fresh(maxAge time.Duration) bool {
	if a.denied {
		return time.Since(a.at) < min(maxAge, negativeAge)
	}
	return time.Since(a.at) < min(maxAge, positiveAge)
}

// A cache holds the answers that were used last.
type cache struct {
	mu      sync.Mutex
	entries map[cacheKey]*list.Element // of *cacheEntry
	recent  *list.List                 // the most recently used at the front
	bytes   int64
}

type cacheEntry struct {
	key    cacheKey
	answer answer
	bytes  int64
}

func newCache() *cache {
	return &cache{entries: make(map[cacheKey]*list.Element), recent: list.New()}
}

func (c *cache) get(key cacheKey) (answer, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[key]
	if !ok {
		return answer{}, false
	}
	c.recent.MoveToFront(e)
	return e.Value.(*cacheEntry).answer, true
}

// put keeps a in place of an older answer to the same question.
func (c *cache) put(key cacheKey, a answer) {
	const overhead = 256
	bytes := a.tips.bytes()
	if bytes > maxAnswerBytes {
		a.tips, a.partial, bytes = nil, true, 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.entries[key]; ok {
		if e.Value.(*cacheEntry).answer.at.After(a.at) {
			return
		}
		c.remove(e)
	}
	c.entries[key] = c.recent.PushFront(&cacheEntry{key, a, bytes + overhead})
	c.bytes += bytes + overhead
	for c.bytes > maxCacheBytes || len(c.entries) > maxAnswers {
		c.remove(c.recent.Back())
	}
}

func (c *cache) remove(e *list.Element) {
	entry := c.recent.Remove(e).(*cacheEntry)
	delete(c.entries, entry.key)
	c.bytes -= entry.bytes
}

// flights make one question of equal ones that are asked at the same time.
type flights struct {
	mu      sync.Mutex
	running map[cacheKey]*flight
}

type flight struct {
	cancel  context.CancelFunc
	waiting int
	done    chan struct{} // closed when answer and err are set
	answer  answer
	err     error
}

// do returns what ask returns, for this caller or for an earlier one with the
// same key whose question is still open. A caller whose ctx ends leaves; the
// last one to leave ends the question and waits for that.
func (g *flights) do(ctx context.Context, key cacheKey, ask func(context.Context) (answer, error)) (answer, error) {
	f := g.join(ctx, key, ask)
	select {
	case <-f.done:
		return f.answer, f.err
	case <-ctx.Done():
	}
	if g.leave(key, f) {
		f.cancel()
		<-f.done
	}
	return answer{}, context.Cause(ctx)
}

func (g *flights) join(ctx context.Context, key cacheKey, ask func(context.Context) (answer, error)) *flight {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f, ok := g.running[key]; ok {
		f.waiting++
		return f
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f := &flight{cancel: cancel, waiting: 1, done: make(chan struct{})}
	if g.running == nil {
		g.running = make(map[cacheKey]*flight)
	}
	g.running[key] = f
	go func() {
		defer close(f.done)
		defer cancel()
		f.answer, f.err = ask(ctx)
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.running[key] == f {
			delete(g.running, key)
		}
	}()
	return f
}

// leave reports whether nobody waits for f any more.
func (g *flights) leave(key cacheKey, f *flight) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	f.waiting--
	if f.waiting > 0 {
		return false
	}
	if g.running[key] == f {
		delete(g.running, key)
	}
	return true
}
