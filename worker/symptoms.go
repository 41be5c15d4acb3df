package worker

import (
	"bytes"
	"io"
	"sync/atomic"
)

// symptoms are what a build's output says of why it failed, where no exit
// status and no counter of the kernel does. What they say decides only between
// the reasons of a failure that is the build's own.
type symptoms struct {
	full    atomic.Bool // a disk had no room
	network atomic.Bool // something was to be had from a network
}

// The words of the C library, of Go and of the usual programs, in lower case.
var (
	fullWords = [][]byte{
		[]byte("no space left on device"), []byte("disk quota exceeded"),
		[]byte("file size limit exceeded"), []byte("file too large"), // larger than one file may be
	}
	networkWords = [][]byte{
		[]byte("could not resolve host"), []byte("name or service not known"), []byte("temporary failure in name resolution"),
		[]byte("network is unreachable"), []byte("unable to resolve host"), []byte("no such host"), []byte("bad address"),
		[]byte("server misbehaving"), []byte("--network none"), []byte("connection refused"),
	}
)

// longestWord is the length of the longest of them, less one: what must be
// kept of a write for a word that goes on in the next.
const longestWord = len("temporary failure in name resolution") - 1

// watch passes on to w what it looks at. The writer is not safe for
// concurrent use, but several may be in use at once.
func (s *symptoms) watch(w io.Writer) io.Writer { return &watcher{symptoms: s, next: w} }

type watcher struct {
	*symptoms
	next io.Writer
	seen []byte // the end of what came before, in lower case, and room
}

func (w *watcher) Write(p []byte) (int, error) {
	w.look(p)
	return w.next.Write(p)
}

// look takes about half a second for 100 MB of short lines.
func (w *watcher) look(p []byte) {
	const piece = 4 << 10
	for len(p) > 0 {
		n := min(len(p), piece)
		for _, c := range p[:n] {
			if 'A' <= c && c <= 'Z' {
				c += 'a' - 'A'
			}
			w.seen = append(w.seen, c)
		}
		p = p[n:]
		find(&w.full, w.seen, fullWords)
		find(&w.network, w.seen, networkWords)
		w.seen = append(w.seen[:0], w.seen[max(0, len(w.seen)-longestWord):]...)
	}
}

func find(found *atomic.Bool, text []byte, words [][]byte) {
	if found.Load() {
		return
	}
	for _, word := range words {
		if bytes.Contains(text, word) {
			found.Store(true)
			return
		}
	}
}
