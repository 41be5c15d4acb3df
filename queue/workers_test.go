package queue

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func testWorker(name string) Worker {
	return Worker{
		Name: name, Host: "h", Labels: map[string]string{"os": "linux", "zone": "a"}, Executor: "docker", Version: "v1",
		Concurrency: 4, Image: "golang", ImageDigest: "sha256:" + name, Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
}

func join(t *testing.T, q *Queue, w Worker, running func() int) *Membership {
	t.Helper()
	m, err := q.Join(t.Context(), w, running)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

func leave(t *testing.T, m *Membership) {
	t.Helper()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
}

func listWorkers(t *testing.T, q *Queue) []Worker {
	t.Helper()
	all, err := q.Workers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// comes waits until ok holds.
func comes(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it does not come that %s", what)
		}
	}
}

func testFleet(t *testing.T, q *Queue) *fleet {
	t.Helper()
	f, err := q.fleet(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// enters writes an announcement as another process would.
func enters(t *testing.T, f *fleet, a announcement) {
	t.Helper()
	data, err := json.Marshal(a)
	if err == nil {
		err = f.set(t.Context(), entryKey+a.Name, data)
	}
	if err != nil {
		t.Error(err)
	}
}

func TestWorkersOfAnEmptyQueue(t *testing.T) {
	q := openTest(t, 0)
	if all := listWorkers(t, q); len(all) != 0 {
		t.Errorf("workers: %v", all)
	}
	if digest, err := q.Image(t.Context()); err != nil || digest != "" {
		t.Errorf("Image = %q, %v", digest, err)
	}
	if err := q.Drain(t.Context(), "w", true); !errors.Is(err, ErrNoWorker) {
		t.Errorf("Drain = %v", err)
	}
	if _, err := q.store.js.KeyValue(t.Context(), "workers"); err == nil {
		t.Error("looking made the bucket")
	}
}

func TestJoinAndLeave(t *testing.T) {
	q := openTest(t, 600*time.Millisecond)
	var running atomic.Int64
	b := join(t, q, testWorker("b"), func() int { return int(running.Load()) })
	a := join(t, q, testWorker("a.1_x-y"), nil)
	want := []Worker{testWorker("a.1_x-y"), testWorker("b")}
	got := listWorkers(t, q)
	for i := range got {
		if got[i].Silent < 0 || got[i].Silent > time.Minute {
			t.Errorf("%s is silent for %s", got[i].Name, got[i].Silent)
		}
		got[i].Silent = 0
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("workers (-want +got):\n%s", diff)
	}
	running.Store(3)
	comes(t, "it says that it runs 3", func() bool { return listWorkers(t, q)[1].Running == 3 })
	leave(t, a)
	if got := listWorkers(t, q); len(got) != 1 || got[0].Name != "b" {
		t.Errorf("workers: %v", got)
	}
	leave(t, b)
	leave(t, b) // again
	if digest, err := q.Image(t.Context()); err != nil || digest != "sha256:a.1_x-y" {
		t.Errorf("Image = %q, %v; want that of who joined last", digest, err)
	}
}

func TestWhatCannotBeAnnounced(t *testing.T) {
	q := openTest(t, 0)
	for name, change := range map[string]func(*Worker){
		"no name":     func(w *Worker) { w.Name = "" },
		"name":        func(w *Worker) { w.Name = "a..b" },
		"wildcard":    func(w *Worker) { w.Name = "a.*" },
		"long name":   func(w *Worker) { w.Name = strings.Repeat("n", maxName+1) },
		"label":       func(w *Worker) { w.Labels = map[string]string{"a": "b c"} },
		"long text":   func(w *Worker) { w.Image = strings.Repeat("i", maxWorkerText+1) },
		"long labels": func(w *Worker) { w.Labels = map[string]string{"a": strings.Repeat("b", maxLabelText+1)} },
	} {
		w := testWorker("w")
		change(&w)
		if _, err := q.Join(t.Context(), w, nil); err == nil {
			t.Errorf("%s: joined", name)
		}
	}
	if got := listWorkers(t, q); len(got) != 0 {
		t.Errorf("workers: %v", got)
	}
}

func TestNameOfALivingWorker(t *testing.T) {
	q := openTest(t, 600*time.Millisecond)
	join(t, q, testWorker("w"), nil)
	_, err := q.Join(t.Context(), testWorker("w"), nil)
	if !errors.Is(err, ErrNameTaken) || !strings.Contains(err.Error(), `host "h"`) {
		t.Errorf("Join = %v", err)
	}
	if got := listWorkers(t, q); len(got) != 1 {
		t.Errorf("workers: %v", got)
	}
}

// A process that is known to be dead is not waited for.
func TestNameOfADeadProcess(t *testing.T) {
	q := openTest(t, time.Hour)
	f := testFleet(t, q)
	cmd := exec.CommandContext(t.Context(), "true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dead := thisProcess()
	dead.ID = cmd.Process.Pid
	dead.Start, _, _ = startOf(dead.ID)
	comes(t, "its end is seen before its parent waits", dead.dead)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	reused := thisProcess()
	reused.Start--
	for i, p := range []process{dead, reused} {
		a := announcement{Worker: testWorker("w"), Instance: "another", Process: p}
		enters(t, f, a)
		w := testWorker("w")
		w.Concurrency = 10 + i
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // it would wait for longer
		defer cancel()
		m, err := q.Join(ctx, w, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := listWorkers(t, q); len(got) != 1 || got[0].Concurrency != w.Concurrency {
			t.Errorf("workers: %v", got)
		}
		leave(t, m)
	}
}

func TestProcessesThatMayLive(t *testing.T) {
	here := thisProcess()
	if here.Boot == "" || here.Space == "" || here.Start == 0 {
		t.Fatalf("nothing is known of this process: %+v", here)
	}
	child := exec.CommandContext(t.Context(), "true")
	if err := child.Run(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*process){
		"ourselves":            func(*process) {},
		"our parent":           func(p *process) { p.ID = os.Getppid(); p.Start, _, _ = startOf(p.ID) },
		"of another machine":   func(p *process) { p.ID, p.Boot = child.Process.Pid, "another" },
		"of another container": func(p *process) { p.ID, p.Space = child.Process.Pid, "pid:[1]" },
		"nothing known":        func(p *process) { *p = process{} },
	} {
		p := here
		change(&p)
		if p.dead() {
			t.Errorf("%s is dead: %+v", name, p)
		}
	}
}

// Of a process of another machine only silence tells.
func TestNameOfASilentWorker(t *testing.T) {
	q := openTest(t, 600*time.Millisecond)
	f := testFleet(t, q)
	a := announcement{Worker: testWorker("w"), Instance: "another", Process: process{Boot: "another", ID: 1}, Every: time.Millisecond}
	enters(t, f, a)
	m := join(t, q, testWorker("w"), nil)

	// It was only paused, and comes back: nobody overwrites it, and when it goes the name is ours again.
	a.Host = "back"
	enters(t, f, a)
	if err := m.renew(t.Context()); !errors.Is(err, ErrNameTaken) {
		t.Errorf("renew = %v", err)
	}
	if got := listWorkers(t, q); len(got) != 1 || got[0].Host != "back" {
		t.Errorf("workers: %v", got)
	}
	msg, err := f.get(t.Context(), entryKey+"w")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.remove(t.Context(), entryKey+"w", msg.Sequence); err != nil {
		t.Fatal(err)
	}
	comes(t, "it announces itself again", func() bool {
		got := listWorkers(t, q)
		return len(got) == 1 && got[0].Host == "h"
	})
}

func TestDrain(t *testing.T) {
	q := openTest(t, time.Hour) // no renewal helps
	m := join(t, q, testWorker("w"), nil)
	on, changed := m.Draining()
	if on {
		t.Fatal("it is drained from the start")
	}
	if err := q.Drain(t.Context(), "x", true); !errors.Is(err, ErrNoWorker) {
		t.Errorf("Drain of nobody = %v", err)
	}
	turn := func(want bool) {
		t.Helper()
		if err := q.Drain(t.Context(), "w", want); err != nil {
			t.Fatal(err)
		}
		select {
		case <-changed:
		case <-time.After(time.Minute):
			t.Fatal("the worker is not told")
		}
		if on, changed = m.Draining(); on != want {
			t.Errorf("draining: %v, want %v", on, want)
		}
		if got := listWorkers(t, q); len(got) != 1 || got[0].Draining != want {
			t.Errorf("workers: %+v", got)
		}
	}
	turn(true)
	turn(false)
	turn(true)
	if err := m.renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	if on, _ = m.Draining(); !on || !listWorkers(t, q)[0].Draining {
		t.Error("a renewal ended the drain")
	}
	leave(t, m)

	m = join(t, q, testWorker("w"), nil)
	if on, changed = m.Draining(); !on {
		t.Error("a restart ended the drain")
	}
	leave(t, m)
	if err := q.Drain(t.Context(), "w", false); err != nil {
		t.Errorf("Drain while it is away = %v", err)
	}
	m = join(t, q, testWorker("w"), nil)
	if on, changed = m.Draining(); on {
		t.Error("the drain that ended while it was away goes on")
	}
	turn(true)
}

// An operator's command comes through the socket.
func TestDrainFromAnotherProcess(t *testing.T) {
	dir := t.TempDir()
	q, err := Open(t.Context(), Options{Dir: dir, Worker: "w", Lease: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.Close() })
	guest, err := Dial(t.Context(), filepath.Join(dir, "socket"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = guest.Close() })
	if all := listWorkers(t, guest); len(all) != 0 {
		t.Errorf("workers: %v", all)
	}
	m := join(t, q, testWorker("w"), nil)
	_, changed := m.Draining()
	if err := guest.Drain(t.Context(), "w", true); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	case <-time.After(time.Minute):
		t.Fatal("the worker is not told")
	}
	if all := listWorkers(t, guest); len(all) != 1 || !all[0].Draining {
		t.Errorf("workers: %v", all)
	}
}

// An answer that comes late does not count.
func TestDrainInTheWrongOrder(t *testing.T) {
	q := openTest(t, time.Hour)
	m := join(t, q, testWorker("w"), nil)
	_, changed := m.Draining()
	m.heard([]byte(`{"on":true}`), 100)
	m.heard([]byte(`{"on":false}`), 99)
	m.heard([]byte(`?`), 101)
	on, _ := m.Draining()
	select {
	case <-changed:
	default:
		on = false
	}
	if !on {
		t.Error("the older word won")
	}
}

// Without the watch, the next renewal reads what was said.
func TestDrainWithoutWatch(t *testing.T) {
	q := openTest(t, 600*time.Millisecond)
	m := &Membership{q: q, entry: announcement{Worker: testWorker("w"), Every: time.Minute}, changed: make(chan struct{})}
	if err := m.enter(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := q.Drain(t.Context(), "w", true); err != nil {
		t.Fatal(err)
	}
	if err := m.readDrain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if on, _ := m.Draining(); !on {
		t.Error("it was not read")
	}
}

func TestSilence(t *testing.T) {
	q := openTest(t, 600*time.Millisecond)
	f := testFleet(t, q)
	join(t, q, testWorker("alive"), nil)
	enters(t, f, announcement{Worker: testWorker("dead"), Instance: "another"})
	first := listWorkers(t, q)
	var last []Worker
	comes(t, "one is silent for long, the other not", func() bool {
		last = listWorkers(t, q)
		return last[1].Silent-first[1].Silent > time.Second && last[0].Silent < 500*time.Millisecond
	})

	if err := f.forget(t.Context(), time.Second); err != nil {
		t.Fatal(err)
	}
	if got := listWorkers(t, q); len(got) != 1 || got[0].Name != "alive" {
		t.Errorf("workers: %v", got)
	}

	at := time.Now() // ten minutes cannot pass here, but on the server's clock
	one := []found{{data: []byte(`{"name":"w"}`), at: at}}
	for now, want := range map[time.Duration]time.Duration{vanish - 1: vanish - 1, vanish: -1, -time.Hour: 0} {
		switch got := q.listed(one, nil, at.Add(now)); {
		case len(got) == 0 && want < 0:
		case len(got) != 1 || got[0].Silent != want:
			t.Errorf("after %s: %+v", now, got)
		}
	}
}

func TestUnreadableEntries(t *testing.T) {
	q := openTest(t, time.Hour)
	f := testFleet(t, q)
	join(t, q, testWorker("w"), nil)
	for key, data := range map[string]string{"entry.a": "?", "entry.b": `{"name":"\n"}`, "drain.w": "?", "other": "?"} {
		if err := f.set(t.Context(), key, []byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	if got := listWorkers(t, q); len(got) != 1 || got[0].Name != "w" || got[0].Draining {
		t.Errorf("workers: %v", got)
	}
}

// A worker whose bucket is lost announces itself in a new one, with its image.
func TestWorkersBucketLost(t *testing.T) {
	q := openTest(t, time.Second)
	w := testWorker("w")
	w.ImageDigest = "sha256:1"
	join(t, q, w, nil)
	if err := q.store.js.DeleteStream(t.Context(), "KV_workers"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		all, err := q.Workers(t.Context())
		digest, imageErr := q.Image(t.Context())
		if err == nil && imageErr == nil && len(all) == 1 && all[0].Name == "w" && digest == "sha256:1" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("workers %v (%v), image %q (%v)", all, err, digest, imageErr)
		}
	}
}
