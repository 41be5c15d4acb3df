package artifact_test

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
)

// An elfSample describes an ELF file of 64 bits to be written.
type elfSample struct {
	order   binary.ByteOrder // nil: little endian
	abi     elf.OSABI
	kind    elf.Type // 0: ET_EXEC
	machine elf.Machine
	goos    string // of the Go build information, with goarch; "": none
	goarch  string
	note    string // name of a note
	segment elf.ProgType
	content []byte // of segment
}

// bytes lays out header, program headers, then the contents of the segments.
func (s elfSample) bytes() []byte {
	var order binary.ByteOrder = binary.LittleEndian
	data := byte(elf.ELFDATA2LSB)
	if s.order == binary.BigEndian {
		order, data = s.order, byte(elf.ELFDATA2MSB)
	}
	kind := s.kind
	if kind == 0 {
		kind = elf.ET_EXEC
	}
	type part struct {
		kind  elf.ProgType
		flags elf.ProgFlag
		bytes []byte
	}
	var parts []part
	if s.goos != "" {
		parts = append(parts, part{elf.PT_LOAD, elf.PF_R | elf.PF_W, goBuildInfo(s.goos, s.goarch)})
	}
	if s.note != "" {
		parts = append(parts, part{elf.PT_NOTE, elf.PF_R, elfNote(order, s.note)})
	}
	if s.segment != 0 {
		parts = append(parts, part{s.segment, elf.PF_R, s.content})
	}
	h := elf.Header64{
		Type: uint16(kind), Machine: uint16(s.machine), Version: 1, Entry: 0x1000,
		Phoff: 64, Phentsize: 56, Phnum: uint16(len(parts)), Ehsize: 64,
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA] = byte(elf.ELFCLASS64), data
	h.Ident[elf.EI_VERSION], h.Ident[elf.EI_OSABI] = 1, byte(s.abi)
	if kind == elf.ET_REL {
		h.Entry = 0
	}

	var head, body bytes.Buffer
	_ = binary.Write(&head, order, h)
	for _, p := range parts {
		off := uint64(64 + 56*len(parts) + body.Len())
		for off%16 != 0 {
			body.WriteByte(0)
			off++
		}
		_ = binary.Write(&head, order, elf.Prog64{
			Type: uint32(p.kind), Flags: uint32(p.flags), Off: off, Vaddr: 0x10000 + off,
			Filesz: uint64(len(p.bytes)), Memsz: uint64(len(p.bytes)),
		})
		body.Write(p.bytes)
	}
	return append(head.Bytes(), body.Bytes()...)
}

// goBuildInfo is the blob that debug/buildinfo documents, in its form since Go 1.18.
func goBuildInfo(goos, goarch string) []byte {
	b := append([]byte("\xff Go buildinf:"), 8, 2)
	b = append(b, make([]byte, 16)...)
	frame := "0123456789abcdef"
	for _, s := range []string{"go1.26", frame + "path\tx\nbuild\tGOARCH=" + goarch + "\nbuild\tGOOS=" + goos + "\n" + frame} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	return b
}

func elfNote(order binary.ByteOrder, name string) []byte {
	var b bytes.Buffer
	padded := name + "\x00"
	for len(padded)%4 != 0 {
		padded += "\x00"
	}
	_ = binary.Write(&b, order, []uint32{uint32(len(name) + 1), 16, 1})
	b.WriteString(padded)
	b.Write(make([]byte, 16)) // as GNU's ABI tag: Linux
	return b.Bytes()
}

func linuxBinary() []byte {
	return elfSample{machine: elf.EM_X86_64, goos: "linux", goarch: "amd64"}.bytes()
}

// machoSample is a 64-bit Mach-O file with one LC_BUILD_VERSION, or none if platform is 0.
func machoSample(cpu, kind, platform uint32) []byte {
	command := []uint32{0x32, 24, platform, 0, 0, 0}
	if platform == 0 {
		command = nil
	}
	h := []uint32{0xfeedfacf, cpu, 0, kind, uint32(len(command) / 6), uint32(4 * len(command)), 0, 0}
	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, append(h, command...))
	return b.Bytes()
}

const (
	cpuAMD64 = 7 | 1<<24
	cpuARM64 = 12 | 1<<24
)

func universalSample(slices ...[]byte) []byte {
	words := []uint32{0xcafebabe, uint32(len(slices))}
	off := uint32(8 + 20*len(slices))
	for _, s := range slices {
		words = append(words, 0, 0, off, uint32(len(s)), 0)
		off += uint32(len(s))
	}
	var b bytes.Buffer
	_ = binary.Write(&b, binary.BigEndian, words)
	return append(b.Bytes(), bytes.Join(slices, nil)...)
}

// javaClass has the magic number of a universal binary and Java 8's version,
// and bytes that would make sense as one.
func javaClass() []byte {
	b := universalSample(machoSample(cpuAMD64, 2, 1))
	b[7] = 52
	return b
}

func peSample(machine, flags uint16) []byte {
	b := make([]byte, 64+24)
	copy(b, "MZ")
	binary.LittleEndian.PutUint32(b[0x3c:], 64)
	copy(b[64:], "PE\x00\x00")
	binary.LittleEndian.PutUint16(b[68:], machine)
	binary.LittleEndian.PutUint16(b[86:], flags)
	return b
}

// wasmSample imports one function from each module, after an empty type section.
func wasmSample(modules ...string) []byte {
	section := []byte{byte(len(modules))}
	for _, m := range modules {
		section = append(section, byte(len(m)))
		section = append(section, m...)
		section = append(section, 1, 'f', 0, 0)
	}
	b := append([]byte("\x00asm\x01\x00\x00\x00"), 1, 1, 0)
	b = append(b, 2, byte(len(section)))
	return append(b, section...)
}

func plan9Sample(magic uint32) []byte {
	b := make([]byte, 64)
	binary.BigEndian.PutUint32(b, magic)
	binary.BigEndian.PutUint32(b[4:], 16)
	return b
}

func xcoffSample(magic, flags uint16) []byte {
	b := make([]byte, 64)
	binary.BigEndian.PutUint16(b, magic)
	binary.BigEndian.PutUint16(b[16:], 72)
	binary.BigEndian.PutUint16(b[18:], flags)
	return b
}
