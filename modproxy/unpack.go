package modproxy

import (
	"archive/zip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/mod/module"
	modzip "golang.org/x/mod/zip"
)

// maxFiles bounds the inodes of one module. Those with the most have some 60,000.
const maxFiles = 200_000

// unpack extracts a module's zip into dir, which is there and empty, and
// returns its h1 hash (golang.org/x/mod/sumdb/dirhash) and what it takes on
// disk. Files are as the go command would extract them, read-only for all.
func unpack(ctx context.Context, m module.Version, file *os.File, dir string) (sum digest, size int64, err error) {
	if _, err := modzip.CheckZip(m, fdPath(file)); err != nil {
		return sum, 0, err
	}
	fi, err := file.Stat()
	if err != nil {
		return sum, 0, cacheError(err)
	}
	z, err := zip.NewReader(file, fi.Size())
	if err != nil {
		return sum, 0, err
	}
	if len(z.File) > maxFiles {
		return sum, 0, fmt.Errorf("%s has more than %d files", m, maxFiles)
	}
	slices.SortFunc(z.File, func(a, b *zip.File) int { return strings.Compare(a.Name, b.Name) })
	h := sha256.New()
	u := unpacker{ctx: ctx, prefix: m.String() + "/", dir: dir, made: map[string]bool{dir: true}, buf: make([]byte, 64<<10)}
	for _, f := range z.File {
		sum, err := u.file(f)
		if err != nil {
			if _, disk := errors.AsType[*fs.PathError](err); disk && !errors.Is(err, syscall.ENAMETOOLONG) {
				err = cacheError(err)
			}
			return digest{}, 0, fmt.Errorf("unpack %s: %w", m, err)
		}
		fmt.Fprintf(h, "%x  %s\n", sum, f.Name)
	}
	return digest(h.Sum(nil)), u.size + int64(len(u.made))*block, nil
}

// An unpacker extracts one zip, whose names modzip has checked.
type unpacker struct {
	ctx    context.Context
	prefix string
	dir    string
	made   map[string]bool // directories
	buf    []byte
	size   int64
}

// file extracts f and returns the SHA-256 of its content. For a directory,
// which no module's zip need have, it makes nothing.
func (u *unpacker) file(f *zip.File) (sum []byte, err error) {
	h := sha256.New()
	name := strings.TrimPrefix(f.Name, u.prefix)
	if name == "" || strings.HasSuffix(name, "/") {
		return h.Sum(nil), nil
	}
	if !isFileName(name) {
		return nil, fmt.Errorf("a name of %d bytes", len(name))
	}
	path := filepath.Join(u.dir, filepath.FromSlash(name))
	if dir := filepath.Dir(path); !u.made[dir] {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		for ; !u.made[dir]; dir = filepath.Dir(dir) {
			u.made[dir] = true
		}
	}
	r, err := f.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	w, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, readOnly)
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := w.Close(); err == nil {
			err = cerr
		}
	}()
	if err := w.Chmod(readOnly); err != nil { // whatever the umask
		return nil, err
	}
	// r fails where there is more than the size that modzip has checked.
	n, err := io.CopyBuffer(io.MultiWriter(w, h), reader{u.ctx, r}, u.buf)
	if err != nil {
		return nil, err
	}
	u.size += blocks(n)
	return h.Sum(nil), nil
}
