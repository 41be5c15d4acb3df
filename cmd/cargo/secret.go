package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// secretBytes is the length of the key that seals tokens.
const secretBytes = 32

// A secret is the key that seals tokens.
type secret struct {
	key  []byte
	made bool // just now: there was none
}

// readSecret returns the key in path, and makes it where there is none.
func readSecret(path string) (secret, error) {
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		key, err := makeSecret(path)
		return secret{key, true}, err
	}
	if err != nil {
		return secret{}, usageError{fmt.Errorf("--secret-file %s: %w", path, cause(err))}
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return secret{}, usageError{fmt.Errorf("--secret-file %s: others can read it (mode %04o); run: chmod 600 %s", path, fi.Mode().Perm(), path)}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return secret{}, usageError{fmt.Errorf("--secret-file %s: %w", path, cause(err))}
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != secretBytes {
		return secret{}, usageError{fmt.Errorf("--secret-file %s: want %d hex digits; move it away and a new one is made (private builds that wait are then lost)", path, 2*secretBytes)}
	}
	return secret{key: key}, nil
}

// makeSecret writes a new key durably: a build sealed with a key that a power
// cut took could never be opened again.
func makeSecret(path string) ([]byte, error) {
	key := make([]byte, secretBytes)
	_, _ = rand.Read(key) // never fails
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".secret-*") // mode 0600
	if err != nil {
		return nil, usageError{fmt.Errorf("--secret-file %s: cannot be made: %w", path, cause(err))}
	}
	defer os.Remove(f.Name())
	_, err = fmt.Fprintln(f, hex.EncodeToString(key))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return nil, err
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	return key, errors.Join(d.Sync(), d.Close())
}
