package gitsrc

import (
	"crypto/sha256"
	"fmt"
	"testing"
	"time"
)

// What the cache takes can be seen from within only.
func TestCacheIsBounded(t *testing.T) {
	key := func(i int) cacheKey { return sha256.Sum256(fmt.Append(nil, i)) }
	c := newCache()
	for i := range maxAnswers + 100 {
		c.put(key(i), answer{at: time.Now()})
		c.get(key(0)) // stays, being in use
	}
	if len(c.entries) != maxAnswers || c.recent.Len() != maxAnswers {
		t.Errorf("%d entries, %d in the list; want %d", len(c.entries), c.recent.Len(), maxAnswers)
	}
	if _, ok := c.get(key(0)); !ok {
		t.Error("the answer in use is gone")
	}
	if _, ok := c.get(key(1)); ok {
		t.Error("the oldest answer is there")
	}

	large := answer{at: time.Now(), tips: make(tips, 30_000)}
	for i := range 100 {
		c.put(key(i), large)
	}
	if c.bytes > maxCacheBytes {
		t.Errorf("it takes %d bytes, more than %d", c.bytes, maxCacheBytes)
	}
	if a, ok := c.get(key(99)); !ok || len(a.tips) != len(large.tips) {
		t.Error("the newest listing is gone")
	}
	c.put(key(0), answer{at: time.Now(), tips: make(tips, 300_000)})
	if a, ok := c.get(key(0)); !ok || !a.partial || a.tips != nil {
		t.Error("a listing that is too large is kept, or that there is one is not")
	}
	for e := c.recent.Front(); e != nil; e = c.recent.Front() {
		c.remove(e)
	}
	if c.bytes != 0 || len(c.entries) != 0 {
		t.Errorf("an empty cache has %d entries of %d bytes", len(c.entries), c.bytes)
	}
}

// An answer does not replace one to a later question.
func TestCacheKeepsTheLatest(t *testing.T) {
	c, now := newCache(), time.Now()
	c.put(cacheKey{}, answer{at: now, denied: true})
	c.put(cacheKey{}, answer{at: now.Add(-time.Second)})
	if a, _ := c.get(cacheKey{}); !a.denied {
		t.Error("the older answer is there")
	}
}
