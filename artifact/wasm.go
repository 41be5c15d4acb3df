package artifact

import "encoding/binary"

// wasmExecutable takes every module of version 1 for a program, and tells
// Go's two systems by what the module imports: gojs (go before Go 1.21) is
// js's, wasi_snapshot_preview1 wasip1's. TinyGo imports both for js.
func wasmExecutable(w *window) (executable, bool) {
	const custom, types, imports = 0, 1, 2
	const maxSections, maxImports = 64, 1 << 20
	h := w.at(0, 8)
	if h == nil || binary.LittleEndian.Uint32(h[4:]) != 1 {
		return executable{}, false
	}
	off := int64(8)
	for range maxSections {
		b := w.at(off, min(11, w.size-off))
		if len(b) < 2 {
			break
		}
		size, n := binary.Uvarint(b[1:])
		if n <= 0 || size > uint64(w.size) {
			break
		}
		off += 1 + int64(n)
		switch b[0] {
		case imports:
			return known("wasm", wasmSystems(w.at(off, int64(min(size, maxImports)))), "wasm"), true
		case custom, types:
			off += int64(size)
			continue
		}
		break
	}
	return known("wasm", []string{"js", "wasip1"}, "wasm"), true
}

// wasmSystems reads an import section for the names of its modules.
func wasmSystems(section []byte) []string {
	s := wasmReader{b: section}
	wasi := false
	for range s.number() {
		module := s.name()
		s.name() // the field
		s.skipDescription()
		if s.bad {
			break
		}
		switch module {
		case "gojs", "go":
			return []string{"js"}
		case "wasi_snapshot_preview1", "wasi_unstable":
			wasi = true
		}
	}
	if wasi {
		return []string{"wasip1"}
	}
	return []string{"js", "wasip1"}
}

// A wasmReader reads the values of a section; bad once they end too early.
type wasmReader struct {
	b   []byte
	bad bool
}

func (s *wasmReader) number() uint64 {
	v, n := binary.Uvarint(s.b)
	if n <= 0 {
		s.bad = true
		return 0
	}
	s.b = s.b[n:]
	return v
}

func (s *wasmReader) name() string {
	n := s.number()
	if n > uint64(len(s.b)) {
		s.bad = true
		return ""
	}
	name := string(s.b[:n])
	s.b = s.b[n:]
	return name
}

func (s *wasmReader) skipDescription() {
	const function, table, memory, global, tag = 0, 1, 2, 3, 4
	switch s.number() {
	case function:
		s.number()
	case table:
		s.number()
		s.skipLimits()
	case memory:
		s.skipLimits()
	case global, tag:
		s.number()
		s.number()
	default:
		s.bad = true
	}
}

func (s *wasmReader) skipLimits() {
	const hasMaximum = 1
	flags := s.number()
	s.number()
	if flags&hasMaximum != 0 {
		s.number()
	}
}
