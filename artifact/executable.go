package artifact

import (
	"bytes"
	"encoding/binary"
	"io"
	"slices"
	"strings"
)

// An executable is what the header of a file says it can run on.
type executable struct {
	format    string // ELF, PE, Mach-O, wasm, Plan 9, XCOFF
	platforms []platform
}

type platform struct{ goos, goarch string }

func (e executable) runsOn(goos, goarch string) bool {
	return slices.Contains(e.platforms, platform{goos, goarch})
}

// String is a noun phrase: "a darwin/arm64 executable".
func (e executable) String() string {
	switch len(e.platforms) {
	case 0:
		return article(e.format) + " executable for a machine that Go does not know"
	case 1:
		return article(e.platforms[0].goos+"/"+e.platforms[0].goarch) + " executable"
	}
	var machines []string
	for _, p := range e.platforms {
		if !slices.Contains(machines, p.goarch) {
			machines = append(machines, p.goarch)
		}
	}
	return article(e.format) + " executable for " + strings.Join(machines, " and ")
}

func article(noun string) string {
	if strings.ContainsRune("aeioEX", rune(noun[0])) {
		return "an " + noun
	}
	return "a " + noun
}

// readBudget is how many bytes of one file are read to identify it: more than
// the data segment of most programs, where Go's build information is.
const readBudget = 16 << 20

// identify reports whether a file is an executable, and what for. Objects,
// archives, shared libraries and scripts are none. The error is one of reading
// r; a file that makes no sense is no executable.
func identify(r io.ReaderAt, size int64) (executable, bool, error) {
	w := &window{r: r, size: size, left: readBudget}
	exe, ok := w.identify()
	return exe, ok, w.err
}

func (w *window) identify() (executable, bool) {
	magic := w.at(0, 4)
	if magic == nil {
		return executable{}, false
	}
	switch be := binary.BigEndian.Uint32(magic); {
	case string(magic) == "\x7fELF":
		return elfExecutable(w)
	case string(magic[:2]) == "MZ":
		return peExecutable(w)
	case string(magic) == "\x00asm":
		return wasmExecutable(w)
	case be == 0xfeedface, be == 0xfeedfacf, be == 0xcefaedfe, be == 0xcffaedfe:
		return machoExecutable(w)
	case be == 0xcafebabe, be == 0xcafebabf:
		return universalExecutable(w)
	case plan9Machines[be] != "":
		return plan9Executable(w, plan9Machines[be])
	case be>>16 == 0x01df, be>>16 == 0x01f7:
		return xcoffExecutable(w)
	}
	return executable{}, false
}

// A window reads from a stranger's file, never outside its size and never
// more in all than is left.
type window struct {
	r    io.ReaderAt
	size int64
	left int64
	err  error // first error of r itself
}

func (w *window) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= w.size || int64(len(p)) > w.left {
		return 0, io.EOF
	}
	whole := len(p)
	p = p[:min(int64(whole), w.size-off)]
	n, err := w.r.ReadAt(p, off)
	w.left -= int64(n)
	if err != nil && err != io.EOF && w.err == nil {
		w.err = err
	}
	if n < whole && err == nil {
		err = io.EOF
	}
	return n, err
}

// at is the n bytes at off, or nil if they are not all there.
func (w *window) at(off, n int64) []byte {
	if off < 0 || n < 0 || n > w.left || n > w.size || off > w.size-n {
		return nil
	}
	b := make([]byte, n)
	if m, _ := w.ReadAt(b, off); int64(m) < n {
		return nil
	}
	return b
}

var peMachines = map[uint16]string{0x14c: "386", 0x8664: "amd64", 0x1c4: "arm", 0xaa64: "arm64"}

// peExecutable: https://learn.microsoft.com/windows/win32/debug/pe-format
func peExecutable(w *window) (executable, bool) {
	const executableImage, dll = 0x0002, 0x2000
	dos := w.at(0, 64)
	if dos == nil {
		return executable{}, false
	}
	h := w.at(int64(binary.LittleEndian.Uint32(dos[0x3c:])), 24)
	if h == nil || !bytes.HasPrefix(h, []byte("PE\x00\x00")) {
		return executable{}, false
	}
	if flags := binary.LittleEndian.Uint16(h[22:]); flags&executableImage == 0 || flags&dll != 0 {
		return executable{}, false
	}
	return known("PE", []string{"windows"}, peMachines[binary.LittleEndian.Uint16(h[4:])]), true
}

// plan9Machines are the magic numbers of a.out(6).
var plan9Machines = map[uint32]string{0x1eb: "386", 0x647: "arm", 0x8a97: "amd64"}

func plan9Executable(w *window, goarch string) (executable, bool) {
	h := w.at(0, 32)
	if h == nil {
		return executable{}, false
	}
	text, data := binary.BigEndian.Uint32(h[4:]), binary.BigEndian.Uint32(h[8:])
	if text == 0 || int64(text)+int64(data)+int64(len(h)) > w.size {
		return executable{}, false // the magic number alone is too short to trust
	}
	return known("Plan 9", []string{"plan9"}, goarch), true
}

// xcoffExecutable: the header of 32 and 64 bits alike has the size of the
// optional header at 16 and the flags at 18.
func xcoffExecutable(w *window) (executable, bool) {
	const execFlag, sharedFlag = 0x0002, 0x2000
	h := w.at(0, 24)
	if h == nil || binary.BigEndian.Uint16(h[16:]) == 0 {
		return executable{}, false
	}
	if flags := binary.BigEndian.Uint16(h[18:]); flags&execFlag == 0 || flags&sharedFlag != 0 {
		return executable{}, false
	}
	goarch := ""
	if h[1] == 0xf7 {
		goarch = "ppc64"
	}
	return known("XCOFF", []string{"aix"}, goarch), true
}

// known is an executable for each of the systems on a machine; "" is a machine
// that Go does not know.
func known(format string, systems []string, goarch string) executable {
	e := executable{format: format}
	if goarch == "" {
		return e
	}
	for _, goos := range systems {
		e.platforms = append(e.platforms, platform{goos, goarch})
	}
	return e
}
