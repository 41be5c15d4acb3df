package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// An Overlay shows a stack of directories as one, which can be written to. It
// lives as long as its disk.
type Overlay struct {
	Dir   string // what a container is given
	Upper string // what was written, with whiteouts and opaque directories as overlayfs makes them
}

// Overlay puts a new, empty directory of the disk on top of lowers, which are
// absolute paths, the topmost first, and which must not change meanwhile. The
// root of Dir belongs to uid and gid. Some 200 lowers fit.
//
// What is written through Dir counts to the disk, as does a copy of every lower
// file that is changed in any way.
func (d *Disk) Overlay(name string, lowers []string, uid, gid int) (_ Overlay, err error) {
	if !validName(name) {
		return Overlay{}, fmt.Errorf("not a name for an overlay: %q", name)
	}
	if len(lowers) == 0 {
		return Overlay{}, fmt.Errorf("overlay %s has nothing below it", name)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.root == nil {
		return Overlay{}, fmt.Errorf("overlay %s: the disk is closed", name)
	}
	// No disk or overlay has such a name, so nobody else makes this directory.
	dir := filepath.Join(d.dir, ".overlay", name)
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return Overlay{}, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return Overlay{}, err
	}
	o := Overlay{Dir: filepath.Join(dir, "merged"), Upper: filepath.Join(dir, "upper")}
	work := filepath.Join(dir, "work")
	err = errors.Join(os.Mkdir(o.Dir, 0o700), os.Mkdir(work, 0o700), os.Mkdir(o.Upper, 0o755), os.Chown(o.Upper, uid, gid))
	if err == nil {
		err = mountOverlay(o, work, lowers)
	}
	if err != nil {
		return Overlay{}, errors.Join(fmt.Errorf("overlay %s: %w", name, err), remove(dir))
	}
	d.mounts = append(d.mounts, o.Dir)
	return o, nil
}

// mountOverlay names directories to the kernel by this process's descriptors
// of them: whatever is in their paths, those need no quoting, and many of them
// fit into the page that mount(2) takes.
func mountOverlay(o Overlay, work string, lowers []string) error {
	var open []*os.File
	defer func() {
		for _, f := range open {
			f.Close()
		}
	}()
	var short []string
	for _, path := range append([]string{o.Upper, work}, lowers...) {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("%q is not an absolute path", path)
		}
		f, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		open = append(open, f)
		short = append(short, fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	}
	// Everything that ties files to their lower ones by more than name is off,
	// whatever the defaults of this kernel are: the upper directory may become
	// a layer of other overlays.
	data := fmt.Sprintf("index=off,metacopy=off,redirect_dir=off,xino=off,upperdir=%s,workdir=%s,lowerdir=%s",
		short[0], short[1], strings.Join(short[2:], ":"))
	const volatile = "volatile," // since Linux 5.10: writes nothing out for fsync(2), nor when unmounted
	if len(volatile)+len(data) >= os.Getpagesize() {
		return fmt.Errorf("%d directories are too many", len(lowers))
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOATIME
	err := unix.Mount("overlay", o.Dir, "overlay", flags, volatile+data)
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount("overlay", o.Dir, "overlay", flags, data)
	}
	if err != nil {
		return &os.PathError{Op: "mount", Path: o.Dir, Err: err}
	}
	return nil
}
