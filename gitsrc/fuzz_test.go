package gitsrc

import (
	"bytes"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
)

// FuzzReadPack reads packs within small limits. What is accepted must hold
// together, and be within them.
func FuzzReadPack(f *testing.F) {
	// Two packs that git made of a commit with two files, one a delta of the
	// other, by offset and by id; and an empty one.
	for _, seed := range []string{
		"5041434b00000002000000049407789c4dca3d0a80300c40e1bda7c8ee92" +
			"fe245210f12a694dd04104a9e0f175e8e0373e5ebb5401bda790d0888c49" +
			"45b25ad12fa49a4b0816b55a618dab93bb6de70502932c65063f664acc18" +
			"1906fcb87a1ec7de9afe17ecfae21ef70287a81ee2bc12789ccbc9cc4b55" +
			"c82bcd4d4a2d523054c84f53485448cbcc49e5ca411237c2216e8c43dc04" +
			"87b8290e71331ce2e638c42d70885be2103734c02581cbc786c85ece078a" +
			"e7e617a572010045c1626f6750789c5bc3b49869833223000a550228aa03" +
			"789c333430303331514864d0f52ed8dd3e8df3ecba17abb62d7fbcb8d980" +
			"21decc102299c4d0b0d8f6da5ebdd31b33e255568abe589efcf28f663a00" +
			"845818106aa9f0e7eb9534adec7bd33d038e3b01ac4efe17",
		"5041434b00000002000000049407789c4dca3d0a80300c40e1bda7c8ee92" +
			"fe245210f12a694dd04104a9e0f175e8e0373e5ebb5401bda790d0888c49" +
			"45b25ad12fa49a4b0816b55a618dab93bb6de70502932c65063f664acc18" +
			"1906fcb87a1ec7de9afe17ecfae21ef70287a81ee2aa03789c3334303033" +
			"31514864d0f52ed8dd3e8df3ecba17abb62d7fbcb8d98021decc102299c4" +
			"d0b0d8f6da5ebdd31b33e255568abe589efcf28f663a0084581810bc1278" +
			"9ccbc9cc4b55c82bcd4d4a2d523054c84f53485448cbcc49e5ca411237c2" +
			"216e8c43dc0487b8290e71331ce2e638c42d70885be2103734c02581cbc7" +
			"86c85ece078ae7e617a572010045c1626f7780a33dd6bd2ecbb1685f24a9" +
			"15e8a763e9fc2967789c5bc3b49869833223000a550228e84b770dd2abb6" +
			"fd8505e2baba9149063188874c",
		"5041434b0000000200000000029d08823bd8a8eab510ad6ac75c823cfd3ed31e",
	} {
		raw, err := hex.DecodeString(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	limits := Limits{TreeBytes: 1 << 20, Files: 100}.withDefaults()
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, raw []byte) {
		// The checksum of what is made up is made right, or little is reached.
		if n := len(raw) - 20; n >= 12 {
			h := plumbing.NewHasher(plumbing.BlobObject, 0)
			h.Reset()
			h.Write(raw[:n])
			sum := h.Sum()
			raw = append(raw[:n:n], sum[:]...)
		}
		file, err := os.Create(filepath.Join(dir, "pack"))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		p, err := readPack(t.Context(), bytes.NewReader(raw), file, limits)
		if err != nil {
			return
		}
		total := int64(0)
		for id, o := range p.byID {
			content, err := p.bytes(t.Context(), o)
			if err != nil || int64(len(content)) != o.size || plumbing.ComputeHash(o.kind, content) != id {
				t.Errorf("%v: %d bytes of %d, %v", id, len(content), o.size, err)
			}
			total += o.size
		}
		if total > limits.TreeBytes {
			t.Errorf("%d bytes were accepted", total)
		}
		if err := p.index(io.Discard); err != nil {
			t.Errorf("index: %v", err)
		}
	})
}

// FuzzObjects reads objects. What is accepted must be fit to be written.
func FuzzObjects(f *testing.F) {
	id := strings.Repeat("i", 20)
	for _, seed := range []string{
		"tree 4b825dc642cb6eb9a060e54bf8d69288fbee4904\nparent x\ncommitter A <a> 1 +0000\n\nx",
		"object 4b825dc642cb6eb9a060e54bf8d69288fbee4904\ntype commit\n",
		"100644 a\x00" + id + "40000 b\x00" + id, "120000 .git\x00" + id, "100755 ..\x00" + id,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := parseCommit(b); err == nil {
			if _, err := c.time.MarshalText(); err != nil {
				t.Errorf("time %v: %v", c.time, err)
			}
		}
		_, _ = parseTag(b)
		for len(b) > 0 {
			e, rest, err := nextEntry(b)
			if err != nil {
				return
			}
			if len(rest) >= len(b) {
				t.Fatal("no progress")
			}
			if !filepath.IsLocal(e.name) || strings.Contains(e.name, "/") || strings.EqualFold(e.name, ".git") {
				t.Errorf("%q was accepted", e.name)
			}
			b = rest
		}
	})
}

// FuzzIgnore matches patterns. It must end soon, whatever they are.
func FuzzIgnore(f *testing.F) {
	f.Add("*.o\n!/a/**/[a-z]?\n", "a/b/c.o")
	f.Add(strings.Repeat("*a", 100), strings.Repeat("a", 200))
	f.Add("[[:alpha:]-]\\", "/")
	f.Fuzz(func(t *testing.T, patterns, path string) {
		if len(patterns) > 10_000 || len(path) > maxPathBytes {
			return
		}
		begin := time.Now()
		ig := make(ignores)
		ig.add("", []byte(patterns))
		ig.match(path, false)
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}
