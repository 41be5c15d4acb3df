package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// stamp is the time of everything in the image, so that it is the same every time.
var stamp = time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)

// A file is one entry of a layer. Its zero value is an empty file that nobody may read.
type file struct {
	kind byte // a type flag of archive/tar
	mode fs.FileMode
	link string // the target of a symbolic or a hard link
	size int64
	open func() (io.ReadCloser, error) // of a regular file
}

// files are the entries of a layer by slash-separated path without a leading slash.
type files map[string]file

func (l files) dir(name string, mode fs.FileMode) {
	l[name] = file{kind: tar.TypeDir, mode: mode}
}

func (l files) symlink(name, target string) {
	l[name] = file{kind: tar.TypeSymlink, mode: 0o777, link: target}
}

func (l files) bytes(name string, mode fs.FileMode, data []byte) {
	l[name] = file{kind: tar.TypeReg, mode: mode, size: int64(len(data)), open: func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data)), nil
	}}
}

// parents adds the directories that files lie in.
func (l files) parents() {
	for name := range maps.Clone(l) {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, ok := l[dir]; ok {
				break
			}
			l.dir(dir, 0o755)
		}
	}
}

// write writes l to a new gzipped tar at name: sorted, hard links after what
// they point to, owned by root, every time the same.
func (l files) write(ctx context.Context, name string) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = cmp.Or(err, f.Close()) }()
	zw, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(zw)
	l.parents()
	names := slices.SortedFunc(maps.Keys(l), func(a, b string) int {
		ahard, bhard := l[a].kind == tar.TypeLink, l[b].kind == tar.TypeLink
		switch {
		case ahard == bhard:
			return strings.Compare(a, b)
		case ahard:
			return 1
		}
		return -1
	})
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := l[name].writeTo(tw, name); err != nil {
			return err
		}
	}
	return cmp.Or(tw.Close(), zw.Close())
}

func (f file) writeTo(tw *tar.Writer, name string) error {
	h := &tar.Header{Typeflag: f.kind, Name: name, Linkname: f.link, Size: f.size, Mode: int64(f.mode.Perm()), ModTime: stamp}
	if f.kind == tar.TypeDir {
		h.Name += "/"
	}
	if f.mode&fs.ModeSticky != 0 {
		h.Mode |= 0o1000
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	if f.kind != tar.TypeReg {
		return nil
	}
	r, err := f.open()
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(tw, r)
	return err
}
