package disk_test

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/monochromegane/cargo/disk"
)

// churn is the environment variable that makes this test a process that makes
// disks in the directory that it names, until it is killed.
const churn = "DISK_TEST_CHURN"

func TestChurn(t *testing.T) {
	dir := os.Getenv(churn)
	if dir == "" {
		t.Skip("this is the child of TestSweepAfterKill")
	}
	fmt.Println("started")
	disks, err := disk.Open(t.Context(), disk.Options{Dir: dir, Limit: 64 * mib})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			for {
				d, err := disks.Make(t.Context(), fmt.Sprint(i))
				fmt.Println("made", err)
				if err != nil {
					return
				}
				o, err := d.Overlay("o", []string{os.TempDir()}, 0, 0)
				fmt.Println("overlay", err)
				_ = os.WriteFile(filepath.Join(o.Dir, "file"), make([]byte, mib), 0o600)
				fmt.Println("closed", d.Close())
			}
		})
	}
	wg.Wait()
}

func TestSweepAfterKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open(t, disk.Options{Dir: dir, Limit: 64 * mib})
	for range 15 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChurn$")
		cmd.Env = append(os.Environ(), churn+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for range 1 + rand.IntN(20) {
			if !lines.Scan() {
				t.Fatalf("the child ended: %v", cmd.Wait())
			}
			if f := strings.Fields(lines.Text()); len(f) == 0 || len(f) > 1 && f[1] != "<nil>" {
				t.Fatalf("the child says %q", lines.Text())
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // "killed" is what it must say
		open(t, disk.Options{Dir: dir, Limit: 64 * mib})
		wantNothingLeft(t, dir)
	}
}

func TestSweepTouchesNothingElse(t *testing.T) {
	t.Parallel()
	needMounts(t)
	dir, outside := t.TempDir(), t.TempDir()
	kept := filepath.Join(outside, "kept")
	write(t, kept, "kept")
	write(t, filepath.Join(dir, "Notes.txt"), "kept")
	write(t, filepath.Join(dir, "lost+found/file"), "kept")
	write(t, filepath.Join(dir, "old/go/file"), "gone")
	write(t, filepath.Join(dir, ".old.img"), "gone")
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	next := dir + "-next" // has the name of dir in front of its own, but is not below it
	for _, at := range []string{filepath.Join(dir, "mounted"), filepath.Join(dir, "mounted"), next} {
		if err := os.MkdirAll(at, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(outside, at, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	defer func() {
		if err := unix.Unmount(next, 0); err != nil {
			t.Error(err)
		}
	}()
	open(t, disk.Options{Dir: dir, Kind: disk.Watch})
	wantFile(t, kept, "kept")
	wantFile(t, filepath.Join(next, "kept"), "kept")
	if got := fmt.Sprint(left(t, dir)); got != "[Notes.txt lost+found]" {
		t.Errorf("left: %s", got)
	}
}

func FuzzParseMounts(f *testing.F) {
	f.Add("/srv/disks/build", "36 35 98:0 / /srv/disks/a rw - ext4 /dev/loop0 rw\n")
	f.Add("/srv/disks/a b\tc\nd\\e", "\\")
	f.Add(`/srv/disks/\040`, "1 2 3 4 /srv/disks/\\04\n\n \x00")
	f.Fuzz(func(t *testing.T, path, noise string) {
		for _, p := range disk.ParseMounts([]byte(noise), "/srv/disks") {
			if !strings.HasPrefix(p, "/srv/disks/") {
				t.Errorf("%q is not below the directory", p)
			}
		}
		if !strings.HasPrefix(path, "/srv/disks/") {
			return
		}
		var escaped strings.Builder
		for _, c := range []byte(path) {
			if strings.IndexByte(" \t\n\\#", c) >= 0 {
				fmt.Fprintf(&escaped, `\%03o`, c)
			} else {
				escaped.WriteByte(c)
			}
		}
		line := "36 35 98:0 / " + escaped.String() + " rw,nosuid shared:1 - ext4 /dev/loop0 rw\n"
		if got := disk.ParseMounts([]byte(line+line), "/srv/disks"); len(got) != 2 || got[0] != path || got[1] != path {
			t.Errorf("%q, want %q twice", got, path)
		}
	})
}
