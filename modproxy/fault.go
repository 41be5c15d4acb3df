package modproxy

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
)

// ErrUnavailable is wrapped by the DoorError of an upstream that does not answer:
// no connection, none of its answer or not all of it in time, 429 or 5xx.
var ErrUnavailable = errors.New("the module proxy upstream does not answer")

// A DoorError is why a Door had no answer for a build that could have had one.
type DoorError struct {
	Module string // path of what was asked for; of a record of the checksum database the path of the request
	Err    error  // wraps ErrUnavailable, or else is of this server: its disk, its open files
}

func (e *DoorError) Error() string { return e.Module + ": " + e.Err.Error() }
func (e *DoorError) Unwrap() error { return e.Err }

// troubles are a machine's own. No upstream has a part in them.
var troubles = []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EIO}

// trouble returns err as one of this server if it is about one of troubles,
// else nil. goproxy's fetcher may say of any error that the module does not
// exist; what trouble returns does not.
func trouble(err error) error {
	for _, no := range troubles {
		if errors.Is(err, no) {
			return fmt.Errorf("%w: %w (%v)", errCache, no, err)
		}
		// A resolver's error has no other in it.
		if dns, ok := errors.AsType[*net.DNSError](err); ok && strings.Contains(dns.Err, no.Error()) {
			return fmt.Errorf("%w: %w (%v)", errCache, no, err)
		}
	}
	return nil
}

// own reports whether err is of this server, and neither the answer nor the
// silence of an upstream.
func own(err error) bool { return errors.Is(err, errCache) || trouble(err) != nil }

// scarce reports whether err is the want of a descriptor, which passes.
func scarce(err error) bool {
	err = trouble(err)
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}
