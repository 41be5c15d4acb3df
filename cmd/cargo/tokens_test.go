package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const (
	tokenOfCI  = "the-token-of-ci-1"
	tokenOfBob = "the-token-of-bob-2"
)

// tokensFile writes a file that its owner alone can read.
func tokensFile(t *testing.T, lines ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tokens")
	rewrite(t, path, lines...)
	return path
}

func rewrite(t *testing.T, path string, lines ...string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTokens(t *testing.T) {
	digest := sha256.Sum256([]byte(tokenOfBob))
	path := tokensFile(t, "# who may build", "", "  ci \t "+tokenOfCI+"  ", "bob sha256:"+hex.EncodeToString(digest[:]))
	tok, err := openTokens(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string]string{
		tokenOfCI: "ci", tokenOfBob: "bob", "": "", tokenOfCI + "x": "", tokenOfCI[:16]: "",
		"sha256:" + hex.EncodeToString(digest[:]): "", string(digest[:]): "",
	} {
		if name, known := tok.Caller(token); name != want || known != (want != "") {
			t.Errorf("Caller(%q) = %q, %v; want %q", token, name, known, want)
		}
	}
}

func TestBadTokensFiles(t *testing.T) {
	const token = "a-token-nobody-may-see"
	for _, tc := range []struct {
		lines []string
		says  string
	}{
		{[]string{"# x", "ci"}, "line 2: want NAME TOKEN"},
		{[]string{"ci " + token + " # mine"}, "line 1: want NAME TOKEN"},
		{[]string{"ci short"}, "line 1: the token is shorter than 16"},
		{[]string{"ci " + token + "\x01"}, "line 1: the token has characters"},
		{[]string{"ci " + token + "ü"}, "line 1: the token has characters"},
		{[]string{"ci sha256:" + token}, "line 1: after sha256: want 64 hex digits"},
		{[]string{"-ci " + token}, "line 1: want a name"},
		{[]string{token + "/ ci"}, "line 1: want a name"},
		{[]string{token + " ci"}, "line 1: the token is shorter"},
		{[]string{"ci " + token, "", "ci " + token + "2"}, "line 3: the same name as on line 1"},
		{[]string{"ci " + token, "bob " + token}, "line 2: the same token as on line 1"},
		{[]string{"a", "b"}, "line 2"}, // all at once
		{[]string{strings.Repeat("#", maxTokensFile+1)}, "larger than"},
	} {
		path := tokensFile(t, tc.lines...)
		_, err := openTokens(path, slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), "--auth-tokens-file "+path) {
			t.Errorf("%q: %v; want something of %q", tc.lines, err, tc.says)
		}
		if err != nil && strings.Contains(err.Error(), token) {
			t.Errorf("%q: the error holds the token: %v", tc.lines, err)
		}
	}

	path := tokensFile(t, "ci "+token)
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{path: "chmod 600", path + "x": "no such file", t.TempDir(): "not a file"} {
		if _, err := openTokens(path, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v; want something of %q", path, err, says)
		}
	}
}

func TestTokensAreReadAgain(t *testing.T) {
	path := tokensFile(t, "ci "+tokenOfCI)
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		tok, err := openTokens(path, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		want := func(ci, bob bool) {
			t.Helper()
			if _, known := tok.Caller(tokenOfCI); known != ci {
				t.Errorf("ci is known: %v, want %v", known, ci)
			}
			if _, known := tok.Caller(tokenOfBob); known != bob {
				t.Errorf("bob is known: %v, want %v", known, bob)
			}
		}
		want(true, false)
		rewrite(t, path, "ci "+tokenOfCI, "bob "+tokenOfBob)
		want(true, false) // it was looked at a moment ago
		time.Sleep(tokensAge)
		want(true, true)

		rewrite(t, path, "bob "+tokenOfBob, "ci broken") // changes nothing, and is said once
		for range 3 {
			time.Sleep(tokensAge)
			want(true, true)
		}
		if n := strings.Count(log.String(), "stay as they were"); n != 1 {
			t.Errorf("a broken file is logged %d times:\n%s", n, log.String())
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			time.Sleep(tokensAge)
			want(true, true)
		}
		if n := strings.Count(log.String(), "stay as they were"); n != 2 {
			t.Errorf("a broken and a missing file are logged %d times:\n%s", n, log.String())
		}
		rewrite(t, path, "bob "+tokenOfBob)
		time.Sleep(tokensAge)
		want(false, true)
		rewrite(t, path) // nobody may
		time.Sleep(tokensAge)
		want(false, false)
		if strings.Contains(log.String(), tokenOfBob) || strings.Contains(log.String(), tokenOfCI) {
			t.Errorf("the log holds a token:\n%s", log.String())
		}
	})
}

func TestCheckOpen(t *testing.T) {
	for _, tc := range []struct {
		listen, file string
		open, ok     bool
	}{
		{"127.0.0.1:8080", "", false, true},
		{"127.9.9.9:0", "", false, true},
		{"[::1]:8080", "", false, true},
		{"localhost:8080", "", false, true},
		{"127.0.0.1:8080", "f", false, true},
		{":8080", "", false, false},
		{"0.0.0.0:8080", "", false, false},
		{"[::]:8080", "", false, false},
		{"192.0.2.1:8080", "", false, false},
		{"localhost.example:8080", "", false, false},
		{":8080", "f", false, true},
		{":8080", "", true, true},
		{":8080", "f", true, false},
	} {
		if err := checkOpen(tc.listen, tc.file, tc.open); (err == nil) != tc.ok {
			t.Errorf("--listen %s --auth-tokens-file %q --open=%v: %v", tc.listen, tc.file, tc.open, err)
		}
	}
}

func FuzzParseTokens(f *testing.F) {
	f.Add("ci " + tokenOfCI + "\n# x\n\nbob sha256:" + strings.Repeat("ab", 32))
	f.Add(tokenOfCI + " ci")
	f.Add("ci " + tokenOfCI + "\nci " + tokenOfCI)
	f.Fuzz(func(t *testing.T, text string) {
		callers, err := parseTokens([]byte(text))
		names := map[string]bool{}
		for _, c := range callers {
			if names[c.name] || !callerName.MatchString(c.name) {
				t.Errorf("caller %q", c.name)
			}
			names[c.name] = true
		}
		if err == nil {
			return
		}
		for field := range strings.FieldsSeq(text) {
			if len(field) >= minToken && strings.Contains(err.Error(), field) {
				t.Errorf("the error repeats %q: %v", field, err)
			}
		}
	})
}
