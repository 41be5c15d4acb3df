package artifact

import "encoding/binary"

var machoMachines = map[uint32]string{7: "386", 7 | 1<<24: "amd64", 12: "arm", 12 | 1<<24: "arm64"}

// machoExecutable reads the header and the load commands themselves, which say
// macOS or iOS; debug/macho would read the symbols too, whose names a hostile
// file can let overlap until they fill the memory.
func machoExecutable(w *window) (executable, bool) {
	const execute, maxCommands = 2, 1 << 20
	h := w.at(0, 28)
	if h == nil {
		return executable{}, false
	}
	var order binary.ByteOrder = binary.LittleEndian
	if h[0] == 0xfe {
		order = binary.BigEndian
	}
	start := int64(28)
	if order.Uint32(h)&1 != 0 {
		start = 32
	}
	if order.Uint32(h[12:]) != execute {
		return executable{}, false
	}
	commands := w.at(start, min(int64(order.Uint32(h[20:])), maxCommands))
	return known("Mach-O", machoSystems(order, commands), machoMachines[order.Uint32(h[4:])]), true
}

// machoSystems is what the load commands say, and both where they do not.
func machoSystems(order binary.ByteOrder, commands []byte) []string {
	const minMacOS, minIOS, buildVersion = 0x24, 0x25, 0x32
	for len(commands) >= 12 {
		size := order.Uint32(commands[4:])
		switch order.Uint32(commands) {
		case minMacOS:
			return []string{"darwin"}
		case minIOS:
			return []string{"ios"}
		case buildVersion:
			switch order.Uint32(commands[8:]) {
			case 1, 6: // macOS, and iPad programs built for it
				return []string{"darwin"}
			case 2, 7: // the device and the simulator
				return []string{"ios"}
			}
			return nil
		}
		if size < 8 || int64(size) > int64(len(commands)) {
			break
		}
		commands = commands[size:]
	}
	return []string{"darwin", "ios"}
}

// universalExecutable joins what the slices of a universal binary are for. A
// Java class has the same magic number, and its version, at least 45, where
// the number of slices is.
func universalExecutable(w *window) (executable, bool) {
	const maxSlices = 30
	h := w.at(0, 8)
	if h == nil {
		return executable{}, false
	}
	n, wide := binary.BigEndian.Uint32(h[4:]), h[3] == 0xbf
	if n > maxSlices {
		return executable{}, false
	}
	all := executable{format: "universal Mach-O"}
	found := false
	for i := range int64(n) {
		var off, size int64
		if wide {
			e := w.at(8+i*32, 32)
			if e == nil {
				break
			}
			off, size = int64(binary.BigEndian.Uint64(e[8:])), int64(binary.BigEndian.Uint64(e[16:]))
		} else {
			e := w.at(8+i*20, 20)
			if e == nil {
				break
			}
			off, size = int64(binary.BigEndian.Uint32(e[8:])), int64(binary.BigEndian.Uint32(e[12:]))
		}
		if off < 8 || size < 28 || size > w.size || off > w.size-size {
			continue
		}
		slice := &window{r: offset{w, off}, size: size, left: w.left}
		if e, ok := machoSlice(slice); ok {
			all.platforms = append(all.platforms, e.platforms...)
			found = true
		}
	}
	return all, found
}

func machoSlice(w *window) (executable, bool) {
	magic := w.at(0, 4)
	if magic == nil {
		return executable{}, false
	}
	switch binary.BigEndian.Uint32(magic) {
	case 0xfeedface, 0xfeedfacf, 0xcefaedfe, 0xcffaedfe:
		return machoExecutable(w)
	}
	return executable{}, false
}

// offset is a part of a window that begins at from.
type offset struct {
	w    *window
	from int64
}

func (o offset) ReadAt(p []byte, off int64) (int, error) { return o.w.ReadAt(p, o.from+off) }
