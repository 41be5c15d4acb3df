package gitsrc

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/monochromegane/cargo/build"
)

// minSecret is the least length of Options.Secret in bytes: as strong as the keys made of it.
const minSecret = 32

// errSeal says nothing more: what is wrong with a forgery is nobody's business.
var errSeal = errors.New("a sealed token cannot be opened: it belongs to another build, or the secret file has changed")

// keys are what the secret is for, each made of it by HKDF under a name of its own.
type keys struct {
	seal   cipher.AEAD
	access []byte
}

func deriveKeys(secret []byte) (keys, error) {
	if len(secret) < minSecret {
		return keys{}, fmt.Errorf("the secret has %d bytes; it needs %d or more", len(secret), minSecret)
	}
	sealKey, err := hkdf.Key(sha256.New, secret, nil, "cargo gitsrc seal v1", 32)
	if err != nil {
		return keys{}, err
	}
	access, err := hkdf.Key(sha256.New, secret, nil, "cargo gitsrc access v1", sha256.Size)
	if err != nil {
		return keys{}, err
	}
	block, err := aes.NewCipher(sealKey)
	if err != nil {
		return keys{}, err
	}
	seal, err := cipher.NewGCMWithRandomNonce(block)
	return keys{seal: seal, access: access}, err
}

// Seal encrypts tok so that it can wait in the queue, for the build id only
// and under the Source's secret. The zero Token is sealed as nil.
func (s *Source) Seal(tok Token, id build.ID) ([]byte, error) {
	if tok.IsZero() {
		return nil, nil
	}
	c := tok.reveal()
	plain := []byte(c.user + "\x00" + c.password) // neither holds a control character
	return s.keys.seal.Seal(nil, nil, plain, []byte(id)), nil
}

// Unseal opens what Seal made for the same build.
func (s *Source) Unseal(sealed []byte, id build.ID) (Token, error) {
	if len(sealed) == 0 {
		return Token{}, nil
	}
	plain, err := s.keys.seal.Open(nil, nil, sealed, []byte(id))
	if err != nil {
		return Token{}, errSeal
	}
	user, password, ok := strings.Cut(string(plain), "\x00")
	if !ok {
		return Token{}, errSeal
	}
	return newToken(user, password), nil
}

// accessKey names an answer of the access cache without holding the token.
func (s *Source) accessKey(repo build.Repository, tok Token) cacheKey {
	mac := hmac.New(sha256.New, s.keys.access)
	parts := []string{repo.Remote, repo.Owner, repo.Name}
	if !tok.IsZero() {
		c := tok.reveal()
		parts = append(parts, c.user, c.password)
	}
	for _, p := range parts {
		_ = binary.Write(mac, binary.BigEndian, uint32(len(p))) // a hash never fails
		mac.Write([]byte(p))
	}
	return cacheKey(mac.Sum(nil))
}
