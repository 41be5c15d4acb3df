package artifact

import (
	"bytes"
	"debug/buildinfo"
	"debug/elf"
	"encoding/binary"
)

// elfSystems are the values of GOOS whose executables are ELF.
var elfSystems = []string{"android", "dragonfly", "freebsd", "illumos", "linux", "netbsd", "openbsd", "solaris"}

// An elfFile is the header and the segments of an ELF file, those of 32 bits
// in the form of 64.
type elfFile struct {
	*window
	order    binary.ByteOrder
	wide     bool
	head     elf.Header64
	segments []elf.Prog64
}

func elfExecutable(w *window) (executable, bool) {
	f, ok := readELF(w)
	if !ok {
		return executable{}, false
	}
	switch elf.Type(f.head.Type) {
	case elf.ET_EXEC:
	case elf.ET_DYN:
		if !f.isProgram() {
			return executable{}, false
		}
	default:
		return executable{}, false
	}
	e := known("ELF", f.systems(), f.goarch())
	if p := f.goPlatform(); e.runsOn(p.goos, p.goarch) {
		e.platforms = []platform{p}
	}
	return e, true
}

func readELF(w *window) (*elfFile, bool) {
	const maxSegments = 256
	b := w.at(0, 64)
	if b == nil {
		return nil, false
	}
	f := &elfFile{window: w, wide: elf.Class(b[elf.EI_CLASS]) == elf.ELFCLASS64}
	switch elf.Data(b[elf.EI_DATA]) {
	case elf.ELFDATA2LSB:
		f.order = binary.LittleEndian
	case elf.ELFDATA2MSB:
		f.order = binary.BigEndian
	default:
		return nil, false
	}
	if f.wide {
		decode(b, f.order, &f.head)
	} else {
		var h elf.Header32
		decode(b, f.order, &h)
		f.head = elf.Header64{
			Ident: h.Ident, Type: h.Type, Machine: h.Machine, Entry: uint64(h.Entry),
			Phoff: uint64(h.Phoff), Phentsize: h.Phentsize, Phnum: h.Phnum,
			Shoff: uint64(h.Shoff), Shentsize: h.Shentsize, Shnum: h.Shnum, Shstrndx: h.Shstrndx,
		}
	}
	for i := range min(f.head.Phnum, maxSegments) {
		b := f.entry(f.head.Phoff, int(i), binary.Size(elf.Prog32{}), binary.Size(elf.Prog64{}))
		if b == nil {
			break
		}
		var p elf.Prog64
		if f.wide {
			decode(b, f.order, &p)
		} else {
			var n elf.Prog32
			decode(b, f.order, &n)
			p = elf.Prog64{Type: n.Type, Off: uint64(n.Off), Filesz: uint64(n.Filesz)}
		}
		f.segments = append(f.segments, p)
	}
	return f, true
}

// decode cannot fail: b is as long as v.
func decode(b []byte, order binary.ByteOrder, v any) { _, _ = binary.Decode(b, order, v) }

// entry is entry i of a table whose entries have the size that the class of f wants.
func (f *elfFile) entry(table uint64, i, narrow, wide int) []byte {
	size := narrow
	if f.wide {
		size = wide
	}
	return f.at(int64(table)+int64(i)*int64(size), int64(size))
}

func (f *elfFile) goarch() string {
	little := f.order == binary.LittleEndian
	endian := ""
	if little {
		endian = "le"
	}
	switch m := elf.Machine(f.head.Machine); {
	case m == elf.EM_386 && !f.wide:
		return "386"
	case m == elf.EM_X86_64 && f.wide:
		return "amd64"
	case m == elf.EM_ARM && !f.wide:
		return "arm" // whatever GOARM
	case m == elf.EM_AARCH64 && f.wide && little:
		return "arm64"
	case m == elf.EM_LOONGARCH && f.wide:
		return "loong64"
	case m == elf.EM_MIPS && !f.wide:
		return "mips" + endian
	case m == elf.EM_MIPS:
		return "mips64" + endian
	case m == elf.EM_PPC64 && f.wide:
		return "ppc64" + endian
	case m == elf.EM_RISCV && f.wide:
		return "riscv64"
	case m == elf.EM_S390 && f.wide:
		return "s390x"
	}
	return ""
}

// isProgram tells a position-independent program from a shared library, which
// has the same type: it asks for an interpreter, or says it is one (DF_1_PIE),
// or is linked statically and has an entry.
func (f *elfFile) isProgram() bool {
	const maxDynamic = 64 << 10
	dynamic := false
	for _, s := range f.segments {
		switch elf.ProgType(s.Type) {
		case elf.PT_INTERP:
			return true
		case elf.PT_DYNAMIC:
			dynamic = true
			if f.hasPIEFlag(f.at(int64(s.Off), int64(min(s.Filesz, maxDynamic)))) {
				return true
			}
		}
	}
	return !dynamic && f.head.Entry != 0
}

func (f *elfFile) hasPIEFlag(dynamic []byte) bool {
	word := 4
	if f.wide {
		word = 8
	}
	for ; len(dynamic) >= 2*word; dynamic = dynamic[2*word:] {
		if elf.DynTag(f.word(dynamic)) == elf.DT_FLAGS_1 {
			return elf.DynFlag1(f.word(dynamic[word:]))&elf.DF_1_PIE != 0
		}
	}
	return false
}

func (f *elfFile) word(b []byte) uint64 {
	if f.wide {
		return f.order.Uint64(b)
	}
	return uint64(f.order.Uint32(b))
}

// systems are the systems the file can be for, by its ABI byte and its notes.
func (f *elfFile) systems() []string {
	const maxNotes = 4 << 10
	switch elf.OSABI(f.head.Ident[elf.EI_OSABI]) {
	case elf.ELFOSABI_LINUX:
		return []string{"android", "linux"}
	case elf.ELFOSABI_FREEBSD:
		return []string{"freebsd"}
	case elf.ELFOSABI_NETBSD:
		return []string{"netbsd"}
	case elf.ELFOSABI_OPENBSD:
		return []string{"openbsd"}
	case elf.ELFOSABI_SOLARIS:
		return []string{"illumos", "solaris"}
	}
	for _, s := range f.segments {
		if elf.ProgType(s.Type) != elf.PT_NOTE {
			continue
		}
		if found := noteSystems(f.order, f.at(int64(s.Off), int64(min(s.Filesz, maxNotes)))); found != nil {
			return found
		}
	}
	return elfSystems
}

// noteSystems reads the notes with which systems mark their programs; nil if
// there is none of them.
func noteSystems(order binary.ByteOrder, notes []byte) []string {
	const header, abiTag = 12, 1
	for len(notes) >= header {
		nameLen, descLen := int64(order.Uint32(notes)), int64(order.Uint32(notes[4:]))
		kind := order.Uint32(notes[8:])
		desc := header + (nameLen+3)&^3
		next := desc + (descLen+3)&^3
		if next > int64(len(notes)) {
			return nil
		}
		switch name := string(bytes.TrimRight(notes[header:header+nameLen], "\x00")); {
		case name == "Android":
			return []string{"android"}
		case name == "DragonFly":
			return []string{"dragonfly"}
		case name == "FreeBSD":
			return []string{"freebsd"}
		case name == "NetBSD":
			return []string{"netbsd"}
		case name == "OpenBSD":
			return []string{"openbsd"}
		case name == "GNU" && kind == abiTag && descLen >= 4 && order.Uint32(notes[desc:]) == 0:
			return []string{"android", "linux"}
		}
		notes = notes[next:]
	}
	return nil
}

// goPlatform is what the Go toolchain wrote into a Go binary: only that tells
// the systems that use plain ELF from each other. Other formats name their
// system in the header.
func (f *elfFile) goPlatform() (p platform) {
	if !f.safeToParse() {
		return platform{}
	}
	defer func() {
		if recover() != nil { // debug/elf promises nothing about hostile files
			p = platform{}
		}
	}()
	info, err := buildinfo.Read(f.window)
	if err != nil {
		return platform{}
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "GOOS":
			p.goos = s.Value
		case "GOARCH":
			p.goarch = s.Value
		}
	}
	return p
}

// safeToParse reports whether debug/elf can be let loose on the file: it
// unpacks a compressed table of section names, and copies each name, so that a
// file of a megabyte could make it fill any memory.
func (f *elfFile) safeToParse() bool {
	const maxSegments, maxEntry, maxSections, maxNames = 256, 64, 1024, 16 << 10
	h := f.head
	if h.Phnum > maxSegments || h.Phentsize > maxEntry || h.Shnum > maxSections {
		return false
	}
	if h.Shoff == 0 {
		return true
	}
	narrow, wide := binary.Size(elf.Section32{}), binary.Size(elf.Section64{})
	b := f.entry(h.Shoff, int(h.Shstrndx), narrow, wide)
	if b == nil || h.Shnum == 0 || int(h.Shentsize) != len(b) {
		return false
	}
	var s elf.Section64
	if f.wide {
		decode(b, f.order, &s)
	} else {
		var n elf.Section32
		decode(b, f.order, &n)
		s = elf.Section64{Flags: uint64(n.Flags), Size: uint64(n.Size)}
	}
	return elf.SectionFlag(s.Flags)&elf.SHF_COMPRESSED == 0 && s.Size <= maxNames
}
