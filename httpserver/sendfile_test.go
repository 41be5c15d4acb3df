package httpserver_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// traced marks the process that runs under strace.
const traced = "CARGO_HTTPSERVER_TRACED"

// The kernel copies archives to the connection: seen from outside, nearly all
// bytes leave the server through sendfile or splice.
func TestSendfile(t *testing.T) {
	const size = 8 << 20
	if os.Getenv(traced) != "" {
		download(t, size)
		return
	}
	strace, err := exec.LookPath("strace")
	if err != nil {
		if slices.Contains(strings.Split(os.Getenv("CARGO_TEST_REQUIRE"), ","), "strace") {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	trace := filepath.Join(t.TempDir(), "trace")
	cmd := exec.CommandContext(t.Context(), strace, "-f", "-qq", "-e", "trace=sendfile,splice", "-e", "signal=none", "-o", trace,
		os.Args[0], "-test.run=^TestSendfile$")
	cmd.Env = append(os.Environ(), traced+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	calls, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	sent := 0
	for _, m := range regexp.MustCompile(`(?m)(?:sendfile|splice)\b.* = (\d+)$`).FindAllStringSubmatch(string(calls), -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		sent += n
	}
	if sent < size*9/10 {
		t.Errorf("the kernel copied %d of %d bytes itself", sent, size)
	}
}

func download(t *testing.T, size int) {
	a := newAPI(t)
	a.repository("o/r")
	a.do(t, "POST", target).submitted(t)
	content := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	a.work(t, content)
	if got := a.do(t, "GET", archive); got.body != string(content) {
		t.Errorf("%d bytes arrived, want %d", len(got.body), size)
	}
}
