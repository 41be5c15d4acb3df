package main

import (
	"bytes"
	"regexp"
	"testing"

	"github.com/monochromegane/cargo/queue"
)

// Workers that a label names are drained, and take builds again, by hand.
func TestDrainByHand(t *testing.T) {
	t.Parallel()
	address := natsAlone(t, t.TempDir(), "nats", "")
	q, err := queue.Open(t.Context(), queue.Options{Cluster: &queue.Cluster{URLs: []string{"nats://" + address}, Replicas: 1}, Worker: "api"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.Close() })
	for name, zone := range map[string]string{"w1": "a", "w2": "a", "w3": "b"} {
		m, err := q.Join(t.Context(), queue.Worker{Name: name, Labels: map[string]string{"zone": zone}, Concurrency: 2}, func() int { return 0 })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Close() })
	}
	data := t.TempDir()
	for _, tc := range []struct {
		args []string
		says string
	}{
		{[]string{"drain", "zone=a"}, `\Aw1 ends its builds and takes no more\nw2 ends its builds and takes no more\n\z`},
		{[]string{"status"}, `(?s)w1 +draining .*w2 +draining .*w3 +active `},
		{[]string{"drain", "--undo", "w2"}, `\Aw2 takes builds again\n\z`},
		{[]string{"status"}, `(?s)w1 +draining .*w2 +active .*w3 +active `},
	} {
		args := append([]string{"cargo", "queue", tc.args[0]}, "--queue", "nats://"+address, "--queue-replicas", "1", "--data-dir", data)
		var out, said bytes.Buffer
		code := run(t.Context(), append(args, tc.args[1:]...), &out, &said)
		if code != exitOK || !regexp.MustCompile(tc.says).Match(out.Bytes()) {
			t.Errorf("%q: exit status %d, want a word of %s:\n%s%s", tc.args, code, tc.says, out.String(), said.String())
		}
	}
}

// A worker that lacks a label is not meant by an empty value of it.
func TestCalled(t *testing.T) {
	w := queue.Worker{Name: "a-1", Labels: map[string]string{"zone": "a"}}
	for who, want := range map[string]bool{
		"a-1": true, "zone=a": true,
		"a-2": false, "zone=b": false, "zone": false, "zone=": false, "os=": false, "=": false, "=a": false, "": false,
	} {
		if got := called(w, who); got != want {
			t.Errorf("called(%q) = %t, want %t", who, got, want)
		}
	}
}
