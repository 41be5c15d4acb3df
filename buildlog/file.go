package buildlog

import (
	"bytes"
	"cmp"
	"log/slog"
	"os"
	"time"

	"github.com/monochromegane/cargo/build"
)

// A logFile is the file of one log, which whole lines are appended to. Those
// that its disk does not take are lost; when it takes lines again, the first
// says how many.
type logFile struct {
	file *os.File
	id   build.ID

	whole int64 // bytes of whole lines in the file
	torn  bool  // more follows them
	lost  int   // lines, since the disk has last taken some
	err   error // the first
}

// add appends lines as far as the disk takes them.
func (f *logFile) add(lines []byte) {
	if f.torn {
		if err := f.file.Truncate(f.whole); err != nil {
			f.lost += bytes.Count(lines, []byte("\n"))
			return
		}
		f.torn = false
	}
	if f.lost > 0 {
		if f.write(f.gap()) > 0 {
			f.lost += bytes.Count(lines, []byte("\n"))
			return
		}
		f.lost = 0
	}
	f.lost = f.write(lines)
}

// write returns how many of the lines the disk did not take.
func (f *logFile) write(lines []byte) (lost int) {
	n, err := f.file.Write(lines)
	took := bytes.LastIndexByte(lines[:n], '\n') + 1
	f.whole += int64(took)
	f.torn = took < n
	f.err = cmp.Or(f.err, err)
	return bytes.Count(lines[took:], []byte("\n"))
}

func (f *logFile) gap() []byte {
	b := appendHead(nil, f.id, slog.LevelError, "the disk of the server did not take some lines of this log", time.Now().UTC())
	return appendEnd(appendAttr(b, slog.Int("lost_lines", f.lost), 0), 0)
}

// close syncs and closes the file. It returns the first error of all.
func (f *logFile) close() error {
	return cmp.Or(f.err, f.file.Sync(), f.file.Close())
}
