package executortest

import (
	"net"
	"strconv"
	"strings"
	"syscall"
)

func testNoNetwork(r *run) {
	for line := range strings.Lines(r.output(r.command("probe", "net"))) {
		if !strings.HasPrefix(line, "lo ") {
			r.Errorf("interface %q", line)
		}
	}
	// One line of headings; in the other table the routes of lo itself.
	if out := r.output(r.step("tail -n +2 /proc/net/route")); out != "" {
		r.Errorf("routes %q", out)
	}
	if out := r.output(r.step("cat /proc/net/ipv6_route 2>/dev/null | grep -v ' lo$'; exit 0")); out != "" {
		r.Errorf("IPv6 routes %q", out)
	}
}

// unreachable checks that a step cannot connect to what we listen on.
func (r *run) unreachable(network, listenOn, dial string) {
	r.Helper()
	ln, err := net.Listen(network, listenOn)
	if err != nil {
		r.Logf("not tried: %v", err) // a host without IPv6
		return
	}
	defer ln.Close()
	if dial == "" {
		dial = ln.Addr().String()
	} else if _, port, err := net.SplitHostPort(ln.Addr().String()); err == nil {
		dial = net.JoinHostPort(dial, port)
	}
	c, err := net.Dial(network, dial)
	if err != nil {
		r.Fatalf("from the host: %v", err)
	}
	c.Close()
	out, _, err := r.run(r.Context(), r.command("probe", "dial", network, dial))
	r.exits(err, 1)
	if out != "" {
		r.Errorf("%s %s: %q", network, dial, out)
	}
}

func testNoHostLoopback(r *run) {
	r.unreachable("tcp", "127.0.0.1:0", "")
	r.unreachable("tcp", "[::1]:0", "")
	r.unreachable("tcp", ":0", "127.0.0.1")
}

func testNoAbstractSocket(r *run) {
	r.unreachable("unix", "@cargo-"+r.owner, "")
}

func testUnprivileged(r *run) {
	status := make(map[string]string)
	for line := range strings.Lines(r.output(r.step("cat /proc/self/status"))) {
		k, v, _ := strings.Cut(line, ":")
		status[k] = strings.Join(strings.Fields(v), " ")
	}
	for _, k := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		if n, err := strconv.ParseUint(status[k], 16, 64); err != nil || n != 0 {
			r.Errorf("%s %q, want 0", k, status[k])
		}
	}
	for k, want := range map[string]string{"NoNewPrivs": "1", "Seccomp": "2"} {
		if status[k] != want {
			r.Errorf("%s %q, want %s", k, status[k], want)
		}
	}
	for _, k := range []string{"Uid", "Gid"} {
		ids := strings.Fields(status[k])
		for _, id := range ids {
			if id == "0" || id != ids[0] {
				r.Errorf("%s %q, want one that is not 0", k, status[k])
			}
		}
	}
	if groups := strings.Fields(status["Groups"]); len(groups) > 1 || len(groups) == 1 && groups[0] != strings.Fields(status["Gid"])[0] {
		r.Errorf("Groups %q, want none", status["Groups"])
	}
}

func testSetuidPowerless(r *run) {
	// The copy is root's and setuid in the image, and reads what only root may.
	out := r.output(r.step("stat -c %A /bin/setuid-probe; setuid-probe cat /etc/secret"))
	if want := "-rwsr-xr-x\n/etc/secret 0 open /etc/secret: permission denied\n"; out != want {
		r.Errorf("stdout %q, want %q", out, want)
	}
}

func testRootReadOnly(r *run) {
	out := r.output(r.step("for d in / /bin /etc /go /mnt /dev /proc /proc/self /sys; do touch $d/new && echo $d is writable; done 2>/dev/null; grep ' / / ' /proc/self/mountinfo | grep -v ' ro,'; exit 0"))
	if out != "" {
		r.Error(out)
	}
}

// Compilers and tests write programs to /tmp and run them.
func testTmpUsable(r *run) {
	if out := r.output(r.step("cp /bin/busybox /tmp/echo && /tmp/echo works && stat -c %a /tmp")); out != "works\n1777\n" {
		r.Errorf("stdout %q", out)
	}
	if out := r.output(r.step("ls -A /tmp; grep -c ' /tmp .*nosuid,nodev' /proc/self/mountinfo")); out != "1\n" {
		r.Errorf("stdout %q: want an empty /tmp, nosuid and nodev", out)
	}
}

func testNoSys(r *run) {
	if out := r.output(r.step("ls -A /sys; grep -E ' (sysfs|cgroup2?) ' /proc/self/mountinfo; exit 0")); out != "" {
		r.Errorf("/sys: %q", out)
	}
}

func testProcMasked(r *run) {
	// What is masked yields nothing, if this kernel has it at all.
	out := r.output(r.command("probe", "cat", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts", "/proc/sysrq-trigger"))
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); f[1] != "0" {
			r.Errorf("%q: want 0 bytes", line)
		}
	}
	out = r.output(r.step("for f in /proc/sys/kernel/core_pattern /proc/sys/vm/drop_caches /proc/sysrq-trigger /proc/irq/default_smp_affinity; do echo 0 >$f && echo $f is writable; done 2>/dev/null; exit 0"))
	if out != "" {
		r.Error(out)
	}
	// Not even a root of the container could write there.
	if out := r.output(r.step("grep ' /proc/sys ' /proc/self/mountinfo; exit 0")); !strings.Contains(out, " ro,") {
		r.Errorf("/proc/sys is mounted %q, want it read-only", out)
	}
}

func testDevices(r *run) {
	if out := r.output(r.step("find /dev -type b; mknod /tmp/disk b 8 0 2>/dev/null && echo mknod works; cd /dev && ls -d kmsg mem kvm fuse net 2>/dev/null; exit 0")); out != "" {
		r.Errorf("devices: %q", out)
	}
	if out := r.output(r.step("echo x >/dev/null && head -c 3 /dev/zero | wc -c && head -c 3 /dev/urandom | wc -c")); out != "3\n3\n" {
		r.Errorf("stdout %q", out)
	}
}

func testOwnProcessesOnly(r *run) {
	out := r.output(r.step("cd /proc; for p in [0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null; echo; done | grep -vE '^(sh |tr |grep |$)'; exit 0"))
	// An executor may have put its own init before the command, and no more.
	if strings.Count(out, "\n") > 1 {
		r.Errorf("processes %q", out)
	}
}

func testSyscallsDenied(r *run) {
	n := 0
	for line := range strings.Lines(r.output(r.command("probe", "syscalls"))) {
		name, errno, _ := strings.Cut(strings.TrimSpace(line), "\t")
		if errno != strconv.Itoa(int(syscall.EPERM)) {
			e, _ := strconv.Atoi(errno)
			r.Errorf("%s: %v, want %v", name, syscall.Errno(e), syscall.EPERM)
		}
		n++
	}
	if n < 15 {
		r.Errorf("%d system calls tried", n)
	}
}
