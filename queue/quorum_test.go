package queue

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// What a server of a cluster answers, seen with two of three servers gone: first
// as the leader that does not know it yet, then as one without a leader, which
// counts itself among the replicas.
func TestQuorum(t *testing.T) {
	const heard, silent = time.Second, 10 * time.Second
	peer := func(active time.Duration, offline bool) *jetstream.PeerInfo {
		return &jetstream.PeerInfo{Active: active, Offline: offline}
	}
	for name, tc := range map[string]struct {
		cluster *jetstream.ClusterInfo
		want    bool
	}{
		"embedded":    {nil, true},
		"one copy":    {&jetstream.ClusterInfo{Leader: "n1"}, true},
		"all there":   {&jetstream.ClusterInfo{Leader: "n1", Replicas: []*jetstream.PeerInfo{peer(heard, false), peer(heard, false)}}, true},
		"one silent":  {&jetstream.ClusterInfo{Leader: "n1", Replicas: []*jetstream.PeerInfo{peer(heard, false), peer(silent, false)}}, true},
		"two silent":  {&jetstream.ClusterInfo{Leader: "n1", Replicas: []*jetstream.PeerInfo{peer(silent, false), peer(silent, false)}}, false},
		"two offline": {&jetstream.ClusterInfo{Leader: "n1", Replicas: []*jetstream.PeerInfo{peer(heard, true), peer(heard, true)}}, false},
		"no leader":   {&jetstream.ClusterInfo{Replicas: []*jetstream.PeerInfo{peer(heard, false), peer(0, false), peer(0, false)}}, false},
	} {
		if got := quorum(&jetstream.StreamInfo{Cluster: tc.cluster}); got != tc.want {
			t.Errorf("%s: quorum = %v", name, got)
		}
	}
}
