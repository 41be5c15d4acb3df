package modproxy_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/monochromegane/cargo/modproxy"
)

const (
	libMod  = "/example.com/lib/@v/v1.1.0.mod"
	libZip  = "/example.com/lib/@v/v1.1.0.zip"
	libList = "/example.com/lib/@v/list"
)

// checkFault wants d to have had a fault for example.com/lib that wraps want,
// or none if that is nil, and to have forgotten it then.
func checkFault(t *testing.T, d *modproxy.Door, want error) {
	t.Helper()
	err := d.Fault()
	if f, ok := errors.AsType[*modproxy.DoorError](err); !errors.Is(err, want) || want != nil && (!ok || f.Module != "example.com/lib") {
		t.Errorf("Fault = %v, want %v", err, want)
	}
	if again := d.Fault(); again != nil {
		t.Errorf("and then %v", again)
	}
}

func saying(code int) func(w http.ResponseWriter, _ *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		http.Error(w, "nothing", code)
		return true
	}
}

// An upstream that does not answer is another thing than one that has not what
// is asked for, or something that is not it.
func TestSilenceOfAnUpstream(t *testing.T) {
	t.Parallel()
	cut := func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Length", "1000")
		_, _ = w.Write([]byte("module example.com/lib\n"))
		return true
	}
	database := func(front func(http.ResponseWriter, *http.Request) bool) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			return strings.HasPrefix(r.URL.Path, "/sumdb/sums.invalid/lookup/") && front(w, r)
		}
	}
	for name, tc := range map[string]struct {
		front func(w http.ResponseWriter, r *http.Request) bool // nil: nobody listens
		paths []string
		want  error
	}{
		"nobody":             {nil, []string{libMod, libZip, libList}, modproxy.ErrUnavailable},
		"500":                {saying(http.StatusInternalServerError), []string{libMod, libZip, libList}, modproxy.ErrUnavailable},
		"504":                {saying(http.StatusGatewayTimeout), []string{libMod, libZip, libList}, modproxy.ErrUnavailable},
		"429":                {saying(http.StatusTooManyRequests), []string{libMod}, modproxy.ErrUnavailable},
		"half an answer":     {cut, []string{libMod, libZip, libList}, modproxy.ErrUnavailable},
		"database":           {database(saying(http.StatusServiceUnavailable)), []string{libZip}, modproxy.ErrUnavailable},
		"half a record":      {database(cut), []string{libZip}, modproxy.ErrUnavailable},
		"404":                {saying(http.StatusNotFound), []string{libMod, libZip, libList}, nil},
		"410":                {saying(http.StatusGone), []string{libMod}, nil},
		"403":                {saying(http.StatusForbidden), []string{libMod, libZip, libList}, nil},
		"401":                {saying(http.StatusUnauthorized), []string{libMod}, nil},
		"unknown to it":      {database(saying(http.StatusNotFound)), []string{libZip}, nil},
		"nonsense":           {saying(http.StatusOK), []string{libMod, libZip}, nil},
		"nonsense in it":     {database(saying(http.StatusOK)), []string{libZip}, nil},
		"all is well":        {func(http.ResponseWriter, *http.Request) bool { return false }, []string{libMod, libZip, libList}, nil},
		"refused by us":      {saying(http.StatusInternalServerError), []string{"/"}, nil},
		"off by our GOPROXY": {saying(http.StatusInternalServerError), nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := library(t)
			if tc.front == nil {
				g.Close()
			}
			g.intercept(tc.front)
			o := g.options(t)
			paths := tc.paths
			if paths == nil {
				o.GOPROXY, paths = "off", []string{libMod}
			}
			d, url := open(t, newProxy(t, o), modproxy.Limits{})
			for _, path := range paths {
				if code, body := fetch(t, url+path); tc.want != nil && code != http.StatusBadGateway {
					t.Errorf("%s: %d %q", path, code, body)
				}
				checkFault(t, d, tc.want)
			}
		})
	}
}

// What does not stand the checks is no silence, even if a question to the
// database had no answer before another one had.
func TestTamperedZipIsNoSilence(t *testing.T) {
	t.Parallel()
	g := library(t)
	g.tamper(t, "example.com/lib", "v1.1.0", map[string]string{"lib.go": "package other\n"})
	d, url := open(t, newProxy(t, g.options(t)), modproxy.Limits{})
	if code, body := fetch(t, url+libZip); code != http.StatusBadGateway || !strings.Contains(body, "was not confirmed") {
		t.Errorf("%d %q", code, body)
	}
	checkFault(t, d, nil)
}

// smallDisk has o.Dir on a disk of 1 MiB.
func smallDisk(t *testing.T, o modproxy.Options) {
	t.Helper()
	if err := syscall.Mount("tmpfs", o.Dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("cannot mount a small disk: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(o.Dir, syscall.MNT_DETACH) })
}

// A disk that takes nothing more is this server's fault where it keeps a build
// from a module. What was kept before is there, and so is what is small.
func TestDiskThatTakesNothing(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		spoil func(dir string) error
		want  error
	}{
		"full": {func(dir string) error {
			f, err := os.Create(filepath.Join(dir, "filler"))
			if err != nil {
				return err
			}
			defer f.Close()
			for err == nil {
				_, err = f.Write(make([]byte, 4096))
			}
			return nil
		}, syscall.ENOSPC},
		"read-only": {func(dir string) error {
			return syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, "")
		}, syscall.EROFS},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := library(t)
			o := g.options(t)
			smallDisk(t, o)
			p := newProxy(t, o)
			d, url := open(t, p, modproxy.Limits{})
			const before = "/example.com/lib/@v/v1.0.0.zip"
			if code, body := fetch(t, url+before); code != http.StatusOK {
				t.Fatalf("%d %q", code, body)
			}
			if err := tc.spoil(o.Dir); err != nil {
				t.Fatal(err)
			}
			kept := p.Bytes()
			for path, want := range map[string]string{
				before:                     string(g.releases[mv("example.com/lib", "v1.0.0")].zip),
				libMod:                     g.releases[mv("example.com/lib", "v1.1.0")].mod,
				libList:                    "v1.0.0\nv1.1.0",
				"/example.com/lib/@latest": `{"Version":"v1.1.0","Time":"2026-01-02T03:04:05Z"}`,
				"/sumdb/sums.invalid/lookup/example.com/lib@v1.1.0": "",
			} {
				if code, body := fetch(t, url+path); code != http.StatusOK || want != "" && body != want {
					t.Errorf("%s: %d %q", path, code, body)
				}
			}
			checkFault(t, d, nil)
			if n := p.Bytes(); n != kept {
				t.Errorf("%d bytes are kept, %d were", n, kept)
			}
			if code, body := fetch(t, url+libZip); code != http.StatusInternalServerError {
				t.Errorf("%d %q", code, body)
			}
			checkFault(t, d, tc.want)
		})
	}
}

// What is too large for memory is not handed out where it cannot be kept.
func TestDiskFullForALargeFile(t *testing.T) {
	t.Parallel()
	g := newRegistry(t)
	g.add(t, "example.com/lib", "v1.1.0", strings.Repeat("// a comment\n", 100_000), nil)
	o := g.options(t)
	smallDisk(t, o)
	d, url := open(t, newProxy(t, o), modproxy.Limits{})
	if code, body := fetch(t, url+libMod); code != http.StatusInternalServerError {
		t.Errorf("%d and %d bytes", code, len(body))
	}
	checkFault(t, d, syscall.ENOSPC)
}

// A file that cannot be read is fetched anew, unless nothing may be fetched. It
// is not given up for that.
func TestCachedFileThatCannotBeRead(t *testing.T) {
	t.Parallel()
	g := library(t)
	o := g.options(t)
	p := newProxy(t, o)
	_, url := open(t, p, modproxy.Limits{})
	if code, _ := fetch(t, url+libMod); code != http.StatusOK {
		t.Fatal(code)
	}
	o.Offline = true
	offline := newProxy(t, o) // over the same files, which is well as long as neither evicts any
	d, offlineURL := open(t, offline, modproxy.Limits{})
	fetch(t, offlineURL+libMod)
	found, err := filepath.Glob(filepath.Join(o.Dir, "entries/*/*"))
	if err != nil || len(found) != 1 {
		t.Fatalf("%q, %v", found, err)
	}
	// Reading it gives EIO.
	if err := errors.Join(os.Remove(found[0]), os.Symlink("/proc/self/mem", found[0])); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if code, body := fetch(t, offlineURL+libMod); code != http.StatusInternalServerError {
			t.Errorf("%d %q", code, body)
		}
		checkFault(t, d, syscall.EIO)
	}
	if code, body := fetch(t, url+libMod); code != http.StatusOK || body != g.releases[mv("example.com/lib", "v1.1.0")].mod {
		t.Errorf("%d %q", code, body)
	}
	if code, body := fetch(t, offlineURL+libMod); code != http.StatusOK {
		t.Errorf("fetched anew: %d %q", code, body)
	}
	checkFault(t, d, nil)
}

// goproxy says of a zip that cannot be opened that it is no module, and that
// none exists.
func TestZipThatCannotBeOpened(t *testing.T) {
	t.Parallel()
	err := fmt.Errorf("invalid zip file: %w: %w", &fs.PathError{Op: "open", Path: "x.zip", Err: syscall.EMFILE}, fs.ErrNotExist)
	if v := modproxy.Verdict("example.com/lib", "v1.1.0", err); !errors.Is(v, syscall.EMFILE) || errors.Is(v, fs.ErrNotExist) {
		t.Errorf("%v", v)
	}
}

// A build that another one's fault comes first to has its own to tell.
func TestFaultsAreOfOneDoor(t *testing.T) {
	t.Parallel()
	g := library(t)
	p := newProxy(t, g.options(t))
	g.intercept(saying(http.StatusBadGateway))
	first, url := open(t, p, modproxy.Limits{})
	other, _ := open(t, p, modproxy.Limits{})
	fetch(t, url+libMod)
	fetch(t, url+"/example.com/other/@v/list")
	checkFault(t, other, nil)
	checkFault(t, first, modproxy.ErrUnavailable) // the first one, and it alone
}

// hungryEnv tells a process that it is the one with few descriptors.
const hungryEnv = "MODPROXY_TEST_HUNGRY"

func TestWithoutDescriptors(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(os.Args[0], "-test.run=^TestHungry$", "-test.v")
	cmd.Env = append(os.Environ(), hungryEnv+"=1")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestHungry") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestHungry has no descriptors left when it asks its door for a module.
func TestHungry(t *testing.T) {
	if os.Getenv(hungryEnv) == "" {
		t.Skip("TestWithoutDescriptors runs it")
	}
	sockets := func() (n int) {
		all, _ := filepath.Glob("/proc/self/fd/*")
		for _, fd := range all {
			if to, _ := os.Readlink(fd); strings.HasPrefix(to, "socket:") {
				n++
			}
		}
		return n
	}
	before := sockets()
	g := library(t)
	o := g.options(t)
	d, url := open(t, newProxy(t, o), modproxy.Limits{})
	if code, _ := fetch(t, url+libMod); code != http.StatusOK { // kept, and the connections stay
		t.Fatal(code)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 100, Max: 100}); err != nil {
		t.Fatal(err)
	}
	var hoard []*os.File
	eat := func() {
		for {
			f, err := os.Open(os.DevNull)
			if err != nil {
				return
			}
			hoard = append(hoard, f)
		}
	}
	spit := func() {
		for _, f := range hoard {
			f.Close()
		}
		hoard = nil
	}
	defer spit()

	eat()
	if code, body := fetch(t, url+libMod); code != http.StatusOK {
		t.Errorf("%d %q, though a connection upstream could have been given up", code, body)
	}
	checkFault(t, d, nil)

	spit()
	g.Close() // and no answer but from the cache
	g.db.Close()
	fetch(t, url+libMod)                                     // Close has closed more than its own connections
	waitFor(t, func() bool { return sockets() == before+3 }) // the door's listener, and both ends of what was asked on
	eat()
	if code, body := fetch(t, url+libMod); code != http.StatusInternalServerError {
		t.Errorf("%d %q", code, body)
	}
	checkFault(t, d, syscall.EMFILE)
	if code, body := fetch(t, url+libZip); code != http.StatusInternalServerError {
		t.Errorf("not in the cache: %d %q", code, body)
	}
	checkFault(t, d, syscall.EMFILE)

	spit()
	if code, body := fetch(t, url+libMod); code != http.StatusOK {
		t.Errorf("%d %q: the cache has lost what it could not open", code, body)
	}
	checkFault(t, d, nil)
}
