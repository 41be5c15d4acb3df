package gitsrc

import (
	"context"
	"errors"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
)

const (
	maxDeltaDepth  = 4095 // git's own limit: OE_DEPTH_BITS of pack-objects.h
	maxDeltaRounds = 64   // passes to find bases that come after their deltas
)

// resolveDeltas finds out what the deltas are. A base comes before its delta
// in what git sends, but need not.
func (p *pack) resolveDeltas(ctx context.Context) error {
	var pending []*object
	for _, o := range p.objects {
		if o.delta {
			pending = append(pending, o)
		}
	}
	for range maxDeltaRounds {
		var next []*object
		for _, o := range pending {
			if o.base == nil {
				o.base = p.byID[o.baseID]
			}
			if o.base == nil || o.base.id.IsZero() {
				next = append(next, o)
				continue
			}
			if err := p.resolveDelta(ctx, o); err != nil {
				return err
			}
		}
		if len(next) == 0 {
			return nil
		}
		if len(next) == len(pending) {
			break
		}
		pending = next
	}
	return broken("deltas without a base")
}

func (p *pack) resolveDelta(ctx context.Context, o *object) error {
	o.depth = o.base.depth + 1
	if o.depth > maxDeltaDepth {
		return broken("a chain of deltas is too long")
	}
	if o.base.size > maxWholeBytes {
		return checkWhole(o.base.size)
	}
	instructions, err := p.inflate(ctx, o)
	if err != nil {
		return err
	}
	target, err := deltaTarget(instructions)
	if err != nil {
		return err
	}
	if err := errors.Join(checkWhole(target), p.account(target)); err != nil {
		return err
	}
	content, err := p.patch(ctx, o)
	if err != nil {
		return err
	}
	o.kind, o.size = o.base.kind, int64(len(content))
	hasher := plumbing.NewHasher(o.kind, o.size)
	_, _ = hasher.Write(content) // a hash never fails
	if err := p.name(o, hasher); err != nil {
		return err
	}
	if p.hold(o.size) {
		o.content = content
	}
	if o.content != nil && o.entry != nil { // its instructions have done their duty
		p.held -= o.entrySize
		o.entry = nil
	}
	return nil
}

// patch applies the delta o to its base.
func (p *pack) patch(ctx context.Context, o *object) ([]byte, error) {
	base, err := p.bytes(ctx, o.base)
	if err != nil {
		return nil, err
	}
	instructions, err := p.inflate(ctx, o)
	if err != nil {
		return nil, err
	}
	return packfile.PatchDelta(base, instructions)
}

// deltaTarget reads the size that a delta makes: the second of the two numbers
// with which it begins. See gitformat-pack(5), "Deltified representation".
func deltaTarget(delta []byte) (int64, error) {
	var n uint64
	for range 2 {
		n = 0
		for shift := 0; ; shift += 7 {
			if len(delta) == 0 || shift > 56 {
				return 0, broken("a delta without sizes")
			}
			c := delta[0]
			delta = delta[1:]
			n |= uint64(c&0x7f) << shift
			if c&0x80 == 0 {
				break
			}
		}
	}
	return int64(n), nil
}
