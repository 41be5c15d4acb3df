package main

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// hubEnv marks the process that runs in a network namespace of its own.
const hubEnv = "CARGO_TEST_HUB"

// inHub runs the calling test once more, in a process with a network namespace
// of its own, and returns false; there it returns true. Whatever the test makes
// of networks is gone with its last process.
func inHub(t *testing.T) bool {
	t.Helper()
	if os.Getenv(hubEnv) != "" {
		return true
	}
	for _, tool := range []string{"ip", "nsenter"} {
		_, err := exec.LookPath(tool)
		require(t, "netns", err)
	}
	if os.Getuid() != 0 {
		require(t, "netns", errors.New("it takes root to make network namespaces"))
	}
	args := []string{"-test.run", "^" + t.Name() + "$", "-test.v"}
	for _, name := range []string{"test.short", "test.timeout"} {
		args = append(args, "-"+name+"="+flag.Lookup(name).Value.String())
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), hubEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	var skipped bytes.Buffer
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		require(t, "netns", err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "--- SKIP") {
			skipped.WriteString(lines.Text())
		}
		fmt.Fprintln(t.Output(), lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("in its own network namespace: %v", err)
	} else if skipped.Len() > 0 {
		t.Skip("it was skipped in its own network namespace")
	}
	return false
}

// A lan is a network of machines: network namespaces, each with one link to a
// bridge in the namespace of this process.
type lan struct {
	t        *testing.T
	machines int
}

const hubAddress = "10.77.0.1"

func newLAN(t *testing.T) *lan {
	t.Helper()
	n := &lan{t: t}
	n.ip("link", "set", "lo", "up")
	n.ip("link", "add", "hub", "type", "bridge")
	n.ip("addr", "add", hubAddress+"/24", "dev", "hub")
	n.ip("link", "set", "hub", "up")
	return n
}

func (n *lan) ip(args ...string) {
	n.t.Helper()
	if err := command(append([]string{"ip"}, args...)...); err != nil {
		n.t.Fatal(err)
	}
}

// A machine has an address of its own. Its link to all others can be cut.
type machine struct {
	*lan
	address string
	link    string // the end at the bridge
	holder  int    // a process that keeps the namespace
}

// join makes a machine.
func (n *lan) join() *machine {
	n.t.Helper()
	n.machines++
	m := &machine{lan: n, address: fmt.Sprintf("10.77.0.%d", 10+n.machines), link: fmt.Sprintf("m%d", n.machines)}
	holder := exec.CommandContext(n.t.Context(), "sleep", "infinity")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := holder.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = holder.Process.Kill(); _ = holder.Wait() })
	m.holder = holder.Process.Pid
	n.ip("link", "add", m.link, "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(m.holder))
	n.ip("link", "set", m.link, "master", "hub", "up")
	for _, args := range [][]string{
		{"link", "set", "lo", "up"}, {"addr", "add", m.address + "/24", "dev", "eth0"}, {"link", "set", "eth0", "up"},
	} {
		if err := command(m.inside(append([]string{"ip"}, args...)...)...); err != nil {
			n.t.Fatal(err)
		}
	}
	return m
}

// inside is a command that runs on the machine. It stays in the mount
// namespace of this process, which a worker shares with its engine.
func (m *machine) inside(args ...string) []string {
	return append([]string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", m.holder), "--"}, args...)
}

func (m *machine) cut()  { m.ip("link", "set", m.link, "down") }
func (m *machine) mend() { m.ip("link", "set", m.link, "up") }

// A process is a program that can be killed, paused and started again. What it
// writes goes to a file.
type process struct {
	t    *testing.T
	name string
	args []string
	env  []string // besides that of this process
	log  string
	cmd  *exec.Cmd
}

// newProcess starts a program, which ends with the test at the latest.
func newProcess(t *testing.T, name, dir string, env []string, args ...string) *process {
	t.Helper()
	p := &process{t: t, name: name, args: args, env: env, log: filepath.Join(dir, name+".log")}
	p.start()
	t.Cleanup(func() {
		p.end(syscall.SIGTERM)
		if t.Failed() {
			t.Logf("the end of the log of %s:\n%s", name, p.tail())
		}
	})
	return p
}

func (p *process) start() {
	p.t.Helper()
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close()
	p.cmd = exec.Command(p.args[0], p.args[1:]...)
	p.cmd.Env = append(os.Environ(), p.env...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatalf("%s: %v", p.name, err)
	}
}

func (p *process) signal(s syscall.Signal) {
	if p.cmd.ProcessState == nil {
		_ = p.cmd.Process.Signal(s) // it may have ended just now
	}
}

// end ends the process with a signal, or with SIGKILL if that takes too long,
// and returns its exit status.
func (p *process) end(s syscall.Signal) int {
	const slow = 30 * time.Second
	if p.cmd.ProcessState == nil {
		p.signal(s)
		p.signal(syscall.SIGCONT)
		late := time.AfterFunc(slow, func() { _ = p.cmd.Process.Kill() })
		_ = p.cmd.Wait() // its status is that of the signal
		late.Stop()
	}
	return p.cmd.ProcessState.ExitCode()
}

func (p *process) said() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		p.t.Error(err)
	}
	return string(text)
}

// tail is the end of what the process wrote.
func (p *process) tail() string {
	const most = 16 << 10
	text := p.said()
	return text[max(0, len(text)-most):]
}

// listening waits until somebody listens on an address.
func listening(t *testing.T, address string) {
	t.Helper()
	until(t, "somebody listens on "+address, func() bool {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return false
		}
		_ = conn.Close()
		return true
	})
}
