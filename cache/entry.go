package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
)

// The go command keeps two kinds of file: <action id>-a says which output an
// action has, <output id>-d is that output, and its id is its SHA-256. Both
// lie in the directory that the first byte of the id names.
const (
	actionFile = 'a'
	outputFile = 'd'
)

// An id is an action id or an output id.
type id [sha256.Size]byte

const hexSize = 2 * sha256.Size

// name returns the path of an entry below the root of a GOCACHE.
func (d id) name(kind byte) string {
	digits := hex.EncodeToString(d[:])
	return digits[:2] + "/" + digits + "-" + string(rune(kind))
}

// parseName reads the name of a file in the directory that shard names.
func parseName(shard byte, name string) (d id, kind byte, ok bool) {
	if len(name) != hexSize+2 || name[hexSize] != '-' {
		return id{}, 0, false
	}
	kind = name[hexSize+1]
	if kind != actionFile && kind != outputFile {
		return id{}, 0, false
	}
	if !parseID(&d, []byte(name[:hexSize])) || d[0] != shard {
		return id{}, 0, false
	}
	return d, kind, true
}

// parseID takes lower-case digits only: each id has one name.
func parseID(d *id, digits []byte) bool {
	if bytes.ContainsAny(digits, "ABCDEF") {
		return false
	}
	n, err := hex.Decode(d[:], digits)
	return err == nil && n == len(d)
}

// An entry is the content of an action's file.
type entry struct {
	action, output id
	size           int64 // of the output
	time           int64 // when it was made, in Unix nanoseconds
}

// entrySize is the length of "v1 <action id> <output id> <size> <time>\n",
// in which both numbers are padded with spaces to 20 digits.
const entrySize = 2 + 1 + hexSize + 1 + hexSize + 1 + 20 + 1 + 20 + 1

var errEntry = errors.New("not an entry of the go command's cache")

// parseEntry reads what text returns and nothing else: the go command takes
// variants as well, but it writes none.
func parseEntry(text []byte) (entry, error) {
	var e entry
	if len(text) != entrySize {
		return e, errEntry
	}
	ids, numbers := text[3:3+hexSize+1+hexSize], text[3+hexSize+1+hexSize+1:]
	if !parseID(&e.action, ids[:hexSize]) || !parseID(&e.output, ids[hexSize+1:]) {
		return entry{}, errEntry
	}
	var err1, err2 error
	e.size, err1 = strconv.ParseInt(string(bytes.TrimLeft(numbers[:20], " ")), 10, 64)
	e.time, err2 = strconv.ParseInt(string(bytes.TrimLeft(numbers[21:41], " ")), 10, 64)
	if err1 != nil || err2 != nil || e.size < 0 || e.time < 0 || !bytes.Equal(e.text(), text) {
		return entry{}, errEntry
	}
	return e, nil
}

func (e entry) text() []byte {
	return fmt.Appendf(nil, "v1 %x %x %20d %20d\n", e.action, e.output, e.size, e.time)
}
