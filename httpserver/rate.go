package httpserver

import (
	"cmp"
	"container/heap"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// errTooMany is what a caller hears who asks too often.
var errTooMany = errors.New("too many requests")

// A Rate is how often one caller may ask.
type Rate struct {
	PerMinute int // 0 means as often as it likes
	Burst     int // how many at once after a pause; 0 means a minute's worth
}

func (r Rate) times(n int) Rate { return Rate{PerMinute: n * r.PerMinute, Burst: n * r.Burst} }

// A slowError is errTooMany with what to do about it.
type slowError struct {
	rate int // requests a minute
	wait time.Duration
}

func (e *slowError) Error() string {
	return fmt.Sprintf("%v: you may send %d of this kind a minute; try again in %d s", errTooMany, e.rate, seconds(e.wait))
}

func (e *slowError) Unwrap() error { return errTooMany }

// seconds rounds up: who waits so long has waited long enough.
func seconds(d time.Duration) int { return int(math.Ceil(d.Seconds())) }

// maxBuckets is how many callers a meter tells apart at once.
const maxBuckets = 10_000

// A meter gives each caller a bucket of tokens that fills up again. A full
// bucket says nothing that a new one would not, so only those that are not
// full are kept. None of them is ever dropped for another: whoever comes while
// there are maxBuckets of them shares one bucket with all who do. So a caller
// with many addresses gets no full bucket back by filling the table, and
// whoever asked before it keeps its own.
type meter struct {
	perMinute int
	burst     int

	mu      sync.Mutex
	buckets map[caller]*bucket
	byFull  fullest
	shared  *bucket
}

// newMeter returns nil, which lets everything through, for a rate without limit.
func newMeter(r Rate) *meter {
	if r.PerMinute <= 0 {
		return nil
	}
	m := &meter{perMinute: r.PerMinute, burst: cmp.Or(r.Burst, r.PerMinute), buckets: map[caller]*bucket{}}
	m.shared = m.newBucket(caller{})
	return m
}

func (m *meter) newBucket(c caller) *bucket {
	return &bucket{caller: c, Limiter: rate.NewLimiter(rate.Limit(m.perMinute)/60, m.burst)}
}

// take takes a token of c's, or returns a *slowError if it has none now.
func (m *meter) take(c caller) error {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	b := m.bucket(c, now)
	if !b.AllowN(now, 1) {
		return &slowError{rate: m.perMinute, wait: b.until(1, now)}
	}
	b.full = now.Add(b.until(m.burst, now))
	if b != m.shared {
		heap.Fix(&m.byFull, b.index)
	}
	return nil
}

func (m *meter) bucket(c caller, now time.Time) *bucket {
	if b := m.buckets[c]; b != nil {
		return b
	}
	for len(m.byFull) > 0 && !m.byFull[0].full.After(now) {
		delete(m.buckets, heap.Pop(&m.byFull).(*bucket).caller)
	}
	if len(m.buckets) == maxBuckets {
		return m.shared
	}
	b := m.newBucket(c)
	m.buckets[c] = b
	heap.Push(&m.byFull, b)
	return b
}

// A bucket is one caller's.
type bucket struct {
	caller
	*rate.Limiter
	full  time.Time // when it will be, if nothing is taken meanwhile
	index int       // in the heap
}

// until is how long it takes for the bucket to hold n tokens.
func (b *bucket) until(n int, now time.Time) time.Duration {
	missing := float64(n) - b.TokensAt(now)
	return time.Duration(math.Ceil(missing / float64(b.Limit()) * float64(time.Second)))
}

// A fullest is a heap of buckets, the one that is full first on top.
type fullest []*bucket

func (h fullest) Len() int           { return len(h) }
func (h fullest) Less(i, j int) bool { return h[i].full.Before(h[j].full) }
func (h fullest) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *fullest) Push(x any) {
	b := x.(*bucket)
	b.index = len(*h)
	*h = append(*h, b)
}

func (h *fullest) Pop() any {
	last := len(*h) - 1
	b := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return b
}
