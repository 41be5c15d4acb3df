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
	// do does it, and returns whose builds must be taken over by others, nil for
	// nobody's, and how the harm is taken back.
	do func(s *site, random *rand.Rand) (victim *siteWorker, lift func())
}

// harms are all kinds of harm, the three that a short run has first.
var harms = []harm{
	{"kill the leader of the records", true, killLeader("KV_live")},
	{"pause a worker", false, func(s *site, random *rand.Rand) (*siteWorker, func()) {
		w := s.workers[random.IntN(len(s.workers))]
		w.signal(syscall.SIGSTOP)
		return w, func() { w.signal(syscall.SIGCONT) }
	}},
	{"cut off a NATS server", false, func(s *site, random *rand.Rand) (*siteWorker, func()) {
		n := s.nats.nodes[random.IntN(len(s.nats.nodes))]
		if leader := s.nats.leader(s.stream); leader != nil && random.IntN(2) == 0 {
			n = leader
		}
		n.cut()
		return nil, n.mend
	}},
	{"kill the leader of the cluster", true, killLeader("")},
	{"kill a worker", true, func(s *site, random *rand.Rand) (*siteWorker, func()) {
		w := s.workers[random.IntN(len(s.workers))]
		w.kill(s.loop)
		return w, func() {
			w.start()
			s.settle()
			w.left.wantGone(s.loop, w.data)
		}
	}},
	{"kill an API server", true, func(s *site, random *rand.Rand) (*siteWorker, func()) {
		a := s.servers[random.IntN(len(s.servers))]
		a.end(syscall.SIGKILL)
		return nil, a.start
	}},
	{"cut off a worker", false, func(s *site, random *rand.Rand) (*siteWorker, func()) {
		w := s.workers[random.IntN(len(s.workers))]
		w.cut()
		return w, w.mend
	}},
	{"pause a NATS server", false, func(s *site, random *rand.Rand) (*siteWorker, func()) {
		n := s.nats.nodes[random.IntN(len(s.nats.nodes))]
		n.signal(syscall.SIGSTOP)
		return nil, func() { n.signal(syscall.SIGCONT) }
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

// hold is how long a harm lasts at least.
func (h harm) hold(s *site, random *rand.Rand) time.Duration {
	if h.kill { // whoever looks after the processes starts it again
		return time.Duration(random.IntN(2000)) * time.Millisecond
	}
	return s.lease + time.Duration(random.IntN(4000))*time.Millisecond
}
