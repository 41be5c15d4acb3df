package gitsrc

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	githttp "github.com/go-git/go-git/v5/plumbing/transport/http"
)

// ErrBadAuthorization is wrapped when an Authorization header cannot be used.
// Its text never repeats the header.
var ErrBadAuthorization = errors.New("the Authorization header cannot be used")

// maxAuthorization bounds an Authorization header in bytes. GitHub's longest
// token has 255.
const maxAuthorization = 4 << 10

// A Token is a caller's credential for a git host; the zero value is
// anonymous. It prints as "redacted", whatever it is printed with.
type Token struct {
	// reveal is a function because fmt, which calls no methods of a Token in an
	// unexported field of somebody's struct, follows pointers but not closures.
	reveal func() credential
}

type credential struct{ user, password string }

// tokenUser is the user name that GitHub, GitLab and Gitea accept beside a
// token as the password.
const tokenUser = "x-access-token"

// ParseAuthorization reads the value of an Authorization header: "token T",
// "Bearer T" or "Basic B64"; "" is the zero Token.
func ParseAuthorization(header string) (Token, error) {
	if header == "" {
		return Token{}, nil
	}
	if len(header) > maxAuthorization {
		return Token{}, fmt.Errorf("%w: it is longer than %d bytes", ErrBadAuthorization, maxAuthorization)
	}
	scheme, value, _ := strings.Cut(header, " ")
	value = strings.Trim(value, " ")
	switch strings.ToLower(scheme) {
	case "token", "bearer":
		if value == "" || hasControl(value) || strings.Contains(value, " ") {
			return Token{}, fmt.Errorf("%w: no token follows the scheme", ErrBadAuthorization)
		}
		return newToken(tokenUser, value), nil
	case "basic":
		raw, err := base64.StdEncoding.DecodeString(value)
		user, password, ok := strings.Cut(string(raw), ":")
		if err != nil || !ok || hasControl(string(raw)) || user+password == "" {
			return Token{}, fmt.Errorf("%w: what follows Basic is not user:password in base64", ErrBadAuthorization)
		}
		return newToken(user, password), nil
	}
	return Token{}, fmt.Errorf("%w: use token, Bearer or Basic", ErrBadAuthorization)
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

func newToken(user, password string) Token {
	return Token{func() credential { return credential{user, password} }}
}

// IsZero reports whether t is anonymous.
func (t Token) IsZero() bool { return t.reveal == nil }

// auth is what go-git sends for t, nil for nothing.
func (t Token) auth() *githttp.BasicAuth {
	if t.IsZero() {
		return nil
	}
	c := t.reveal()
	return &githttp.BasicAuth{Username: c.user, Password: c.password}
}

const redacted = "redacted"

// String is "redacted".
func (Token) String() string { return redacted }

// Format writes "redacted", for every verb.
func (Token) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue is "redacted".
func (Token) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText is "redacted", in JSON as well.
func (Token) MarshalText() ([]byte, error) { return []byte(redacted), nil }
