package queue_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/queue"
)

func dial(t *testing.T, dir string, o queue.Options) *queue.Queue {
	t.Helper()
	q, err := queue.Dial(t.Context(), filepath.Join(dir, "socket"), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.Close() })
	return q
}

func TestDial(t *testing.T) {
	for _, tc := range []struct{ name, dir string }{
		{"short", ""}, {"longer than the address of a socket", strings.Repeat("d", 120)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), tc.dir)
			q := open(t, queue.Options{Dir: dir})
			info, err := os.Stat(filepath.Join(dir, "socket"))
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Fatalf("the socket is %v, %v", info, err)
			}
			b := submit(t, q, newBuild("v1"), []byte("sealed"))
			guest := dial(t, dir, queue.Options{Worker: "guest"})
			if got := get(t, guest, b.ID); got.State != build.Queued || guest.Depth() != 1 {
				t.Errorf("the guest sees %s, depth %d", got.State, guest.Depth())
			}
			c := claim(t, guest)
			if string(c.Sealed()) != "sealed" {
				t.Errorf("Sealed = %q", c.Sealed())
			}
			finish(t, c, build.Succeeded)
			if got, err := q.Wait(within(t), b.ID); err != nil || got.State != build.Succeeded {
				t.Errorf("the host sees %s, %v", got.State, err)
			}
			if err := q.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat(filepath.Join(dir, "socket")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the socket is still there: %v", err)
			}
		})
	}
}

// A guest leaves the builds of others alone, whatever its lease and name are.
func TestGuestTakesNothing(t *testing.T) {
	dir := t.TempDir()
	q := open(t, queue.Options{Dir: dir})
	submit(t, q, newBuild("v1"), nil)
	c := claim(t, q)
	guest := dial(t, dir, queue.Options{Worker: "w", Lease: 100 * time.Millisecond})
	if n, err := guest.Recover(t.Context()); n != 0 || err != nil {
		t.Errorf("Recover = %d, %v", n, err)
	}
	time.Sleep(time.Second) // ten of its leases
	finish(t, c, build.Succeeded)
}

func TestDialWithoutAServer(t *testing.T) {
	dir := t.TempDir()
	q := open(t, queue.Options{Dir: dir})
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := queue.Dial(t.Context(), filepath.Join(dir, "socket"), queue.Options{}); err == nil || !strings.Contains(err.Error(), "cargo serve") {
		t.Errorf("Dial = %v", err)
	}
}

func TestStaleSocket(t *testing.T) {
	dir := t.TempDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "socket")})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false) // as after a kill -9
	_ = l.Close()
	open(t, queue.Options{Dir: dir})
	dial(t, dir, queue.Options{})
}

func TestTooManyGuests(t *testing.T) {
	dir := t.TempDir()
	open(t, queue.Options{Dir: dir})
	var conns []net.Conn
	for range 16 {
		c, err := net.Dial("unix", filepath.Join(dir, "socket"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err != nil { // the server's greeting
			t.Fatalf("guest %d: %v", len(conns)+1, err)
		}
		conns = append(conns, c)
	}
	if _, err := queue.Dial(t.Context(), filepath.Join(dir, "socket"), queue.Options{}); err == nil {
		t.Error("one guest too many was let in")
	}
	for _, c := range conns {
		_ = c.Close()
	}
	for ctx := within(t); ; time.Sleep(10 * time.Millisecond) {
		q, err := queue.Dial(ctx, filepath.Join(dir, "socket"), queue.Options{})
		if err == nil {
			_ = q.Close()
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("the places of guests that left are not free: %v", err)
		}
	}
}
