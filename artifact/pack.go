package artifact

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
)

// compression is the gzip level of every archive. A change of it, like an
// update of the compressor, changes the bytes of all of them. Whoever waits for
// a build waits for this: level 3 takes 78 ms for 12 MB of a Go program, where
// level 6 takes 140 ms to save five percent of the archive, and level 1, for
// six percent more, is hardly faster (measured with programs of 9 to 23 MB; the
// standard library takes 430 ms at its level 6, and saves two percent again).
// One goroutine is enough for that, so the bytes do not depend on how many
// there are.
const compression = 3

// buffered is how much of the archive is written at a time: the compressor by
// itself writes a few hundred bytes each, which cost more than hashing them.
const buffered = 64 << 10

// Pack writes files as a tar.gz whose bytes depend on nothing but the files'
// paths, contents and Executable, and on mtime in whole seconds (times before
// 1970 count as 1970). tree is the one that they were collected from; a file
// that is not what Collect saw is an error, and then w holds a broken archive.
func Pack(ctx context.Context, w io.Writer, tree *os.Root, files []File, mtime time.Time) error {
	mtime = time.Unix(max(mtime.Unix(), 0), 0).UTC()
	files = slices.SortedFunc(slices.Values(files), func(a, b File) int { return strings.Compare(a.Path, b.Path) })

	out := bufio.NewWriterSize(w, buffered)
	z, err := gzip.NewWriterLevel(out, compression)
	if err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	z.ModTime = time.Unix(0, 0) // "none" in the header; this package writes the zero Time as one in 2042
	t := tar.NewWriter(z)
	for _, f := range files {
		if err := packFile(ctx, t, tree, f, mtime); err != nil {
			return fmt.Errorf("pack %s: %w", f.Path, err)
		}
	}
	if err := errors.Join(t.Close(), z.Close(), out.Flush()); err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	return nil
}

func packFile(ctx context.Context, t *tar.Writer, tree *os.Root, file File, mtime time.Time) error {
	f, err := open(tree, file.Path, file.info)
	if err != nil {
		return err
	}
	defer f.Close()
	mode := int64(0o644)
	if file.Executable {
		mode = 0o755
	}
	// The format is left to the writer: USTAR where the header fits, else PAX.
	err = t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: file.Path, Size: file.Size, Mode: mode, ModTime: mtime})
	if err != nil {
		return err
	}
	n, err := io.Copy(t, io.LimitReader(contextReader{ctx, f}, file.Size))
	if err == nil && n != file.Size {
		err = errChanged
	}
	return err
}
