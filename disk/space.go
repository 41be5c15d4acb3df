package disk

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
)

const (
	period     = 10 * time.Millisecond
	nearPeriod = time.Millisecond
)

// watchSpace looks at the file system until ctx is done: the go command, for
// one, removes its files as soon as it is out of space.
func (d *Disk) watchSpace(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		near := d.lookAtSpace()
		if d.full.Load() { // for good
			return
		}
		if near {
			timer.Reset(nearPeriod)
		} else {
			timer.Reset(period)
		}
	}
}

// lookAtSpace notes how much is used, and whether that is all. It says whether
// it soon may be.
func (d *Disk) lookAtSpace() (near bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var s unix.Statfs_t
	if d.root == nil || unix.Fstatfs(int(d.root.Fd()), &s) != nil {
		return false
	}
	d.used.Store(int64(s.Blocks-s.Bfree) * s.Bsize)
	// ext4 refuses a write while some dozens of blocks are left, and who cannot
	// have what it asks for frees some before anybody can look: hence the last
	// thousandth, or MiB. And the last twentieth is full in a few milliseconds.
	if s.Bavail <= max(s.Blocks/1000, 256) || s.Ffree <= s.Files/1000 {
		d.full.Store(true)
	}
	return s.Bavail < s.Blocks/20 || s.Ffree < s.Files/20
}
