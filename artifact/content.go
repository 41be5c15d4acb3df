package artifact

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"syscall"

	"github.com/monochromegane/cargo/build"
)

// PutOptions say how an artifact is put into a store.
type PutOptions struct {
	// Limit is how many bytes the archive may have; 0 means DefaultLimit.
	Limit int64
	// Confirm is asked last, when all is safe but the slot is still what it
	// was: its error ends Put, and nothing is changed. It may be asked more than
	// once. nil confirms everything.
	Confirm func(ctx context.Context) error
}

// Confirmed asks Confirm, if there is one.
func (o PutOptions) Confirmed(ctx context.Context) error {
	if o.Confirm == nil {
		return nil
	}
	return o.Confirm(ctx)
}

// Receive runs write with a writer that passes on to w, and returns m with
// Artifact filled in. It is how every store takes an archive in: more than the
// limit is ErrTooLarge, and the end of ctx ends it, whatever write makes of the
// errors that it gets. What goes wrong with w is ErrUnavailable where it is the
// disk's fault; write's own errors are passed on.
func Receive(ctx context.Context, w io.Writer, m Meta, o PutOptions, write func(io.Writer) error) (Meta, error) {
	counted := &limitedWriter{ctx: ctx, w: w, sum: sha256.New(), limit: o.Limit}
	if counted.limit == 0 {
		counted.limit = DefaultLimit
	}
	err := write(counted)
	if counted.err != nil {
		return m, Unavailable(counted.err) // whatever write made of it
	}
	if err != nil {
		return m, err
	}
	m.Artifact = build.Artifact{
		Name:   m.Key.ArchiveName(),
		Size:   counted.size,
		SHA256: hex.EncodeToString(counted.sum.Sum(nil)),
	}
	return m, nil
}

// ReceiveLog passes the first size bytes of r on to w, until ctx ends. It is how
// every store takes a log in; what goes wrong is ErrUnavailable where it is the
// disk's fault.
func ReceiveLog(ctx context.Context, w io.Writer, r io.ReaderAt, size int64) error {
	n, err := io.Copy(w, contextReader{ctx, io.NewSectionReader(r, 0, size)})
	if err == nil && n != size {
		err = fmt.Errorf("it has %d bytes instead of %d: %w", n, size, io.ErrUnexpectedEOF)
	}
	return Unavailable(err)
}

// VerifyContent reads r to its end. It is ErrCorrupt if that is not the archive
// of m.
func VerifyContent(ctx context.Context, r io.Reader, m Meta) error {
	sum := sha256.New()
	n, err := io.Copy(sum, io.LimitReader(contextReader{ctx, r}, m.Artifact.Size+1))
	if err != nil {
		return fmt.Errorf("verify artifact: %w", err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); n != m.Artifact.Size || got != m.Artifact.SHA256 {
		return corrupt("blob %s has %d bytes with the SHA-256 %s", m.Artifact.SHA256, n, got)
	}
	return nil
}

// Unavailable marks an error of the disk that is the machine's and not the
// caller's as ErrUnavailable, and keeps it. It leaves every other error alone.
func Unavailable(err error) error {
	if err == nil || errors.Is(err, ErrUnavailable) {
		return err
	}
	for _, ours := range []syscall.Errno{
		syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EIO, syscall.EMFILE, syscall.ENFILE, syscall.ESTALE, syscall.ENOLCK,
	} {
		if errors.Is(err, ours) {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	return err
}

// A limitedWriter hashes and counts what it passes on; its first error stays.
type limitedWriter struct {
	ctx   context.Context
	w     io.Writer
	sum   hash.Hash
	size  int64
	limit int64
	err   error
}

func (w *limitedWriter) Write(p []byte) (int, error) {
	if w.err == nil {
		w.err = context.Cause(w.ctx)
	}
	if w.err == nil && int64(len(p)) > w.limit-w.size {
		w.err = fmt.Errorf("%w: the archive is over the %d bytes that --artifact-limit allows", ErrTooLarge, w.limit)
	}
	if w.err != nil {
		return 0, w.err
	}
	n, err := w.w.Write(p)
	w.sum.Write(p[:n])
	w.size += int64(n)
	w.err = err
	return n, err
}

// A contextReader reads until ctx ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
