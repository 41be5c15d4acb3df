package gitsrc_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/gitsrc"
	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

func TestParseAuthorization(t *testing.T) {
	for _, header := range []string{"token T", "Token T", "BEARER T", "Bearer   T ", "Basic dTpw", "basic OnA=", "Basic dTo="} {
		if tok, err := gitsrc.ParseAuthorization(header); err != nil || tok.IsZero() {
			t.Errorf("ParseAuthorization(%q) = %v", header, err)
		}
	}
	if tok, err := gitsrc.ParseAuthorization(""); err != nil || !tok.IsZero() {
		t.Errorf("ParseAuthorization of nothing = %v, zero: %v", err, tok.IsZero())
	}
	for _, header := range []string{
		"T0psecret", "token", "token ", "Bearer", "Digest T0psecret", "Basic T0psecret", "Basic", "Basic Og==",
		"token T0p\nsecret", "token T0p\x00secret", "token T0p secret", "Basic " + base64.StdEncoding.EncodeToString([]byte("T0p\n:secret")),
		"token " + strings.Repeat("T0psecret", 500),
	} {
		tok, err := gitsrc.ParseAuthorization(header)
		if !errors.Is(err, gitsrc.ErrBadAuthorization) || !tok.IsZero() {
			t.Errorf("ParseAuthorization(%.20q) = %v, want ErrBadAuthorization", header, err)
		}
		if err != nil && strings.Contains(err.Error(), "T0p") {
			t.Errorf("the error repeats the header: %v", err)
		}
	}
}

func FuzzParseAuthorization(f *testing.F) {
	for _, seed := range []string{"", "token T", "Basic dTpw", "Bearer \x00", "basic  "} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		tok, err := gitsrc.ParseAuthorization(header)
		if err != nil && !tok.IsZero() {
			t.Errorf("a token and %v", err)
		}
	})
}

// A Token prints as nothing but "redacted", however it is printed, and even
// where it hides in a struct of somebody else.
func TestTokenNeverPrints(t *testing.T) {
	const hidden = "T0psecret"
	tok := token(t, "token "+hidden)
	type holder struct {
		Open gitsrc.Token
		shut gitsrc.Token
		P    *gitsrc.Token
	}
	var out bytes.Buffer
	for _, v := range []any{tok, &tok, holder{tok, tok, &tok}, &holder{tok, tok, &tok}, []gitsrc.Token{tok}, map[string]gitsrc.Token{"k": tok}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%p", "%T", "%c", "%U", "%e", "% x", "%08.3f", "%w", "%y"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		fmt.Fprintln(&out, v, fmt.Errorf("with %v: %w", v, errors.New("x")))
		for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
			slog.New(h).Info("x", "v", v, slog.Group("g", "v", v))
		}
		j, err := json.Marshal(v)
		fmt.Fprintf(&out, "%s %v", j, err)
		x, err := xml.Marshal(v)
		fmt.Fprintf(&out, "%s %v", x, err)
	}
	for _, form := range []string{hidden, fmt.Sprintf("%x", hidden), fmt.Sprintf("%X", hidden), "x-access-token", base64.StdEncoding.EncodeToString([]byte(hidden))} {
		if i := strings.Index(out.String(), form); i >= 0 {
			t.Errorf("%q was printed: %q", form, out.String()[max(0, i-50):i+20])
		}
	}
	if got := fmt.Sprintf("%v %s %q %d", tok, tok, tok, tok); got != "redacted redacted redacted redacted" {
		t.Errorf("printed %s", got)
	}
	if j, err := json.Marshal(map[string]any{"t": tok}); err != nil || string(j) != `{"t":"redacted"}` {
		t.Errorf("JSON = %s, %v", j, err)
	}
}

func TestSeal(t *testing.T) {
	host := gitsrctest.New(t)
	host.Repository("o/app").Commit("main", files(map[string]string{"f": "1"}))
	host.Protect("o/app", "T0psecret")
	s := newSource(t, host, nil)
	id := build.NewID()

	sealed, err := s.Seal(token(t, "token T0psecret"), id)
	if err != nil || bytes.Contains(sealed, []byte("T0psecret")) {
		t.Fatalf("Seal = %q, %v", sealed, err)
	}
	// Another process, with the same secret.
	tok, err := newSource(t, host, nil).Unseal(sealed, id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Readable(t.Context(), app, tok); err != nil {
		t.Errorf("Readable with the token that was sealed = %v", err)
	}
	if again, _ := s.Seal(token(t, "token T0psecret"), id); bytes.Equal(again, sealed) {
		t.Error("sealed twice, it is the same")
	}

	other := newSource(t, host, func(o *gitsrc.Options) { o.Secret = []byte("another secret of 32 bytes or so") })
	damaged := bytes.Clone(sealed)
	damaged[len(damaged)/2] ^= 1
	for name, unseal := range map[string]func() (gitsrc.Token, error){
		"another build":  func() (gitsrc.Token, error) { return s.Unseal(sealed, build.NewID()) },
		"another secret": func() (gitsrc.Token, error) { return other.Unseal(sealed, id) },
		"damaged":        func() (gitsrc.Token, error) { return s.Unseal(damaged, id) },
		"short":          func() (gitsrc.Token, error) { return s.Unseal(sealed[:5], id) },
	} {
		if tok, err := unseal(); err == nil || !tok.IsZero() {
			t.Errorf("%s: Unseal gives a token", name)
		}
	}
	none, err := s.Seal(gitsrc.Token{}, id)
	if err != nil || none != nil {
		t.Errorf("Seal of nobody = %v, %v; want nil", none, err)
	}
	if tok, err := s.Unseal(nil, id); err != nil || !tok.IsZero() {
		t.Errorf("Unseal of nothing = %v, %v", tok, err)
	}
}

// TestTokenIsNowhere looks for a token in everything that gitsrc makes, while
// the git host does its best to have it repeated.
func TestTokenIsNowhere(t *testing.T) {
	const hidden = "T0psecretT0psecret"
	forms := []string{hidden, base64.StdEncoding.EncodeToString([]byte("x-access-token:" + hidden))}
	host := gitsrctest.New(t)
	repo := host.Repository("o/app")
	repo.Commit("main", everything())
	host.Protect("o/app", hidden)
	log := new(recorder)
	s := newSource(t, host, func(o *gitsrc.Options) {
		o.Log = slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	tok := token(t, "token "+hidden)
	var said strings.Builder // errors and command lines

	host.Intercept(func(http.ResponseWriter, *http.Request) bool {
		lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, line := range lines {
			b, _ := os.ReadFile(line) // a process may have ended
			said.Write(b)
		}
		return false
	})
	ref, err := s.Resolve(t.Context(), app, "main", tok, 0)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	tree, err := s.Fetch(t.Context(), app, ref, tok, dir)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&said, "%+v %#v %+v", tree, tree, ref)

	echo := func(status int, prefix string) {
		host.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
			user, password, _ := r.BasicAuth()
			text := prefix + strings.Join([]string{user, password, r.Header.Get("Authorization")}, " ")
			w.Header().Set("WWW-Authenticate", text)
			w.Header().Set("Location", "http://"+password+"@127.0.0.2/"+password)
			w.WriteHeader(status)
			_, _ = fmt.Fprintf(w, "%04x%s0000", len(text)+4, text)
			return true
		})
		_, err := s.Resolve(t.Context(), app, "main", tok, 0)
		fmt.Fprintf(&said, "%v %+v %#v\n", err, err, err)
		_, err = s.Fetch(t.Context(), app, ref, tok, t.TempDir())
		fmt.Fprintf(&said, "%v %+v\n", err, err)
		slog.New(slog.NewJSONHandler(log, nil)).Error("x", "err", err)
	}
	for _, status := range []int{200, 302, 400, 401, 403, 404, 429, 500} {
		echo(status, "ERR ")
		echo(status, "\x03")
	}
	host.Stop()
	_, err = s.Resolve(t.Context(), app, "main", tok, 0)
	fmt.Fprintf(&said, "%v %+v\n", err, err)

	for _, form := range forms {
		if strings.Contains(said.String(), form) {
			t.Errorf("%q is in an error or a command line", form)
		}
		if strings.Contains(log.String(), form) {
			t.Errorf("%q is in the log", form)
		}
	}
	if log.String() == "" || !strings.Contains(said.String(), "gitsrc.test") {
		t.Error("nothing was logged, or no command line was read: this test tests nothing")
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		for _, form := range forms {
			if bytes.Contains(content, []byte(form)) || strings.Contains(path, form) {
				t.Errorf("%q is in %s", form, path)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if config, err := os.ReadFile(filepath.Join(dir, ".git", "config")); err != nil || bytes.Contains(config, []byte("url")) {
		t.Errorf(".git/config = %s, %v", config, err)
	}
}
