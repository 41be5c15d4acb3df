package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// A template is a file system that was formatted once, from which each disk
// starts: a few 100 KiB of data in a file that is otherwise a hole.
type template struct {
	size    int64
	extents []extent
	attach  sync.Mutex // one at a time, or all are offered the same loop device
}

type extent struct {
	offset int64
	data   []byte
}

const (
	// A disk has a file for every fileSize bytes, which is far more than what
	// builds need, within minFiles and maxFiles, but its inodes take no more
	// than an eighth of a small one. maxFiles keeps a build that makes a million
	// files from doing so.
	fileSize = 16 << 10
	minFiles = 64 << 10
	maxFiles = 800_000
	// maxExtents and maxData bound what is kept in memory of a template.
	maxExtents = 10_000
	maxData    = 64 << 20
)

func files(limit int64) int64 {
	return min(max(limit/fileSize, minFiles), maxFiles, limit/8/256)
}

// imageName is where the file of a disk has a name for a moment.
func imageName(dir string) string {
	return filepath.Join(filepath.Dir(dir), "."+filepath.Base(dir)+".img")
}

// unnamed makes a file of size bytes. Its name is gone before it is used, so
// that a process that is killed leaves no file.
func unnamed(name string, size int64) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.Remove(name), f.Truncate(size)); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// format makes the template for disks of size bytes.
func format(ctx context.Context, dir string, size int64) (*template, error) {
	size &^= 4095
	mkfs, err := findMkfs()
	if err != nil {
		return nil, err
	}
	f, err := unnamed(imageName(filepath.Join(dir, "template")), size)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := exec.CommandContext(ctx, mkfs, "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", //nolint:gosec // found in fixed places
		"-N", strconv.FormatInt(files(size), 10), "-O", "^has_journal,^resize_inode",
		"-E", "lazy_itable_init=1,nodiscard", "/dev/fd/3")
	cmd.Env = []string{"LC_ALL=C"} // what we were told is not its business
	cmd.ExtraFiles = []*os.File{f}
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mkfs.ext4: %w: %s", err, strings.TrimSpace(string(out)))
	}
	t := &template{size: size}
	return t, t.read(f)
}

// findMkfs looks beyond $PATH, too, where the directories of root are often
// missing.
func findMkfs() (string, error) {
	for _, name := range []string{"mkfs.ext4", "/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("mkfs.ext4 not found: install e2fsprogs")
}

// read keeps what is in f but the holes.
func (t *template) read(f *os.File) error {
	var end, total int64
	for range maxExtents {
		start, err := f.Seek(end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // nothing but a hole follows
			return nil
		}
		if err != nil {
			return err
		}
		if end, err = f.Seek(start, unix.SEEK_HOLE); err != nil {
			return err
		}
		if total += end - start; total > maxData {
			break
		}
		data := make([]byte, end-start)
		if _, err := io.ReadFull(io.NewSectionReader(f, start, end-start), data); err != nil {
			return err
		}
		t.extents = append(t.extents, extent{start, data})
	}
	return errors.New("the file system of disks keeps no holes: it must support sparse files")
}

// mount mounts a new copy of the template on dir, and returns the root of that.
func (t *template) mount(ctx context.Context, dir string) (_ *os.File, err error) {
	image, err := unnamed(imageName(dir), t.size)
	if err != nil {
		return nil, err
	}
	defer image.Close()
	for _, e := range t.extents {
		if _, err := image.WriteAt(e.data, e.offset); err != nil {
			return nil, err
		}
	}
	device, err := t.loop(ctx, image)
	if err != nil {
		return nil, err
	}
	defer device.Close() // the mount keeps the device from here on, and the device the file
	// Nobody reads the disk after a crash, hence no barriers; nor is it worth
	// it to have the kernel write all inodes in the background.
	err = unix.Mount(device.Name(), dir, "ext4", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOATIME, "barrier=0,noinit_itable,errors=remount-ro")
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", device.Name(), err)
	}
	root, err := settle(dir, device)
	if err != nil {
		_, again := unmount(dir)
		return nil, errors.Join(err, again)
	}
	return root, nil
}

// settle opens what is mounted on dir and makes it look like an empty directory.
func settle(dir string, device *os.File) (_ *os.File, err error) {
	root, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			root.Close()
		}
	}()
	var at, of unix.Stat_t
	if err := errors.Join(unix.Fstat(int(root.Fd()), &at), unix.Fstat(int(device.Fd()), &of)); err != nil {
		return nil, err
	}
	if at.Dev != of.Rdev {
		return nil, fmt.Errorf("%s is not mounted on %s", device.Name(), dir)
	}
	if err := os.Remove(filepath.Join(dir, "lost+found")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return root, root.Chmod(0o700)
}

// loop attaches the file to a loop device, which frees itself when nothing
// has it open or mounted.
func (t *template) loop(ctx context.Context, image *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	t.attach.Lock()
	defer t.attach.Unlock()
	for range 1000 { // other processes are after the same devices
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		device, err := openLoop(n)
		if errors.Is(err, unix.ENXIO) || errors.Is(err, fs.ErrNotExist) { // it was removed meanwhile
			continue
		}
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(image.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
		copy(config.Info.File_name[:len(config.Info.File_name)-1], filepath.Base(image.Name()))
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
		if err == nil {
			return device, nil
		}
		device.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("configure %s: %w", device.Name(), err)
		}
	}
	return nil, errors.New("other processes took every loop device that was free")
}

// openLoop opens loop device n. Where nobody runs udev, or in a container with
// a /dev of its own, it may have no node yet.
func openLoop(n int) (*os.File, error) {
	path := fmt.Sprintf("/dev/loop%d", n)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	number, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/dev", n))
	if err != nil {
		return nil, err
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(string(number), "%d:%d", &major, &minor); err != nil {
		return nil, fmt.Errorf("number of %s: %w", path, err)
	}
	if err := unix.Mknod(path, unix.S_IFBLK|0o660, int(unix.Mkdev(major, minor))); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, &os.PathError{Op: "mknod", Path: path, Err: err}
	}
	return os.OpenFile(path, os.O_RDWR, 0)
}
