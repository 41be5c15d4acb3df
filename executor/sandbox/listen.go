package sandbox

import (
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Listen returns a TCP listener on addr inside the network namespace of which
// nsPath is the file, such as /proc/PID/ns/net, and brings the loopback up
// there if it is down. Listener and connections work from everywhere in this
// program and keep the namespace alive until they are closed.
func Listen(nsPath, addr string) (net.Listener, error) {
	ns, err := os.Open(nsPath)
	if err != nil {
		return nil, err
	}
	defer ns.Close()

	type result struct {
		ln  net.Listener
		err error
	}
	done := make(chan result)
	go func() {
		// Never unlocked: the thread ends with the goroutine, so no other
		// code can come to run in the foreign namespace.
		runtime.LockOSThread()
		ln, err := listenIn(int(ns.Fd()), addr)
		done <- result{ln, err}
	}()
	r := <-done
	if r.err != nil {
		return nil, fmt.Errorf("listen on %s in %s: %w", addr, nsPath, r.err)
	}
	return r.ln, nil
}

// listenIn moves the calling thread into the namespace for good.
func listenIn(ns int, addr string) (net.Listener, error) {
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("setns: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return nil, fmt.Errorf("bring the loopback up: %w", err)
	}
	return net.Listen("tcp", addr)
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, lo); err != nil {
		return err
	}
	if lo.Uint16()&unix.IFF_UP != 0 {
		return nil
	}
	lo.SetUint16(lo.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo)
}
