package main

import (
	"math/rand/v2"
	"syscall"
	"time"
)

// A harm is something that happens to a site.
type harm struct {
	name string
	// kill: what died is dead, so that no two attempts of a build overlap.
	kill bool
	// down: nothing can be accepted for as long as it lasts.
	down bool
	// do does it, and returns whose builds must be taken over by others, nil for
	// nobody's, and how the harm is taken back.
	do func(s *site, random *rand.Rand) (victim *siteWorker, lift func())
}

// harms are all kinds of harm, the three that a short run has first.
var harms = []harm{
	{name: "kill the leader of the records", kill: true, do: killLeader("KV_live")},
	{name: "pause a worker", do: func(s *site, random *rand.Rand) (*siteWorker, func()) {
		w := s.workers[random.IntN(len(s.workers))]
		switch random.IntN(3) {
		case 0:
			w.awaitEndOfCommand()
		case 1:
			s.awaitArchive()
		}
		w.signal(syscall.SIGSTOP)
		return w, func() { w.signal(syscall.SIGCONT) }
	}},
	{name: "cut off a NATS server", do: func(s *site, random *rand.Rand) (*siteWorker, func()) {
		n := s.nats.nodes[random.IntN(len(s.nats.nodes))]
		if leader := s.nats.leader(s.stream); leader != nil && random.IntN(2) == 0 {
			n = leader
		}
		n.cut()
		return nil, n.mend
	}},
	{name: "kill the leader of the cluster", kill: true, do: killLeader("")},
	{name: "kill a worker", kill: true, do: func(s *site, random *rand.Rand) (*siteWorker, func()) {
		w := s.workers[random.IntN(len(s.workers))]
		w.kill(s.loop)
		return w, func() {
			w.start()
			s.settle()
			w.left.wantGone(s.loop, w.data)
		}
	}},
	{name: "kill an API server", kill: true, do: func(s *site, random *rand.Rand) (*siteWorker, func()) {
		a := s.servers[random.IntN(len(s.servers))]
		a.end(syscall.SIGKILL)
		return nil, a.start
	}},
	{name: "cut off a worker", do: func(s *site, random *rand.Rand) (*siteWorker, func()) {
		w := s.workers[random.IntN(len(s.workers))]
		w.cut()
		return w, w.mend
	}},
	{name: "pause a NATS server", do: func(s *site, random *rand.Rand) (*siteWorker, func()) {
		n := s.nats.nodes[random.IntN(len(s.nats.nodes))]
		n.signal(syscall.SIGSTOP)
		return nil, func() { n.signal(syscall.SIGCONT) }
	}},
	{name: "take the quorum away", down: true, do: func(s *site, random *rand.Rand) (*siteWorker, func()) {
		one := random.IntN(3)
		pair := []*natsNode{s.nats.nodes[one], s.nats.nodes[(one+1)%3]}
		for _, n := range pair {
			n.signal(syscall.SIGSTOP)
		}
		return nil, func() {
			for _, n := range pair {
				n.signal(syscall.SIGCONT)
			}
		}
	}},
	{name: "kill the S3 server", down: true, do: func(s *site, _ *rand.Rand) (*siteWorker, func()) {
		s.s3.end(syscall.SIGKILL)
		return nil, s.s3.start
	}},
	{name: "pause the S3 server", down: true, do: func(s *site, _ *rand.Rand) (*siteWorker, func()) {
		s.s3.signal(syscall.SIGSTOP)
		return nil, func() { s.s3.signal(syscall.SIGCONT) }
	}},
}

const shortHarms = 3

func killLeader(stream string) func(*site, *rand.Rand) (*siteWorker, func()) {
	return func(s *site, random *rand.Rand) (*siteWorker, func()) {
		name := stream
		if name != "" {
			name = s.stream
		}
		var leader *natsNode
		until(s.t, "there is a leader", func() bool { leader = s.nats.leader(name); return leader != nil })
		leader.end(syscall.SIGKILL)
		return nil, leader.process.start
	}
}

// kill ends the worker with SIGKILL and notes what it leaves.
func (w *siteWorker) kill(l *loop) {
	w.end(syscall.SIGKILL)
	w.left.add(l, w.data)
}

// awaitEndOfCommand returns when a container of the worker's has just ended:
// then it is about to store what was made.
func (w *siteWorker) awaitEndOfCommand() {
	before := w.running()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		now := w.running()
		for id := range before {
			if !now[id] {
				return
			}
		}
		before = now
	}
}

// awaitArchive returns when an archive has just arrived on S3: then a worker is
// about to say whose it is.
func (s *site) awaitArchive() {
	before := len(glob(s.objects, "blobs/*"))
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Microsecond) {
		if len(glob(s.objects, "blobs/*")) != before {
			return
		}
	}
}

// hold is how long a harm lasts at least.
func (h harm) hold(s *site, random *rand.Rand) time.Duration {
	if h.kill { // whoever looks after the processes starts it again
		return time.Duration(random.IntN(2000)) * time.Millisecond
	}
	return s.lease + time.Duration(random.IntN(4000))*time.Millisecond
}
