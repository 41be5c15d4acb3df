package sandbox_test

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/monochromegane/cargo/executor/sandbox"
)

func TestSeccompDenies(t *testing.T) {
	profile := sandbox.Seccomp()
	if profile.DefaultAction != specs.ActErrno {
		t.Errorf("DefaultAction = %s, want %s", profile.DefaultAction, specs.ActErrno)
	}
	for _, name := range []string{"bpf", "inotify_init", "inotify_init1", "io_uring_setup", "keyctl", "mount", "perf_event_open", "unshare", "userfaultfd"} {
		for _, rule := range profile.Syscalls {
			if rule.Action == specs.ActAllow && len(rule.Args) == 0 && slices.Contains(rule.Names, name) {
				t.Errorf("%s is allowed", name)
			}
		}
	}
}

func TestSeccompJSON(t *testing.T) {
	text, err := sandbox.SeccompJSON()
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		DefaultAction string
		Syscalls      []struct {
			Names  []string
			Action string
		}
	}
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatal(err)
	}
	if got.DefaultAction != string(specs.ActErrno) || len(got.Syscalls) != len(sandbox.Seccomp().Syscalls) {
		t.Errorf("default action %q and %d rules, want those of Seccomp", got.DefaultAction, len(got.Syscalls))
	}
}

func TestListen(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	// A namespace whose loopback is down; it lives as long as this process.
	holder := exec.Command("unshare", "--net", "sleep", "600")
	if err := holder.Start(); err != nil {
		t.Skipf("unshare: %v", err)
	}
	t.Cleanup(func() { holder.Process.Kill(); holder.Wait() })
	ns := fmt.Sprintf("/proc/%d/ns/net", holder.Process.Pid)
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var foreign string
	waitFor(t, func() bool { foreign, err = os.Readlink(ns); return err == nil && foreign != own })

	ln, err := sandbox.Listen(ns, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	addr := ln.Addr().String()
	if c, err := net.Dial("tcp", addr); err == nil {
		c.Close()
		t.Errorf("%s answers outside of the namespace", addr)
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, "through the door")
			c.Close()
		}
	}()
	client := exec.Command("nsenter", "--net="+ns, "bash", "-c", "cat </dev/tcp/"+strings.Replace(addr, ":", "/", 1))
	out, err := client.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "through the door" {
		t.Errorf("inside the namespace: %q, %v", out, err)
	}

	// Often, so that the main thread's turn comes.
	for range 100 {
		ln, err := sandbox.Listen(ns, "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ln.Close()
	}
	waitFor(t, func() bool { return !slices.Contains(threadNamespaces(t), foreign) })
}

// threadNamespaces returns the network namespace of each thread of this process.
func threadNamespaces(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, f := range files {
		if link, err := os.Readlink(f); err == nil { // else the thread has ended
			all = append(all, link)
		}
	}
	return all
}

func TestListenErrors(t *testing.T) {
	if _, err := sandbox.Listen("/proc/self/ns/none", "127.0.0.1:0"); err == nil {
		t.Error("no such file: no error")
	}
	if _, err := sandbox.Listen("/dev/null", "127.0.0.1:0"); err == nil {
		t.Error("not a namespace: no error")
	}
}

func TestTablesAreFresh(t *testing.T) {
	sandbox.MaskedPaths()[0] = ""
	sandbox.ReadonlyPaths()[0] = ""
	if slices.Contains(sandbox.MaskedPaths(), "") || slices.Contains(sandbox.ReadonlyPaths(), "") {
		t.Error("a caller can change the table")
	}
}
