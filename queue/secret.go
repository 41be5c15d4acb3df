package queue

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
)

// ErrSecret is wrapped by CheckSecret.
var ErrSecret = errors.New("another secret is in use")

// minSecret is the least length in bytes: what is stored of a shorter one could
// be found by trying.
const minSecret = 32

// CheckSecret returns ErrSecret if another process of this queue was the first
// to call it, ever, with another secret: tokens that one of them has sealed the other
// could not open. What is kept for that in the queue is derived from the secret
// under a name of its own, so it does not help to find the secret or what else is derived from it.
//
// Who wants another secret on all of them removes the key "secret" from the
// bucket "workers" while none runs.
func (q *Queue) CheckSecret(ctx context.Context, secret []byte) error {
	if len(secret) < minSecret {
		return fmt.Errorf("the secret has %d bytes; it needs %d or more", len(secret), minSecret)
	}
	check, err := hkdf.Key(sha256.New, secret, nil, "cargo queue check v1", 16)
	if err != nil {
		return fmt.Errorf("derive what tells one secret from another: %w", err)
	}
	ours := []byte(hex.EncodeToString(check))
	return q.withFleet(ctx, true, "compare the secret with that of the queue", func(ctx context.Context, f *fleet) error {
		for {
			m, err := f.get(ctx, secretKey)
			if err == nil && subtle.ConstantTimeCompare(m.Data, ours) == 1 {
				return nil
			}
			if err == nil {
				return fmt.Errorf("%w: the file of --secret-file must be the same on all servers and workers of a queue; copy it from one that runs", ErrSecret)
			}
			if !errors.Is(err, ErrNotFound) {
				return err
			}
			if _, err = f.put(ctx, secretKey, ours, 0); !errors.Is(err, errBehind) {
				return err
			}
		}
	})
}
