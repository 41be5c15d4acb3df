package cache

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A state is all lists, valid while the lock is held.
type state struct {
	cache      *Cache
	lists      map[Class]*list
	generation uint64
	lock       *os.File
	changed    bool
	trash      []trash
}

// A list is the layers of a class, in the form of classes/<key>.json. The time
// of the file's last change is the time of the class's last use.
type list struct {
	Version int     `json:"version"`
	Class   Class   `json:"class"`
	Layers  []layer `json:"layers"` // newest first
}

// A layer is what a list knows of layers/<id>.
type layer struct {
	ID     string    `json:"id"`
	Files  int       `json:"files"`
	Bytes  int64     `json:"bytes"`  // on disk
	Sealed time.Time `json:"sealed"` // when the newest file in it was
	Boot   string    `json:"boot"`   // of the kernel, in which it was last known to be whole
	UID    int       `json:"uid"`    // of its directories
	GID    int       `json:"gid"`
}

const (
	listVersion = 1
	maxList     = 256 << 10 // bytes
	idSize      = 16        // hex digits
)

func isID(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && len(s) == idSize && s == strings.ToLower(s)
}

func parseList(text []byte) (*list, error) {
	var l list
	d := json.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(&l); err != nil {
		return nil, err
	}
	if l.Version != listVersion {
		return nil, fmt.Errorf("version %d where %d is known", l.Version, listVersion)
	}
	if l.Class == (Class{}) {
		return nil, errors.New("no class")
	}
	seen := map[string]bool{}
	for _, a := range l.Layers {
		if !isID(a.ID) || seen[a.ID] || a.Files < 0 || a.Bytes < 0 {
			return nil, fmt.Errorf("layer %q cannot be", a.ID)
		}
		seen[a.ID] = true
	}
	return &l, nil
}

func readList(name string) (*list, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxList))
	if err != nil {
		return nil, err
	}
	return parseList(text)
}

// load reads all lists. One that a power failure tore is dropped: its layers
// are then in no list, and swept.
func (c *Cache) load() (*state, error) {
	s := &state{cache: c, lists: map[Class]*list{}}
	there, err := names(c.path("layers"))
	if err != nil {
		return nil, err
	}
	files, err := names(c.path("classes"))
	if err != nil {
		return nil, err
	}
	for _, name := range files {
		l, err := readList(c.path("classes", name))
		if err == nil && l.Class.key()+".json" != name {
			err = errors.New("the name is another class's")
		}
		if err != nil {
			if filepath.Ext(name) == ".json" {
				c.log.Warn("dropped a list of cache layers that cannot be read", "file", name, "err", err)
			}
			if err := os.Remove(c.path("classes", name)); err != nil {
				return nil, err
			}
			continue
		}
		l.Layers = slices.DeleteFunc(l.Layers, func(a layer) bool {
			_, found := slices.BinarySearch(there, a.ID)
			return !found
		})
		if len(l.Layers) == 0 {
			if err := os.Remove(c.path("classes", name)); err != nil {
				return nil, err
			}
			continue
		}
		s.lists[l.Class] = l
	}
	return s, nil
}

func names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	all := make([]string, len(entries))
	for i, e := range entries {
		all[i] = e.Name()
	}
	return all, nil
}

func (c *Cache) listPath(class Class) string { return c.path("classes", class.key()+".json") }
func (c *Cache) layerPath(id string) string  { return c.path("layers", id) }

// save writes the list of class with these layers. Its last use stays what it
// was, or is now for a list that is new.
func (s *state) save(class Class, layers []layer) error {
	if err := s.change(); err != nil {
		return err
	}
	name := s.cache.listPath(class)
	if len(layers) == 0 {
		delete(s.lists, class)
		if err := os.Remove(name); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	l := &list{listVersion, class, layers}
	text, err := json.MarshalIndent(l, "", "\t")
	if err != nil {
		return err
	}
	used, err := s.used(class)
	if err != nil {
		used = time.Now()
	}
	tmp := strings.TrimSuffix(name, ".json") + ".tmp"
	if err := os.WriteFile(tmp, append(text, '\n'), 0o600); err != nil {
		return err
	}
	if err := os.Chtimes(tmp, used, used); err != nil {
		return err
	}
	s.lists[class] = l
	return os.Rename(tmp, name)
}

func (s *state) layers(class Class) []layer {
	if l := s.lists[class]; l != nil {
		return slices.Clone(l.Layers)
	}
	return nil
}

func (s *state) used(class Class) (time.Time, error) {
	info, err := os.Stat(s.cache.listPath(class))
	if err != nil {
		return time.Time{}, err
	}
	return info.ModTime(), nil
}

func (s *state) bytes() (n int64) {
	for _, l := range s.lists {
		n += l.bytes()
	}
	return n
}

func (l *list) bytes() (n int64) {
	for _, a := range l.Layers {
		n += a.Bytes
	}
	return n
}

// throw marks a layer that no list names for removal, unless it is leased:
// then the sweep at the end of a lease takes it, or a later one.
func (s *state) throw(id string) error {
	from, to := s.cache.layerPath(id), s.cache.path("tmp", id)
	held := seize(from)
	if held == nil {
		s.cache.unlisted.Store(true)
		return nil
	}
	if err := os.Rename(from, to); err != nil {
		held.Close()
		return err
	}
	s.trash = append(s.trash, trash{to, held})
	return nil
}

// sweep throws away what processes that died have left: temporary directories
// and layers that no list names.
func (s *state) sweep() error {
	temporary, err := names(s.cache.path("tmp"))
	if err != nil {
		return err
	}
	for _, name := range temporary {
		path := s.cache.path("tmp", name)
		if held := seize(path); held != nil {
			s.trash = append(s.trash, trash{path, held})
		}
	}
	there, err := names(s.cache.path("layers"))
	if err != nil {
		return err
	}
	listed := map[string]bool{}
	for _, l := range s.lists {
		for _, a := range l.Layers {
			listed[a.ID] = true
		}
	}
	for _, id := range there {
		if !listed[id] {
			if err := s.throw(id); err != nil {
				return err
			}
		}
	}
	return nil
}
