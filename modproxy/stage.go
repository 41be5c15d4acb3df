package modproxy

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/mod/sumdb/dirhash"
	"golang.org/x/sys/unix"
)

// viewDir is the part of a view that a build sees, of which the module cache's
// layout is the go command's (cmd/go/internal/modfetch): a module is there if
// its directory and its .ziphash are, and no .partial.
func viewDir(view string) string { return filepath.Join(view, "mod") }

// A stage is a view in the making.
type stage struct {
	proxy *Proxy
	temp  string

	mu   sync.Mutex
	made map[string]bool // directories of the build user's, relative to viewDir
	size int64
}

func (p *Proxy) newStage() (*stage, error) {
	temp, err := os.MkdirTemp(p.cache.tempDir(), "view-")
	if err != nil {
		return nil, cacheError(err)
	}
	s := &stage{proxy: p, temp: temp, made: map[string]bool{}}
	if err := s.openDir("cache/download"); err != nil {
		s.remove()
		return nil, err
	}
	return s, nil
}

func (s *stage) remove() { os.RemoveAll(s.temp) }

func (s *stage) path(rel string) string {
	return filepath.Join(viewDir(s.temp), filepath.FromSlash(rel))
}

// openDir makes a directory to which a build may add, and those above it.
func (s *stage) openDir(rel string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.openDirLocked(rel)
}

func (s *stage) openDirLocked(rel string) error {
	if s.made[rel] {
		return nil
	}
	if rel != "." {
		if err := s.openDirLocked(filepath.Dir(rel)); err != nil {
			return err
		}
	}
	path := s.path(rel)
	err := makeDir(path)
	if p := s.proxy; err == nil && (p.uid != 0 || p.gid != 0) {
		err = os.Chown(path, p.uid, p.gid)
	}
	if err != nil {
		return cacheError(err)
	}
	s.made[rel] = true
	s.size += block
	return nil
}

// makeDir makes a directory that all may read, whatever the umask.
func makeDir(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	return os.Chmod(path, 0o755) //nolint:gosec // builds read it
}

// addMod adds a go.mod of the download cache: a link to file if that is still
// in the cache, since a link costs a tenth of what a file does.
func (s *stage) addMod(q request, file *os.File, content []byte) error {
	path, err := s.downloadPath(q.name)
	if err != nil {
		return err
	}
	if err := file.Chmod(readOnly); err != nil {
		return cacheError(err)
	}
	err = unix.Linkat(unix.AT_FDCWD, fdPath(file), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	if errors.Is(err, fs.ErrNotExist) {
		err = writeFile(path, content)
	}
	if err != nil {
		return cacheError(err)
	}
	s.grow(blocks(int64(len(content))))
	return nil
}

// downloadPath is the path of a file of the download cache, by the name that
// the module proxy protocol has for it. Its directory is there.
func (s *stage) downloadPath(name string) (string, error) {
	name = "cache/download/" + name
	return s.path(name), s.openDir(filepath.Dir(name))
}

// fdPath is a path of an open file that holds even when its own is gone.
func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// readOnly is the mode of all files that a build sees.
const readOnly = 0o444

// writeFile writes a file that all may read, whatever the umask.
func writeFile(path string, content []byte) error {
	if err := os.WriteFile(path, content, readOnly); err != nil {
		return err
	}
	return os.Chmod(path, readOnly)
}

func (s *stage) grow(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.size += n
}

// addTree adds a module: links to its files in directories of this view's own.
func (s *stage) addTree(ctx context.Context, p part) error {
	q, _ := p.request()
	hash, err := s.downloadPath(q.name + "hash")
	if err != nil {
		return err
	}
	if err := os.Link(filepath.Join(p.dir, treeHash), hash); err != nil {
		return cacheError(err)
	}
	root := strings.TrimSuffix(strings.Replace(q.name, "/@v/", "@", 1), ".zip")
	if err := s.openDir(filepath.Dir(root)); err != nil {
		return err
	}
	return s.link(ctx, filepath.Join(p.dir, treeRoot), s.path(root))
}

func (s *stage) link(ctx context.Context, from, to string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := makeDir(to); err != nil {
		return cacheError(err)
	}
	s.grow(block)
	entries, err := os.ReadDir(from)
	if err != nil {
		return cacheError(err)
	}
	for _, e := range entries {
		from, to := from+"/"+e.Name(), to+"/"+e.Name()
		if e.IsDir() {
			err = s.link(ctx, from, to)
		} else if err = os.Link(from, to); err != nil {
			err = cacheError(err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// keep moves the view into the cache.
func (s *stage) keep(name digest, parts []part) (*hold, error) {
	var list bytes.Buffer
	e := &entry{area: areaViews, name: name, size: s.size + 2*block} // with its own directory and list
	for _, p := range parts {
		e.parts = append(e.parts, p.entry)
		fmt.Fprintln(&list, hex.EncodeToString(p.entry.name[:]))
	}
	if err := os.WriteFile(filepath.Join(s.temp, partsFile), list.Bytes(), 0o600); err != nil {
		return nil, cacheError(err)
	}
	return s.proxy.cache.keep(e, s.temp)
}

// bytes reads all of a, which is no longer than limit.
func (a *answer) bytes(limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.NewSectionReader(a, 0, limit))
	if _, disk := errors.AsType[*fs.PathError](err); disk {
		err = cacheError(err)
	}
	return b, err
}

// goModSum is the hash that go.sum has for a go.mod.
func goModSum(content []byte) (string, error) {
	return dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
}
