package main

import (
	"context"
	"fmt"
	"time"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"
)

// lowSpace says which disk of this server has less room than --min-free, "" if
// none has. A disk that cannot be asked is not full.
func (r *rooms) lowSpace() string {
	for _, dir := range []string{r.cfg.dataDir, r.cfg.storage.dir, r.cfg.logDir, r.cfg.workspaceDir} {
		var s unix.Statfs_t
		if err := unix.Statfs(dir, &s); err != nil {
			continue
		}
		if free := int64(s.Bavail) * s.Bsize; free < r.cfg.quotas.minFree {
			return fmt.Sprintf("the disk of %s has %s free, less than --min-free %s: no build starts until there is more",
				dir, units.BytesSize(float64(free)), units.BytesSize(float64(r.cfg.quotas.minFree)))
		}
	}
	return ""
}

// spacePause is how long a worker waits before it looks at the disks again.
const spacePause = time.Second

// waitForSpace returns when there is room for a build, or ctx ends.
func (r *rooms) waitForSpace(ctx context.Context) {
	for said := false; ; said = true {
		low := r.lowSpace()
		if low == "" {
			return
		}
		if !said {
			r.log.Warn("builds wait", "why", low)
		}
		if !rest(ctx, spacePause) {
			return
		}
	}
}

// rest waits for d, or reports that ctx ended.
func rest(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
