package buildlog

import (
	"bytes"
	"sync"
	"unicode/utf8"
)

// A stream is one output of a container.
type stream struct {
	mu    sync.Mutex
	split splitter
}

func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.split.write(p)
	return len(p), nil
}

func (s *stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.split.end()
	return nil
}

// A splitter makes lines of bytes that come in any portions. It holds no more
// than limit of them.
type splitter struct {
	limit   int
	emit    func(text []byte, cut int64)
	drop    func(n int64) // is told of bytes that are dropped, as they are; nil if nobody is
	text    []byte        // of the line that has begun
	cut     int64         // bytes of that line that are dropped
	swallow bool          // the line has been ended by \r already, \n adds nothing
}

func (s *splitter) write(p []byte) {
	for len(p) > 0 {
		end := bytes.IndexAny(p, "\r\n")
		if end < 0 {
			s.add(p)
			return
		}
		s.add(p[:end])
		if p[end] == '\n' {
			if s.begun() || !s.swallow {
				s.flush()
			}
			s.swallow = false
		} else if s.begun() {
			s.flush()
			s.swallow = true
		}
		p = p[end+1:]
	}
}

// end emits a last line that nothing has ended.
func (s *splitter) end() {
	if s.begun() {
		s.flush()
	}
}

func (s *splitter) begun() bool { return len(s.text) > 0 || s.cut > 0 }

func (s *splitter) add(p []byte) {
	if len(p) == 0 {
		return
	}
	s.swallow = false
	keep := min(len(p), s.limit-len(s.text))
	if s.cut > 0 {
		keep = 0
	}
	s.text = append(s.text, p[:keep]...)
	s.cut += int64(len(p) - keep)
	if s.drop != nil && keep < len(p) {
		s.drop(int64(len(p) - keep))
	}
}

func (s *splitter) flush() {
	text := s.text
	if s.cut > 0 {
		text = wholeRunes(text)
		s.cut += int64(len(s.text) - len(text))
	}
	s.emit(text, s.cut)
	s.text, s.cut = s.text[:0], 0
}

// wholeRunes is b without the beginning of a character that was cut in two.
func wholeRunes[T ~string | ~[]byte](b T) T {
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		if c := b[len(b)-n]; utf8.RuneStart(c) {
			if !utf8.FullRuneInString(string(b[len(b)-n:])) {
				return b[:len(b)-n]
			}
			break
		}
	}
	return b
}

// cutText is the first limit bytes of s and how many more there were.
func cutText(s string, limit int) (text string, cut int64) {
	if len(s) <= limit {
		return s, 0
	}
	text = wholeRunes(s[:limit])
	return text, int64(len(s) - len(text))
}
