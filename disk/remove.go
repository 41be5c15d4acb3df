package disk

import (
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// remove removes a tree that a build may have made; that there is none is no
// error. os.RemoveAll holds a file open for each directory that it is in, and a
// build can put more of them into each other than a process may have files
// open. So whatever is not empty is moved to the top before it is emptied.
func remove(dir string) error {
	if err := os.Remove(dir); err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	todo, err := names(root, -1)
	for len(todo) > 0 && err == nil {
		name := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if root.Remove(name) == nil {
			continue
		}
		if todo, err = flatten(root, name, todo); err == nil {
			err = root.Remove(name)
		}
	}
	if err != nil {
		return err
	}
	return os.Remove(dir)
}

// flatten empties the directory called name in root. What is in it and not
// empty itself is moved into root, and its new name added to moved.
func flatten(root *os.Root, name string, moved []string) ([]string, error) {
	dir, err := root.OpenRoot(name)
	if err != nil {
		return moved, err
	}
	defer dir.Close()
	for {
		batch, err := names(dir, 1024)
		if err != nil || len(batch) == 0 {
			return moved, err
		}
		for _, n := range batch {
			if dir.Remove(n) == nil {
				continue
			}
			to := rand.Text()
			if err := root.Rename(filepath.Join(name, n), to); err != nil {
				return moved, err
			}
			moved = append(moved, to)
		}
	}
}

// names are the first n names in dir, or all.
func names(dir *os.Root, n int) ([]string, error) {
	f, err := dir.Open(".")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	found, err := f.Readdirnames(n)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return found, err
}
