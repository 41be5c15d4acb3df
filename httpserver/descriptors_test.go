package httpserver_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// starved marks the process that runs out of descriptors.
const starved = "CARGO_HTTPSERVER_STARVED"

// A server that has no descriptors left says so to those whom it can hear, and
// the others are heard when it has some again.
func TestOutOfDescriptors(t *testing.T) {
	if os.Getenv(starved) != "" {
		starve(t)
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestOutOfDescriptors$")
	cmd.Env = append(os.Environ(), starved+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func starve(t *testing.T) {
	a := newAPI(t)
	a.repository("o/r")
	a.do(t, "POST", target).submitted(t)
	a.work(t, []byte("the archive"))
	if r := a.do(t, "GET", archive); r.code != http.StatusOK {
		t.Fatalf("GET = %d", r.code)
	}
	late := unconnected(t)
	release := exhaust(t)
	r := a.do(t, "GET", archive) // through the connection that is there
	if p := r.problem(t, http.StatusServiceUnavailable); !strings.Contains(p.Detail, "too many files open") {
		t.Errorf("it says %q", p.Detail)
	}
	late.connect(t, a.url)
	a.do(t, "GET", "/healthz") // time for the server to fail with the other
	release()
	if code := late.get(t, archive); code != http.StatusOK {
		t.Errorf("who came meanwhile gets %d", code)
	}
	if r := a.do(t, "GET", archive); r.code != http.StatusOK || r.body != "the archive" {
		t.Errorf("GET = %d %q", r.code, r.body)
	}
}

// exhaust takes all descriptors of the process.
func exhaust(t *testing.T) (release func()) {
	t.Helper()
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 256, Max: 256}); err != nil {
		t.Fatal(err)
	}
	var taken []int
	for {
		fd, err := syscall.Dup(0)
		if errors.Is(err, syscall.EMFILE) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, fd)
	}
	return func() {
		for _, fd := range taken {
			_ = syscall.Close(fd)
		}
	}
}

// A caller has its socket before there are no more.
type caller struct{ file *os.File }

func unconnected(t *testing.T) caller {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "socket")
	t.Cleanup(func() { _ = f.Close() })
	return caller{f}
}

func (c caller) connect(t *testing.T, url string) {
	t.Helper()
	addr, err := net.ResolveTCPAddr("tcp4", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Connect(int(c.file.Fd()), &syscall.SockaddrInet4{Port: addr.Port, Addr: [4]byte(addr.IP.To4())}); err != nil {
		t.Fatal(err)
	}
}

func (c caller) get(t *testing.T, path string) int {
	t.Helper()
	if _, err := fmt.Fprintf(c.file, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", path); err != nil {
		t.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(c.file), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	return r.StatusCode
}
