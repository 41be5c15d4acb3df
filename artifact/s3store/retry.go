package s3store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/monochromegane/cargo/artifact"
)

// A budget is how long something goes on while the server does not answer.
type budget struct {
	total   time.Duration // for all attempts and what lies between them
	attempt time.Duration // for one
	loud    bool          // the log has the first failure: nobody else hears of it yet
}

// The waits between attempts grow from first to most, and are random below that:
// those who were refused together shall not come back together.
const (
	firstWait = 100 * time.Millisecond
	mostWait  = 5 * time.Second
)

// A patient counts the failures of one undertaking.
type patient struct {
	budget
	start    time.Time
	failures int
	last     error
}

func newPatient(b budget) *patient { return &patient{budget: b, start: time.Now()} }

// wait waits before the next attempt after err. It returns an error instead if
// there shall be none: the end of ctx, what can never succeed, or
// artifact.ErrUnavailable when the patience is over.
func (p *patient) wait(ctx context.Context, s *Store, what string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("%s: %w", what, cause)
	}
	if !again(err) {
		if strings.HasPrefix(response(err).Code, "ExpiredToken") {
			s.credentials.Expire() // whoever comes next asks for new ones
		}
		return s.explain(what, err)
	}
	if p.failures++; p.last == nil || !errors.Is(err, context.DeadlineExceeded) {
		p.last = err // a word of the server says more than that the time is over
	}
	pause := rand.N(min(firstWait<<min(p.failures, 10), mostWait)) //nolint:gosec // a wait is no secret
	if time.Since(p.start)+pause > p.total {
		return fmt.Errorf("%w: %s: %d attempts in %v, the last: %w", artifact.ErrUnavailable, what, p.failures, time.Since(p.start).Round(time.Millisecond), p.last)
	}
	if p.failures == 1 && p.loud && !errors.Is(err, errConflict) {
		s.log.Warn("the artifact store does not answer; trying again", "what", what, "err", err)
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	case <-timer.C:
		return nil
	}
}

// try runs f until it succeeds or can never, within the budget. An error that is
// wrapped in final is returned as it is.
func (s *Store) try(ctx context.Context, b budget, what string, f func(ctx context.Context) error) error {
	p := newPatient(b)
	for {
		err := p.once(ctx, f)
		if err == nil {
			return nil
		}
		if f, ok := errors.AsType[final](err); ok {
			return f.error
		}
		if err := p.wait(ctx, s, what, err); err != nil {
			return err
		}
	}
}

func (p *patient) once(ctx context.Context, f func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, min(p.attempt, p.total-time.Since(p.start)))
	defer cancel()
	return f(ctx)
}

// final is an error that another attempt must not follow, whatever it is.
type final struct{ error }

func (f final) Unwrap() error { return f.error }
