// Probe is the program inside the test image that sees what a shell cannot.
// Its first argument says what to look at.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	if len(os.Args) < 2 {
		fail("no command")
	}
	args := os.Args[2:]
	switch os.Args[1] {
	case "args":
		printJSON(args)
	case "cat":
		printFiles(args)
	case "count":
		count(number(args[0]))
	case "dial":
		dial(args[0], args[1])
	case "eat":
		eat(number(args[0]))
	case "fork":
		fork(number(args[0]))
	case "net":
		interfaces()
	case "segv":
		segv()
	case "spin":
		spin(time.Duration(number(args[0])) * time.Millisecond)
	case "syscalls":
		syscalls()
	case "threads":
		threads(number(args[0]))
	default:
		fail("unknown command " + os.Args[1])
	}
}

func fail(why ...any) {
	fmt.Fprintln(os.Stderr, why...)
	os.Exit(1)
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		fail(err)
	}
	return n
}

func printJSON(v any) {
	if err := json.NewEncoder(os.Stdout).Encode(v); err != nil {
		fail(err)
	}
}

// printFiles prints how many bytes each file yields, or why it does not.
func printFiles(names []string) {
	for _, name := range names {
		b, err := readSome(name)
		fmt.Println(name, len(b), err)
	}
}

func readSome(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 1<<10))
}

// count prints the numbers from 0, one a line, until it has written n bytes.
func count(n int) {
	w := bufio.NewWriterSize(os.Stdout, 64<<10)
	var line []byte
	for i := 0; n > 0; i++ {
		line = append(strconv.AppendInt(line[:0], int64(i), 10), '\n')
		n -= len(line)
		if _, err := w.Write(line); err != nil {
			fail(err)
		}
	}
	if err := w.Flush(); err != nil {
		fail(err)
	}
}

func dial(network, addr string) {
	c, err := net.DialTimeout(network, addr, 5*time.Second)
	if err != nil {
		fail(err)
	}
	c.Close()
	fmt.Println("connected")
}

// eat fills n MiB of memory.
func eat(n int) {
	var all [][]byte
	for range n {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		all = append(all, b)
	}
	fmt.Println("ate", len(all))
}

// fork starts n processes that live until it ends, and fails if it may not.
func fork(n int) {
	for i := range n {
		if err := exec.Command("/bin/sleep", "3600").Start(); err != nil {
			fail("process", i, err)
		}
	}
	fmt.Println("forked", n)
}

// threads starts n threads. Where one is refused, the Go runtime ends the
// program with status 2, as it does the go command.
func threads(n int) {
	for range n {
		go func() {
			runtime.LockOSThread()
			select {}
		}()
		runtime.Gosched()
	}
	time.Sleep(10 * time.Second)
	fmt.Println("started", n)
}

// interfaces prints those network interfaces that are up, with their addresses.
func interfaces() {
	all, err := net.Interfaces()
	if err != nil {
		fail(err)
	}
	for _, i := range all {
		if i.Flags&net.FlagUp == 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			fail(err)
		}
		for _, a := range addrs {
			fmt.Println(i.Name, a)
		}
	}
}

// segv ends by a signal that even the first process of a PID namespace cannot
// ignore.
func segv() {
	var byDefault [64]byte // a struct sigaction: SIG_DFL, no flags, no mask
	_, _, errno := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(syscall.SIGSEGV), uintptr(unsafe.Pointer(&byDefault)), 0, 8, 0, 0)
	if errno != 0 {
		fail(errno)
	}
	var nowhere *int
	os.Exit(*nowhere)
}

// spin keeps one core busy for a time and prints how many milliseconds of it
// the process got.
func spin(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
	}
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		fail(err)
	}
	fmt.Println((time.Duration(u.Utime.Nano()) + time.Duration(u.Stime.Nano())).Milliseconds())
}
