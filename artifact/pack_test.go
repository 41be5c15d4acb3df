package artifact_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/monochromegane/cargo/artifact"
)

var commitTime = time.Date(2024, 2, 29, 12, 30, 15, 987654321, time.FixedZone("far", 9*3600))

func pack(t *testing.T, root *os.Root) []byte {
	t.Helper()
	c, err := artifact.Collect(t.Context(), root, linux(artifact.CollectOptions{}))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := artifact.Pack(t.Context(), &b, root, c.Files, commitTime); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestPackIsReproducible(t *testing.T) {
	files := map[string]string{
		"app": string(linuxBinary()), "a/b/script": "#!/bin/sh", "a.txt": "a", "empty": "",
		"très/" + strings.Repeat("long", 40) + "/x": "x", "big": strings.Repeat("some content ", 1<<16),
	}
	order := make([]string, 0, len(files))
	for name := range files {
		order = append(order, name)
	}
	slices.Sort(order)
	var first []byte
	for i, names := range [][]string{order, reversed(order)} {
		root, dir := newTree(t, nil)
		for _, name := range names {
			p := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
				t.Fatal(err)
			}
			mode := os.FileMode(0o600 + 0o60*os.FileMode(i)) // a group bit differs
			if name == "a/b/script" {
				mode |= 0o100
			}
			if err := os.WriteFile(p, []byte(files[name]), mode); err != nil {
				t.Fatal(err)
			}
			if os.Getuid() == 0 {
				if err := os.Chown(p, 1000+i, 2000+i); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Chtimes(p, time.Now(), time.Unix(int64(i)*1e6, 0)); err != nil {
				t.Fatal(err)
			}
		}
		got := pack(t, root)
		if i == 0 {
			first = got
		} else if !bytes.Equal(first, got) {
			t.Error("the same files in another directory gave other bytes")
		}
	}
}

func reversed(s []string) []string {
	s = slices.Clone(s)
	slices.Reverse(s)
	return s
}

func TestPackWritesNothingOfTheMachine(t *testing.T) {
	root, dir := newTree(t, map[string]string{"bin/app": string(linuxBinary()), "run.sh": "#!/bin/sh", "NOTES": "text"})
	if err := os.Chmod(filepath.Join(dir, "run.sh"), 0o4711); err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(pack(t, root)))
	if err != nil {
		t.Fatal(err)
	}
	if z.Name != "" || !z.ModTime.IsZero() {
		t.Errorf("gzip header has name %q and time %v", z.Name, z.ModTime)
	}
	type entry struct {
		Name             string
		Mode             int64
		UID, GID         int
		Uname, Gname     string
		Time             int64
		Format           string
		Content          string
		AccessTimeIsZero bool
	}
	var got []entry
	r := tar.NewReader(z)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, entry{h.Name, h.Mode, h.Uid, h.Gid, h.Uname, h.Gname, h.ModTime.Unix(), h.Format.String(), string(content), h.AccessTime.IsZero()})
	}
	at := commitTime.Unix()
	want := []entry{
		{"NOTES", 0o644, 0, 0, "", "", at, "USTAR", "text", true},
		{"bin/app", 0o755, 0, 0, "", "", at, "USTAR", string(linuxBinary()), true},
		{"run.sh", 0o755, 0, 0, "", "", at, "USTAR", "#!/bin/sh", true},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("archive (-want +got):\n%s", d)
	}
}

func TestPackRefusesWhatCollectDidNotSee(t *testing.T) {
	for name, change := range map[string]func(p string) error{
		"grown":  func(p string) error { return os.WriteFile(p, []byte("longer than before"), 0o644) },
		"shrunk": func(p string) error { return os.Truncate(p, 1) },
		"replaced": func(p string) error {
			return errors.Join(os.WriteFile(p+"2", []byte("text"), 0o644), os.Rename(p+"2", p))
		},
		"link": func(p string) error {
			return errors.Join(os.WriteFile(p+"2", []byte("text"), 0o644), os.Remove(p), os.Symlink("f2", p))
		},
		"directory through a link": func(p string) error {
			d := filepath.Dir(p)
			return errors.Join(os.Rename(d, d+"2"), os.Mkdir(d+"3", 0o755), os.WriteFile(d+"3/f", []byte("text"), 0o644), os.Symlink(filepath.Base(d)+"3", d))
		},
		"gone": os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			root, dir := newTree(t, map[string]string{"d/f": "text"})
			c, err := artifact.Collect(t.Context(), root, linux(artifact.CollectOptions{}))
			if err != nil {
				t.Fatal(err)
			}
			if err := change(filepath.Join(dir, "d/f")); err != nil {
				t.Fatal(err)
			}
			err = artifact.Pack(t.Context(), io.Discard, root, c.Files, commitTime)
			if err == nil {
				t.Error("Pack took it")
			}
		})
	}
}

func TestPackEndsWithItsContext(t *testing.T) {
	root, _ := newTree(t, map[string]string{"f": "text"})
	c, err := artifact.Collect(t.Context(), root, linux(artifact.CollectOptions{}))
	if err != nil {
		t.Fatal(err)
	}
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if err := artifact.Pack(ctx, io.Discard, root, c.Files, commitTime); !errors.Is(err, cause) {
		t.Errorf("Pack = %v, want the cause", err)
	}
}

func TestPackTakesOldCommits(t *testing.T) {
	root, _ := newTree(t, map[string]string{"f": "text"})
	c, err := artifact.Collect(t.Context(), root, linux(artifact.CollectOptions{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []time.Time{{}, time.Unix(-5, 0), time.Unix(1<<40, 0)} {
		var b bytes.Buffer
		if err := artifact.Pack(t.Context(), &b, root, c.Files, at); err != nil {
			t.Errorf("%v: %v", at, err)
		}
	}
}
