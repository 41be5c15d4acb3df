package gitsrc

import (
	"slices"
	"strings"
)

// A glob is a pattern as gitignore(5) describes it: git's wildmatch, where a
// star does not match a slash. It works on bytes, as git does.
type glob []globItem

type globItem struct {
	kind globKind
	char byte     // of a globChar
	set  *byteSet // of a globSet
}

type globKind byte

const (
	globChar globKind = iota // this byte
	globAny                  // one byte that is no slash
	globSet                  // one byte out of a set
	globStar                 // any bytes but slashes, or none
	globDeep                 // any bytes, or none: two stars and no slash
	globDirs                 // any directories and their slashes, or none: two stars and a slash
)

// special are the bytes of a pattern that do not stand for themselves.
const special = `*?[\`

// parseGlob reports whether the pattern is well-formed; an ill-formed one
// matches nothing.
func parseGlob(pattern string) (glob, bool) {
	var g glob
	for i := 0; i < len(pattern); {
		switch c := pattern[i]; c {
		case '*':
			n := len(pattern[i:]) - len(strings.TrimLeft(pattern[i:], "*"))
			item, used := stars(pattern, i, n)
			g = append(g, item)
			i += used
		case '?':
			g = append(g, globItem{kind: globAny})
			i++
		case '[':
			set, n, ok := parseClass(pattern[i:])
			if !ok {
				return nil, false
			}
			g = append(g, globItem{kind: globSet, set: set})
			i += n
		case '\\':
			i++
			if i == len(pattern) {
				return nil, false
			}
			g = append(g, globItem{kind: globChar, char: pattern[i]})
			i++
		default:
			g = append(g, globItem{kind: globChar, char: c})
			i++
		}
	}
	return g, true
}

// takes reports whether an item for one byte matches c.
func (it globItem) takes(c byte) bool {
	switch it.kind {
	case globChar:
		return c == it.char
	case globAny:
		return c != '/'
	}
	return it.set.has(c)
}

// A byteSet has one bit for each byte.
type byteSet [4]uint64

func (s *byteSet) add(c byte)      { s[c/64] |= 1 << (c % 64) }
func (s *byteSet) has(c byte) bool { return s[c/64]&(1<<(c%64)) != 0 }
func (s *byteSet) remove(c byte)   { s[c/64] &^= 1 << (c % 64) }
func (s *byteSet) negate() {
	for i := range s {
		s[i] = ^s[i]
	}
}

// stars says what n stars at pattern[i] mean, and how much of the pattern they
// take. Two stars are special only between slashes or ends; and where nothing
// special comes before, because git compares that part without them.
func stars(pattern string, i, n int) (globItem, int) {
	rest := pattern[i+n:]
	if n == 1 || i > 0 && pattern[i-1] != '/' && strings.ContainsAny(pattern[:i], special) {
		return globItem{kind: globStar}, n
	}
	switch {
	case rest == "", strings.HasPrefix(rest, `\/`):
		return globItem{kind: globDeep}, n
	case rest[0] == '/':
		return globItem{kind: globDirs}, n + 1
	}
	return globItem{kind: globStar}, n
}

// parseClass reads a bracket expression, and how long it is. It never holds a
// slash.
func parseClass(s string) (set *byteSet, n int, ok bool) {
	set = new(byteSet)
	i := 1
	negated := i < len(s) && (s[i] == '!' || s[i] == '^')
	if negated {
		i++
	}
	for first := true; ; first = false {
		if i >= len(s) {
			return nil, 0, false
		}
		if s[i] == ']' && !first {
			break
		}
		if strings.HasPrefix(s[i:], "[:") {
			name, _, found := strings.Cut(s[i+2:], ":]")
			class := posixClass(name)
			if found && class != nil {
				for c := range byte(0x80) {
					if class(c) {
						set.add(c)
					}
				}
				i += len(name) + 4
				continue
			}
			if found && !strings.Contains(name, "]") {
				return nil, 0, false
			}
		}
		low, width := classByte(s[i:])
		i += width
		high := low
		if i+1 < len(s) && s[i] == '-' && s[i+1] != ']' {
			high, width = classByte(s[i+1:])
			i += 1 + width
		}
		if width == 0 {
			return nil, 0, false
		}
		for b := int(low); b <= int(high); b++ {
			set.add(byte(b))
		}
	}
	if negated {
		set.negate()
	}
	set.remove('/')
	return set, i + 1, true
}

// classByte reads one byte of a bracket expression, and how long it is written.
func classByte(s string) (c byte, width int) {
	if s[0] != '\\' {
		return s[0], 1
	}
	if len(s) < 2 {
		return 0, 0
	}
	return s[1], 2
}

func posixClass(name string) func(byte) bool {
	in := func(low, high byte) func(byte) bool { return func(c byte) bool { return low <= c && c <= high } }
	digit, upper, lower := in('0', '9'), in('A', 'Z'), in('a', 'z')
	alpha := func(c byte) bool { return upper(c) || lower(c) }
	alnum := func(c byte) bool { return alpha(c) || digit(c) }
	switch name {
	case "alnum":
		return alnum
	case "alpha":
		return alpha
	case "blank":
		return func(c byte) bool { return c == ' ' || c == '\t' }
	case "cntrl":
		return func(c byte) bool { return c < ' ' || c == 0x7f }
	case "digit":
		return digit
	case "graph":
		return in('!', '~')
	case "lower":
		return lower
	case "print":
		return in(' ', '~')
	case "punct":
		return func(c byte) bool { return '!' <= c && c <= '~' && !alnum(c) }
	case "space":
		return func(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' }
	case "upper":
		return upper
	case "xdigit":
		return func(c byte) bool { return digit(c) || in('a', 'f')(c) || in('A', 'F')(c) }
	}
	return nil
}

// match reports whether g matches all of name. It takes time in the product
// of their lengths, whatever the pattern.
func (g glob) match(name string) bool {
	// at[i] says whether the items so far match name[:i].
	at := make([]bool, len(name)+1)
	at[0] = true
	for _, item := range g {
		switch item.kind {
		default:
			for i := len(name); i > 0; i-- {
				at[i] = at[i-1] && item.takes(name[i-1])
			}
			at[0] = false
		case globStar:
			for i := 1; i <= len(name); i++ {
				at[i] = at[i] || at[i-1] && name[i-1] != '/'
			}
		case globDeep:
			first := slices.Index(at, true)
			for i := first; i >= 0 && i <= len(name); i++ {
				at[i] = true
			}
		case globDirs:
			seen := false
			for i := 1; i <= len(name); i++ {
				seen = seen || at[i-1]
				at[i] = at[i] || seen && name[i-1] == '/'
			}
		}
	}
	return at[len(name)]
}
