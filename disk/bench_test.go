package disk_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/monochromegane/cargo/disk"
)

func BenchmarkMakeAndClose(b *testing.B) {
	for _, mib := range []int{0, 256} {
		b.Run(fmt.Sprintf("%dMiB", mib), func(b *testing.B) {
			disks := open(b, disk.Options{})
			data := make([]byte, 1<<20)
			var makes, closes time.Duration
			for b.Loop() {
				start := time.Now()
				d, err := disks.Make(b.Context(), "bench")
				if err != nil {
					b.Fatal(err)
				}
				makes += time.Since(start)
				for i := range mib {
					if err := os.WriteFile(filepath.Join(d.Dir(), fmt.Sprint(i)), data, 0o600); err != nil {
						b.Fatal(err)
					}
				}
				start = time.Now()
				if err := d.Close(); err != nil {
					b.Fatal(err)
				}
				closes += time.Since(start)
			}
			b.ReportMetric(float64(makes.Microseconds())/1000/float64(b.N), "make-ms/op")
			b.ReportMetric(float64(closes.Microseconds())/1000/float64(b.N), "close-ms/op")
		})
	}
}
