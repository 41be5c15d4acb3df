package main

import (
	"fmt"
	"runtime"
	"syscall"
)

// Numbers that the frozen package syscall lacks; they are the same on every
// architecture (asm-generic/unistd.h).
const (
	sysIOURingSetup = 425
	sysOpenTree     = 428
	sysFsopen       = 430
)

// Numbers that differ.
var (
	sysBPF         = map[string]uintptr{"amd64": 321, "arm64": 280}[runtime.GOARCH]
	sysUserfaultfd = map[string]uintptr{"amd64": 323, "arm64": 282}[runtime.GOARCH]
	sysSetns       = map[string]uintptr{"amd64": 308, "arm64": 268}[runtime.GOARCH]
)

const (
	afALG   = 38
	afVSOCK = 40
)

// syscalls tries what a build has no need of, and prints how each ended. The
// arguments are such that the kernel, if it is reached, says something else
// than EPERM to a process of any rights, where that can be had.
func syscalls() {
	for _, s := range []struct {
		name    string
		number  uintptr
		a, b, c uintptr
	}{
		{"add_key", syscall.SYS_ADD_KEY, 0, 0, 0},
		{"bpf", sysBPF, 0, 0, 0},
		{"fsopen", sysFsopen, 0, 0, 0},
		{"inotify_init1", syscall.SYS_INOTIFY_INIT1, ^uintptr(0), 0, 0},
		{"init_module", syscall.SYS_INIT_MODULE, 0, 0, 0},
		{"io_uring_setup", sysIOURingSetup, 1, 0, 0},
		{"kexec_load", syscall.SYS_KEXEC_LOAD, 0, 0, 0},
		{"keyctl", syscall.SYS_KEYCTL, 0, 0, 0},
		{"mount", syscall.SYS_MOUNT, 0, 0, 0},
		{"open_tree", sysOpenTree, ^uintptr(0), 0, 0},
		{"perf_event_open", syscall.SYS_PERF_EVENT_OPEN, 0, 0, 0},
		{"pivot_root", syscall.SYS_PIVOT_ROOT, 0, 0, 0},
		{"request_key", syscall.SYS_REQUEST_KEY, 0, 0, 0},
		{"setns", sysSetns, ^uintptr(0), 0, 0},
		{"socket AF_ALG", syscall.SYS_SOCKET, afALG, syscall.SOCK_SEQPACKET, 0},
		{"socket AF_VSOCK", syscall.SYS_SOCKET, afVSOCK, syscall.SOCK_STREAM, 0},
		{"swapon", syscall.SYS_SWAPON, 0, 0, 0},
		{"umount2", syscall.SYS_UMOUNT2, 0, 0, 0},
		{"unshare CLONE_NEWUSER", syscall.SYS_UNSHARE, syscall.CLONE_NEWUSER, 0, 0},
		{"userfaultfd", sysUserfaultfd, 0, 0, 0},
	} {
		_, _, errno := syscall.Syscall6(s.number, s.a, s.b, s.c, 0, 0, 0)
		fmt.Printf("%s\t%d\n", s.name, int(errno))
	}
}
