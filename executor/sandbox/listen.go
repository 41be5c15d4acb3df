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

	var ln net.Listener
	onSpareThread(func() { ln, err = listenIn(int(ns.Fd()), addr) })
	if err != nil {
		return nil, fmt.Errorf("listen on %s in %s: %w", addr, nsPath, err)
	}
	return ln, nil
}

// onSpareThread runs f on a thread that ends with it, so that no other code
// can come to run in the namespace that f has entered.
func onSpareThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			f()
			return // still locked, so the thread ends
		}
		// The main thread never ends, and /proc/self is about it. While it is
		// held here, f gets another.
		onSpareThread(f)
		runtime.UnlockOSThread()
	}()
	<-done
}

// listenIn moves the calling thread into the namespace for good.
func listenIn(ns int, addr string) (net.Listener, error) {
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("setns: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return nil, fmt.Errorf("bring the loopback up: %w", err)
	}
	return net.Listen("tcp", addr) //nolint:noctx // binds a literal address at once
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
