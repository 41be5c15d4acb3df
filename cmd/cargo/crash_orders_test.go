package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

// An order is a build that a crash loop asks for: a repository of its own, so
// that what it must become is known. All of it follows from the seed of the
// loop and the order's number.
type order struct {
	n        int
	repo     string // owner/name
	token    string // that may read it; "" for everybody
	size     int    // bytes of what it makes
	naps     [2]time.Duration
	canceled bool          // the client thinks better of it
	after    time.Duration // which long after it was accepted
}

// newOrder is order n of the loop.
func (l *loop) newOrder(n int) order {
	random := rand.New(rand.NewPCG(l.seed, uint64(n)))
	o := order{n: n, repo: fmt.Sprintf("owner%d/app%d", random.IntN(5), n), size: 1 << 10}
	nap := func() time.Duration { return time.Duration(20+random.IntN(380)) * time.Millisecond }
	o.naps = [2]time.Duration{nap(), nap()}
	if random.IntN(3) == 0 {
		o.token = l.token
	}
	if random.IntN(3) == 0 { // so that storing takes a moment
		o.size = 300<<10 + random.IntN(400<<10)
	}
	if random.IntN(8) == 0 {
		o.canceled, o.after = true, time.Duration(random.IntN(2000))*time.Millisecond
	}
	return o
}

func (o order) path() string { return "/git.test/" + o.repo + "/linux/amd64/main" }

// made is what the build makes, by name.
func (l *loop) made(o order) map[string][]byte {
	half := l.data(o)
	return map[string][]byte{"out.bin": append(half, half...), "number.txt": fmt.Appendf(nil, "%d\n", o.n)}
}

// data is what the repository has: nothing that could be compressed.
func (l *loop) data(o order) []byte {
	var b bytes.Buffer
	for random := rand.New(rand.NewPCG(l.seed, ^uint64(o.n))); b.Len() < o.size/2; {
		b.Write(fmt.Appendf(nil, "%016x", random.Uint64()))
	}
	return b.Bytes()[:o.size/2]
}

// publish makes the order's repository. Each run of its Makefile writes a name
// of its own into the log.
func (l *loop) publish(o order) {
	l.host.Repository(o.repo).Commit("main", gitsrctest.Files(map[string]string{
		"data": string(l.data(o)),
		"Makefile": fmt.Sprintf(`all:
	@run=$$(cat /proc/sys/kernel/random/uuid) && echo "begin $$run" && sleep %.2f && echo "still $$run" && sleep %.2f && \
	cat data data > out.bin && echo %d > number.txt && echo "end $$run"
`, o.naps[0].Seconds(), o.naps[1].Seconds(), o.n)}))
	l.host.Protect(o.repo, o.token)
}
