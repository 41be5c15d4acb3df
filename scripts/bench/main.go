// Bench measures Cargo against bare go build on the same machine, and prints
// how the figures that it promises stand. It needs root, containerd and git,
// for the old way Docker too. It serves the apps itself, from the zips of
// their modules, and leaves nothing behind but the image in the engines.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) == 2 && children[os.Args[1]] != nil {
		exit(runChild(os.Args[1]))
	}
	var o options
	flag.StringVar(&o.cargo, "cargo", "bin/cargo", "measure the program `FILE`")
	flag.StringVar(&o.image, "image", "bin/builder.tar", "build in `IMAGE`, as cargo serve takes it")
	flag.StringVar(&o.executor, "executor", "containerd", "run builds on `ENGINE`")
	flag.StringVar(&o.tools, "tools", "bin", "find nats-server, versitygw and nginx below `DIR`, else on the PATH")
	flag.StringVar(&o.dir, "dir", "/var/tmp", "work below `DIR`, which must not be memory")
	flag.IntVar(&o.rounds, "rounds", 1, "measure times `N` times and take the median")
	run := flag.String("run", "", "only the cases whose names match `REGEXP`")
	flag.Usage = func() {
		fmt.Fprintf(os.Stderr, "usage: bench [flags] [-- flags of cargo serve]\n")
		flag.PrintDefaults()
		fmt.Fprintln(os.Stderr, "cases:")
		for _, c := range cases {
			fmt.Fprintf(os.Stderr, "  %-14s %s\n", c.name, c.about)
		}
	}
	flag.Parse()
	o.serve = flag.Args()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := bench(ctx, o, *run)
	stop()
	exit(err)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// options are what the command line says.
type options struct {
	cargo, image, executor, tools, dir string
	rounds                             int
	serve                              []string // more flags of cargo serve
}

// A lab is where it is measured: the apps, a warm library of each side, and the report.
type lab struct {
	options
	scratch string
	client  *http.Client
	apps    *appHost
	bare    *bare
	report  report

	needed     map[string][]string // systems that the chosen cases build an app for
	canPrepare bool                // cargo serve has --prepare
	prepared   string              // data directory with nothing but the standard library
	warm       string              // the same, with the modules of the apps
	firsts     map[string]time.Duration
}

// bench runs the cases whose names match and prints the report, also of what
// was measured before an error.
func bench(ctx context.Context, o options, run string) (err error) {
	pattern, err := regexp.Compile(run)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	if os.Geteuid() != 0 {
		return errors.New("cargo serve makes containers: run this as root")
	}
	if o.rounds < 1 {
		return fmt.Errorf("-rounds %d: must be at least 1", o.rounds)
	}
	if o.dir, err = filepath.Abs(o.dir); err != nil {
		return err
	}
	scratch, err := os.MkdirTemp(o.dir, "cargo-bench.")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove(scratch)) }()
	if err := os.Chmod(scratch, 0o755); err != nil { // builds have a user id of their own
		return err
	}
	l := &lab{options: o, scratch: scratch, firsts: map[string]time.Duration{}, client: newClient()}
	err = l.measure(ctx, pattern)
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	if err == nil || len(l.report.builds)+len(l.report.figures) > 0 {
		err = errors.Join(err, l.report.write(os.Stdout))
	}
	return err
}

func (l *lab) measure(ctx context.Context, pattern *regexp.Regexp) error {
	var chosen []benchCase
	l.needed = map[string][]string{}
	for _, c := range cases {
		if pattern.MatchString(c.name) {
			chosen = append(chosen, c)
			for _, a := range c.apps {
				l.needed[a] = slices.Compact(slices.Sorted(slices.Values(append(l.needed[a], c.systems...))))
			}
		}
	}
	if len(chosen) == 0 {
		return errors.New("no case has such a name")
	}
	l.report.machine = machine(ctx, l.options)
	var help bytes.Buffer
	if err := command(ctx, "", nil, &help, l.cargo, "serve", "--help"); err != nil {
		return err
	}
	l.canPrepare = strings.Contains(help.String(), "--prepare")
	var err error
	if l.apps, err = newAppHost(ctx, filepath.Join(l.scratch, "apps"), l.needed); err != nil {
		return err
	}
	defer l.apps.close()
	if slices.ContainsFunc(l.apps.names, compiled) {
		if err := l.seed(ctx); err != nil {
			return err
		}
	}
	for _, c := range chosen {
		progress("case %s: %s", c.name, c.about)
		if err := c.run(l, ctx); err != nil {
			if ctx.Err() != nil {
				return err
			}
			l.report.note("%s was not measured to its end: %v", c.name, err)
			progress("%s: %v", c.name, err)
		}
	}
	return nil
}

// newClient is a client that keeps its connections, for as many callers as any
// case has.
func newClient() *http.Client {
	return &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients, DisableCompression: true, ReadBufferSize: 64 << 10}}
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...)
}

// remove removes a directory with all that a killed server left mounted there.
func remove(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	lines := strings.Split(string(mounts), "\n")
	for i := len(lines) - 1; i >= 0; i-- { // the youngest first
		fields := strings.Fields(lines[i])
		if len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			if err := syscall.Unmount(fields[4], syscall.MNT_DETACH); err != nil {
				return fmt.Errorf("unmount %s: %w", fields[4], err)
			}
		}
	}
	return os.RemoveAll(dir)
}

// copyTree copies a directory as it is, with owners, links, holes and extended
// attributes, but without what is mounted there.
func copyTree(ctx context.Context, from, to string) error {
	return command(ctx, "", nil, io.Discard, "cp", "-ax", "--reflink=auto", from, to)
}

// command runs a program in dir with env on top of this process's environment.
// What it says on stderr is part of the error.
func command(ctx context.Context, dir string, env []string, stdout io.Writer, name string, args ...string) error {
	var stderr strings.Builder
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, stdout, &stderr
	cmd.Env = append(os.Environ(), env...)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, tail(stderr.String(), 20))
	}
	return nil
}

// tail is the last n lines of s.
func tail(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
