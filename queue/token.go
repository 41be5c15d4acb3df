package queue

import (
	"context"
	"errors"
	"fmt"

	"github.com/monochromegane/cargo/build"
)

var errTokenGone = errors.New("the build's token is gone")

// token reads a build's sealed token. ErrNotFound ends the build, so it is said
// only when most of the cluster have agreed: they let an empty one be written in
// its place, which goes with the build. A leader that stood still while another
// was elected does not have what was written since, and says so.
func (q *Queue) token(ctx context.Context, id build.ID) (sealed []byte, err error) {
	err = q.patiently(ctx, func() error {
		sealed, _, err = q.store.tokens.get(ctx, string(id))
		if err == nil && len(sealed) == 0 {
			return ErrNotFound // an earlier look has found so
		}
		if !errors.Is(err, ErrNotFound) {
			return err
		}
		exists, err := q.store.tokens.put(ctx, string(id), nil, 0)
		if err != nil {
			return err
		}
		if exists {
			return fmt.Errorf("%w: a server that lags has answered", ErrUnavailable)
		}
		return ErrNotFound
	})
	return sealed, err
}

// abandon gives up a claim whose token could not be read. If there is none, no
// later claim would find it either, so the build has ended.
func (c *Claim) abandon(ctx context.Context, why error) error {
	change := (*record).giveBack
	if errors.Is(why, ErrNotFound) {
		why = errTokenGone
		change = func(r *record) {
			r.end(build.Failed, build.ReasonInternal, "the token that the build was asked for with is gone; ask for it again by POST")
		}
	}
	r, err := c.q.update(ctx, c.build.ID, c.whileHeld(change))
	if err != nil {
		c.q.view.stray(c.name)
		return fmt.Errorf("read its token: %w", errors.Join(why, err))
	}
	c.q.drop(ctx, r)
	return fmt.Errorf("read its token: %w", why)
}
