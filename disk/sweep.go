package disk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sweep unmounts and removes what an earlier process left in dir. Loop devices
// free themselves when they are unmounted.
func sweep(dir string) error {
	left, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	for _, path := range left {
		if _, err := unmount(path); err != nil {
			return err
		}
	}
	// What is removed below must be ours, and not what somebody mounted there.
	if left, err = mountsBelow(dir); err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("%s is mounted again", left[0])
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name, image := strings.CutSuffix(e.Name(), ".img")
		if image {
			name, image = strings.CutPrefix(name, ".")
		}
		if !validName(name) || image && !e.Type().IsRegular() {
			continue
		}
		err = errors.Join(err, remove(filepath.Join(dir, e.Name())))
	}
	return err
}

// mountsBelow are the mount points below dir, in an order in which they can be
// unmounted. One that is mounted on twice is listed twice.
func mountsBelow(dir string) ([]string, error) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMounts(info, dir), nil
}

// parseMounts finds mount points in the content of a /proc/PID/mountinfo
// (proc(5)), which lists a mount after the one that it is on.
func parseMounts(info []byte, dir string) []string {
	var found []string
	prefix := strings.TrimSuffix(dir, "/") + "/"
	for line := range bytes.Lines(info) {
		f := bytes.SplitN(line, []byte(" "), 6)
		if len(f) < 6 {
			continue
		}
		if path := unescape(string(f[4])); strings.HasPrefix(path, prefix) {
			found = append(found, path)
		}
	}
	slices.Reverse(found)
	return found
}

// unescape undoes the kernel's \ooo, three octal digits for a byte.
func unescape(s string) string {
	var b strings.Builder
	for ; s != ""; s = s[1:] {
		if len(s) > 3 && s[0] == '\\' && '0' <= s[1] && s[1] <= '3' && octal(s[2]) && octal(s[3]) {
			b.WriteByte((s[1]-'0')<<6 | (s[2]-'0')<<3 | (s[3] - '0'))
			s = s[3:]
			continue
		}
		b.WriteByte(s[0])
	}
	return b.String()
}

func octal(c byte) bool { return '0' <= c && c <= '7' }

// unmount unmounts what is on dir. If that is still in use after a while, it
// takes it out of sight and says so: it ends with its last use.
func unmount(dir string) (lazy bool, err error) {
	// A child of this process, before it runs its program, holds for a moment
	// what was open at the fork; and so do others that look around.
	for pause := time.Millisecond; pause < 100*time.Millisecond; pause *= 2 {
		err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		if !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(pause)
	}
	if errors.Is(err, unix.EBUSY) {
		lazy = true
		err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	if err != nil {
		return false, &os.PathError{Op: "unmount", Path: dir, Err: err}
	}
	return lazy, nil
}
