package artifact_test

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"runtime"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/monochromegane/cargo/artifact"
)

func FuzzCollect(f *testing.F) {
	for _, seed := range [][]byte{
		linuxBinary(), elfSample{machine: elf.EM_AARCH64, note: "FreeBSD"}.bytes(),
		elfSample{kind: elf.ET_DYN, machine: elf.EM_S390, order: binary.BigEndian, segment: elf.PT_DYNAMIC, content: make([]byte, 48)}.bytes(),
		peSample(0x14c, 2), machoSample(cpuARM64, 2, 1), universalSample(machoSample(cpuAMD64, 2, 0)),
		wasmSample("env", "gojs"), plan9Sample(0x1eb), xcoffSample(0x01df, 2), []byte("#!/bin/sh"),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		root, _ := newTree(t, map[string]string{"bin/app": string(content)})
		c, err := artifact.Collect(t.Context(), root, linux(artifact.CollectOptions{}))
		switch {
		case err == nil && (len(c.Files) != 1 || c.Files[0].Size != int64(len(content))):
			t.Errorf("collected %v", names(c))
		case err != nil && !errors.Is(err, artifact.ErrWrongPlatform):
			t.Errorf("Collect = %v", err)
		}
	})
}

// What debug/elf would do with these files is to fill gigabytes.
func TestCollectSurvivesBombs(t *testing.T) {
	overlapping := sectionBomb(60_000, 0, append(bytes.Repeat([]byte("a"), 16<<10-1), 0))
	zeros, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	small := zeros.EncodeAll(make([]byte, 128<<20), nil)
	chdr := binary.LittleEndian.AppendUint64(nil, uint64(elf.COMPRESS_ZSTD))
	chdr = binary.LittleEndian.AppendUint64(chdr, 128<<20)
	chdr = binary.LittleEndian.AppendUint64(chdr, 1)
	compressed := sectionBomb(2, elf.SHF_COMPRESSED, append(chdr, small...))

	for name, bomb := range map[string][]byte{"overlapping names": overlapping, "compressed names": compressed} {
		t.Run(name, func(t *testing.T) {
			root, _ := newTree(t, map[string]string{"app": string(bomb)})
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			c, err := artifact.Collect(t.Context(), root, linux(artifact.CollectOptions{}))
			runtime.ReadMemStats(&after)
			if err != nil || len(c.Files) != 1 {
				t.Errorf("Collect = %v, %v", names(c), err)
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > 64<<20 {
				t.Errorf("it took %d MB", used>>20)
			}
		})
	}
}

// sectionBomb has n sections with names that begin anywhere in content, which
// is the table of section names.
func sectionBomb(n int, flags elf.SectionFlag, content []byte) []byte {
	var b bytes.Buffer
	h := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Entry: 1,
		Shoff: 64, Shentsize: 64, Shnum: uint16(n), Shstrndx: 1, Ehsize: 64,
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	_ = binary.Write(&b, binary.LittleEndian, h)
	for i := range n {
		s := elf.Section64{Type: uint32(elf.SHT_PROGBITS), Name: uint32(i % 1000)}
		if i == 1 {
			s = elf.Section64{Type: uint32(elf.SHT_STRTAB), Flags: uint64(flags), Off: uint64(64 + 64*n), Size: uint64(len(content))}
		}
		_ = binary.Write(&b, binary.LittleEndian, s)
	}
	b.Write(content)
	return b.Bytes()
}
