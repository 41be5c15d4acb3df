package gitsrc_test

import (
	"bytes"
	"compress/zlib"
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/monochromegane/cargo/gitsrc"
	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

// A packEntry is one entry of a pack that a test makes up.
type packEntry struct {
	kind   byte   // 1 commit, 2 tree, 3 blob, 4 tag, 6 delta by offset, 7 delta by id
	prefix []byte // of a delta: where its base is
	data   []byte
	size   int // what the header says; 0 is the truth
}

func makePack(entries ...packEntry) []byte {
	var b bytes.Buffer
	b.WriteString("PACK")
	_ = binary.Write(&b, binary.BigEndian, []uint32{2, uint32(len(entries))})
	for _, e := range entries {
		size := e.size
		if size == 0 {
			size = len(e.data)
		}
		c := e.kind<<4 | byte(size&15)
		for size >>= 4; size > 0; size >>= 7 {
			b.WriteByte(c | 0x80)
			c = byte(size & 0x7f)
		}
		b.WriteByte(c)
		b.Write(e.prefix)
		z := zlib.NewWriter(&b)
		_, _ = z.Write(e.data)
		_ = z.Close()
	}
	sum := sha1.Sum(b.Bytes())
	return append(b.Bytes(), sum[:]...)
}

func objectID(kind string, content []byte) []byte {
	sum := sha1.Sum(append(fmt.Appendf(nil, "%s %d\x00", kind, len(content)), content...))
	return sum[:]
}

// leb is a number as deltas begin with.
func leb(n uint64) []byte {
	var b []byte
	for ; n > 0x7f; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}

// sendPack makes host answer for a repository whose branch main is commit,
// with a pack as it is.
func sendPack(host *gitsrctest.Host, commit string, pack []byte) {
	host.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPost {
			_, _ = fmt.Fprintf(w, "00000008NAK\n%s", pack)
			return true
		}
		first := commit + " refs/heads/main\x00shallow ofs-delta\n"
		_, _ = fmt.Fprintf(w, "001e# service=git-upload-pack\n0000%04x%s0000", len(first)+4, first)
		return true
	})
}

func TestBrokenPacks(t *testing.T) {
	blob := []byte(strings.Repeat("hello ", 100))
	tree := append([]byte("100644 f\x00"), objectID("blob", blob)...)
	commitOf := func(tree []byte) []byte {
		return fmt.Appendf(nil, "tree %x\nauthor A <a> 1 +0000\ncommitter A <a> 1700000000 +0000\n\nx\n", objectID("tree", tree))
	}
	commit := commitOf(tree)
	good := []packEntry{{kind: 1, data: commit}, {kind: 2, data: tree}, {kind: 3, data: blob}}
	with := func(more ...packEntry) []byte { return makePack(append(good[:2:2], more...)...) }
	// A delta of which 7 bytes make 16 MiB, again and again: 4 TiB in all.
	bomb := append(leb(1<<24), leb(1<<42)...)
	for range 1000 {
		bomb = append(bomb, 0x80|0x70, 0xff, 0xff, 0xff)
	}
	base := make([]byte, 1<<24)
	damaged := makePack(good...)
	damaged[40] ^= 1
	flipped := makePack(good...)
	flipped[len(flipped)-1] ^= 1
	second := func(p []byte) []byte { // the pack says that it holds one more
		p[11]++
		sum := sha1.Sum(p[:len(p)-20])
		return append(p[:len(p)-20], sum[:]...)
	}

	host := gitsrctest.New(t)
	s := newSource(t, host, nil)
	id := hex.EncodeToString(objectID("commit", commit))
	sendPack(host, id, makePack(good...))
	fetch(t, s, "main") // else the rest means nothing

	for name, tc := range map[string]struct {
		pack []byte
		why  string
	}{
		"no pack":                {[]byte(strings.Repeat("x", 100)), "broken pack"},
		"old version":            {append([]byte("PACK\x00\x00\x00\x01"), make([]byte, 100)...), "broken pack"},
		"a bit is wrong":         {damaged, "broken pack"},
		"checksum":               {flipped, "broken pack"},
		"something follows":      {append(makePack(good...), "more"...), "something follows its end"},
		"says that it has more":  {second(makePack(good...)), "broken pack"},
		"no blob":                {makePack(good[:2]...), "it lacks the blob"},
		"no tree":                {makePack(good[0], good[2]), "it lacks the tree"},
		"no commit":              {makePack(good[1:]...), "it lacks what was asked for"},
		"wrong id":               {with(packEntry{kind: 3, data: []byte("other")}), "it lacks the blob"},
		"unknown type":           {with(packEntry{kind: 5, data: blob}), "unknown type"},
		"longer than it says":    {with(packEntry{kind: 3, data: blob, size: 5}), "broken pack"},
		"shorter than it says":   {with(packEntry{kind: 3, data: blob, size: 5000}), "shorter than it says"},
		"says it is huge":        {with(packEntry{kind: 3, data: blob, size: 1 << 40}), "unpacks to more than 1024 MiB"},
		"says it is beyond huge": {with(packEntry{kind: 3, data: blob, size: 1 << 62}), "broken pack"},
		"a huge tree":            {with(packEntry{kind: 2, data: tree, size: 100 << 20}), "takes more than 64 MiB of memory"},
		"delta without a base":   {with(packEntry{kind: 7, prefix: make([]byte, 20), data: []byte{1, 1, 1, 'x'}}), "deltas without a base"},
		"delta into nowhere":     {with(packEntry{kind: 6, prefix: []byte{3}, data: []byte{1, 1, 1, 'x'}}), "delta without a base"},
		"delta into itself":      {with(packEntry{kind: 6, prefix: []byte{0}, data: []byte{1, 1, 1, 'x'}}), "broken pack"},
		"delta without sizes":    {with(good[2], packEntry{kind: 7, prefix: objectID("blob", blob), data: []byte{0xff}}), "delta without sizes"},
		"delta of another size":  {with(good[2], packEntry{kind: 7, prefix: objectID("blob", blob), data: []byte{1, 1, 1, 'x'}}), "broken pack"},
		"delta bomb": {with(good[2], packEntry{kind: 3, data: base}, packEntry{kind: 7, prefix: objectID("blob", base), data: bomb}),
			"takes more than 64 MiB of memory"},
	} {
		t.Run(name, func(t *testing.T) {
			sendPack(host, id, tc.pack)
			wantFetchRefused(t, s, tc.why)
		})
	}

	t.Run("chain of deltas", func(t *testing.T) {
		entries := append([]packEntry{}, good...)
		content := []byte("0000")
		entries = append(entries, packEntry{kind: 3, data: content})
		for i := range 4100 {
			next := fmt.Appendf(nil, "%04d", i+1)
			entries = append(entries, packEntry{kind: 7, prefix: objectID("blob", content), data: append([]byte{4, 4, 4}, next...)})
			content = next
		}
		sendPack(host, id, makePack(entries...))
		wantFetchRefused(t, s, "a chain of deltas is too long")
	})
	t.Run("truncated", func(t *testing.T) {
		whole := makePack(good...)
		for _, n := range []int{0, 3, 10, 12, 13, 20, len(whole) / 2, len(whole) - 21, len(whole) - 20, len(whole) - 1} {
			sendPack(host, id, whole[:n])
			ref, err := s.Resolve(t.Context(), app, "main", gitsrc.Token{}, 0)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			_, err = s.Fetch(t.Context(), app, ref, gitsrc.Token{}, dir)
			_, refused := errors.AsType[*gitsrc.RefusedError](err)
			if !refused && !errors.Is(err, gitsrc.ErrUnavailable) {
				t.Errorf("after %d bytes: %v", n, err)
			}
			wantEmpty(t, dir)
		}
	})
	t.Run("commits", func(t *testing.T) {
		for text, why := range map[string]string{
			"":             "commit without a tree",
			"parent x\n\n": "commit without a tree",
			fmt.Sprintf("tree %x\n\n", objectID("tree", tree)):                                    "its commit has no time",
			fmt.Sprintf("tree %x\ncommitter A <a> x +0000\n\n", objectID("tree", tree)):           "no readable time",
			fmt.Sprintf("tree %x\ncommitter A <a> 99999999999999 +0\n\n", objectID("tree", tree)): "no readable time",
			fmt.Sprintf("tree %x\ncommitter A <a>\n\n", objectID("tree", tree)):                   "no readable time",
		} {
			content := []byte(text)
			sendPack(host, hex.EncodeToString(objectID("commit", content)), makePack(packEntry{kind: 1, data: content}, good[1], good[2]))
			wantFetchRefused(t, s, why)
		}
	})
	t.Run("trees", func(t *testing.T) {
		id := strings.Repeat("x", 20)
		for bad, why := range map[string]string{
			"100644": "ends early", "100644 f": "ends early", "100644 f\x00short": "ends early",
			" \x00" + id: "mode is unknown", "100644 \x00" + id: "without a name",
		} {
			commit := commitOf([]byte(bad))
			sendPack(host, hex.EncodeToString(objectID("commit", commit)), makePack(packEntry{kind: 1, data: commit}, packEntry{kind: 2, data: []byte(bad)}))
			wantFetchRefused(t, s, why)
		}
	})
	t.Run("tag loop", func(t *testing.T) {
		// Tags cannot point to themselves, but a chain can be long, and end in nothing.
		id := commitOf(tree)
		tag := fmt.Appendf(nil, "object %x\ntype commit\n", objectID("commit", id))
		entries := append([]packEntry{}, good...)
		for range 6 {
			entries = append(entries, packEntry{kind: 4, data: tag})
			tag = fmt.Appendf(nil, "object %x\ntype tag\n", objectID("tag", tag))
		}
		entries = append(entries, packEntry{kind: 4, data: tag})
		sendPack(host, hex.EncodeToString(objectID("tag", tag)), makePack(entries...))
		wantFetchRefused(t, s, "a tag of a tag of a tag")
	})
}

// A delta may come before its base, and be one by id.
func TestDeltaBeforeItsBase(t *testing.T) {
	base, made := []byte("base"), []byte("made")
	tree := append([]byte("100644 f\x00"), objectID("blob", made)...)
	commit := fmt.Appendf(nil, "tree %x\ncommitter A <a> 1700000000 +0000\n\nx\n", objectID("tree", tree))
	between := []byte("between")
	host := gitsrctest.New(t)
	sendPack(host, hex.EncodeToString(objectID("commit", commit)), makePack(
		packEntry{kind: 7, prefix: objectID("blob", between), data: append([]byte{7, 4, 4}, made...)},
		packEntry{kind: 7, prefix: objectID("blob", base), data: append([]byte{4, 7, 7}, between...)},
		packEntry{kind: 1, data: commit}, packEntry{kind: 2, data: tree}, packEntry{kind: 3, data: base},
	))
	_, _, dir := fetch(t, newSource(t, host, nil), "main")
	if got, err := os.ReadFile(filepath.Join(dir, "f")); string(got) != "made" {
		t.Errorf("f = %q, %v", got, err)
	}
	if got := git(t, dir, "status", "--porcelain"); got != "" {
		t.Errorf("status = %s", got)
	}
}
