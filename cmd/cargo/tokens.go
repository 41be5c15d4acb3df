package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"
)

const (
	minToken      = 16          // characters
	maxTokensFile = 1 << 20     // bytes
	tokensAge     = time.Second // how often the file is looked at, at most
)

// tokens are the callers in the file of --auth-tokens-file, one a line: NAME
// TOKEN, or NAME sha256:HEX with the digest of the token. The file is read
// again when it has changed; one that is broken changes nothing.
type tokens struct {
	path string
	log  *slog.Logger

	mu      sync.Mutex
	looked  time.Time
	seen    fs.FileInfo // of the file that was read last, well or not; nil if there was none
	callers []tokenCaller
}

type tokenCaller struct {
	name   string
	digest [sha256.Size]byte
}

// openTokens reads the file for the first time. An error is the operator's to
// mend, and holds nothing of the file but numbers of lines.
func openTokens(path string, log *slog.Logger) (*tokens, error) {
	t := &tokens{path: path, log: log, looked: time.Now()}
	var err error
	if t.callers, t.seen, err = readTokens(path); err != nil {
		return nil, usageError{fmt.Errorf("--auth-tokens-file %s: %w", path, err)}
	}
	log.Info("callers who may build", "file", path, "count", len(t.callers))
	return t, nil
}

// Caller returns the name of the caller whose token it is. How long that takes
// says nothing about how much of a token was guessed.
func (t *tokens) Caller(token string) (name string, known bool) {
	digest := sha256.Sum256([]byte(token))
	for _, c := range t.current() {
		if subtle.ConstantTimeCompare(digest[:], c.digest[:]) == 1 {
			name, known = c.name, true
		}
	}
	return name, known
}

// current are the callers of the file as it is now, or was a second ago.
func (t *tokens) current() []tokenCaller {
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Since(t.looked) < tokensAge {
		return t.callers
	}
	t.looked = time.Now()
	if fi, _ := os.Stat(t.path); same(fi, t.seen) { // nil while there is none to see
		return t.callers
	}
	callers, fi, err := readTokens(t.path)
	t.seen = fi
	if err != nil {
		t.log.Error("the callers who may build stay as they were", "file", t.path, "err", err)
		return t.callers
	}
	t.callers = callers
	t.log.Info("callers who may build", "file", t.path, "count", len(callers))
	return t.callers
}

// same reports whether two looks at a file found it unchanged.
func same(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size() && a.Mode() == b.Mode()
}

// readTokens reads the file. The FileInfo, from before the reading so that no
// later change is missed, is there whenever there is a file.
func readTokens(path string) ([]tokenCaller, fs.FileInfo, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, nil, cause(err)
	}
	if !fi.Mode().IsRegular() {
		return nil, fi, errors.New("is not a file")
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return nil, fi, fmt.Errorf("others can read it (mode %04o); run: chmod 600 %s", fi.Mode().Perm(), path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fi, cause(err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxTokensFile+1))
	if err != nil {
		return nil, fi, cause(err)
	}
	if len(text) > maxTokensFile {
		return nil, fi, fmt.Errorf("is larger than %d bytes", maxTokensFile)
	}
	callers, err := parseTokens(text)
	return callers, fi, err
}

var callerName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$`)

// parseTokens reads the lines and says everything that is wrong with them. Not
// even a name is repeated: on a line that is the wrong way round it is the token.
func parseTokens(text []byte) ([]tokenCaller, error) {
	var callers []tokenCaller
	var errs []error
	names, digests := map[string]int{}, map[[sha256.Size]byte]int{}
	n := 0
	for line := range bytes.Lines(text) {
		n++
		fields := strings.Fields(string(line))
		if len(fields) == 0 || fields[0][0] == '#' {
			continue
		}
		c, err := parseCaller(fields)
		if err == nil && names[c.name] > 0 {
			err = fmt.Errorf("the same name as on line %d", names[c.name])
		}
		if err == nil && digests[c.digest] > 0 {
			err = fmt.Errorf("the same token as on line %d", digests[c.digest])
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("line %d: %w", n, err))
			continue
		}
		names[c.name], digests[c.digest] = n, n
		callers = append(callers, c)
	}
	return callers, errors.Join(errs...)
}

func parseCaller(fields []string) (c tokenCaller, err error) {
	if len(fields) != 2 {
		return c, errors.New("want NAME TOKEN, or NAME sha256:HEX, and nothing else")
	}
	if c.name = fields[0]; !callerName.MatchString(c.name) {
		return c, errors.New("want a name of at most 64 letters, digits and . _ @ - first")
	}
	token := fields[1]
	if digits, ok := strings.CutPrefix(token, "sha256:"); ok {
		digest, err := hex.DecodeString(digits)
		if err != nil || len(digest) != sha256.Size {
			return c, fmt.Errorf("after sha256: want %d hex digits", 2*sha256.Size)
		}
		c.digest = [sha256.Size]byte(digest)
		return c, nil
	}
	if len(token) < minToken {
		return c, fmt.Errorf("the token is shorter than %d characters; `openssl rand -hex 32` makes a good one", minToken)
	}
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return c, errors.New("the token has characters that are no printable ASCII")
	}
	c.digest = sha256.Sum256([]byte(token))
	return c, nil
}

// checkOpen refuses an address that others reach where nobody has said who may
// build: with --auth-tokens-file, or that everybody may, with --open.
func checkOpen(listen, tokensFile string, open bool) error {
	switch {
	case open && tokensFile != "":
		return errors.New("--open and --auth-tokens-file exclude each other: either everybody may build, or those in the file")
	case open || tokensFile != "" || loopback(listen):
		return nil
	}
	return fmt.Errorf("--listen %s: others reach this address, and would build here; name those who may with --auth-tokens-file FILE, or say --open if everybody may", listen)
}

func loopback(listen string) bool {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return false
	}
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.Unmap().IsLoopback()
}
