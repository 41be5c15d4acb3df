package disk_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/monochromegane/cargo/disk"
)

func TestWatch(t *testing.T) {
	t.Parallel()
	const limit = 16 * mib
	for name, c := range map[string]struct {
		write func(t *testing.T, d *disk.Disk)
		over  bool
	}{
		"bytes": {func(t *testing.T, d *disk.Disk) {
			write(t, filepath.Join(d.Dir(), "a/b/file"), string(make([]byte, limit)))
		}, true},
		"bytes in an overlay": {func(t *testing.T, d *disk.Disk) {
			o, err := d.Overlay("o", []string{t.TempDir()}, 0, 0)
			if err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(o.Dir, "file"), string(make([]byte, limit)))
		}, true},
		"files": {func(t *testing.T, d *disk.Disk) {
			for i := range 9000 {
				write(t, filepath.Join(d.Dir(), fmt.Sprint(i)), "")
			}
		}, true},
		"depth": {func(t *testing.T, d *disk.Disk) { nest(t, d.Dir(), 1000) }, true},
		"half": {func(t *testing.T, d *disk.Disk) {
			big := filepath.Join(d.Dir(), "file")
			write(t, big, string(make([]byte, limit/2)))
			for i := range 10 { // a file counts once
				if err := os.Link(big, fmt.Sprint(big, i)); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Truncate(filepath.Join(d.Dir(), "file"), 1<<40); err != nil { // nor does a hole
				t.Fatal(err)
			}
		}, false},
		"lower": {func(t *testing.T, d *disk.Disk) {
			lower := t.TempDir()
			write(t, filepath.Join(lower, "file"), string(make([]byte, 2*limit)))
			if _, err := d.Overlay("o", []string{lower}, 0, 0); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(d.Dir(), "file"), string(make([]byte, limit/4)))
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := makeDisk(t, open(t, disk.Options{Limit: limit, Kind: disk.Watch}))
			c.write(t, d)
			if c.over {
				<-d.Exceeded()
				if !d.Full() {
					t.Error("exceeded, but not full")
				}
				return
			}
			eventually(t, "never measured", func() bool {
				used, _ := d.Usage()
				return used > limit/4-mib
			})
			if used, _ := d.Usage(); used > limit/2+mib || d.Full() {
				t.Errorf("%d bytes used, full: %v", used, d.Full())
			}
		})
	}
}
