package cache

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
)

// maxLayers is how long a list may be. Each layer costs the file system a
// look, for each file that a build asks for in vain.
const maxLayers = 8

// tidy keeps the list of class short and the cache below its limit.
func (c *Cache) tidy(ctx context.Context, class Class) error {
	if err := c.compact(ctx, class); err != nil {
		return fmt.Errorf("compact: %w", err)
	}
	err := c.locked(func(s *state) error {
		if err := s.sweep(); err != nil {
			return err
		}
		if class.kind != KindShared {
			if err := s.evict(c.limit/4, func(other Class) bool { return other == class }, s.remove); err != nil {
				return err
			}
		}
		// What runs strangers' code fills what it is given: a few repositories
		// must not drive out what all builds use.
		if err := s.evict(c.limit/4*3, func(other Class) bool { return other.kind == KindRepository }, s.remove); err != nil {
			return err
		}
		return s.evict(c.limit, func(Class) bool { return true }, s.remove)
	})
	if err != nil {
		return fmt.Errorf("keep the limit: %w", err)
	}
	return nil
}

// compact merges neighbors in the list of class into a layer of hard links, if
// the list is too long.
func (c *Cache) compact(ctx context.Context, class Class) error {
	if !c.compacting.TryLock() {
		return nil // the next Append will do
	}
	defer c.compacting.Unlock()
	var run []layer
	held := &Lease{}
	defer held.Release()
	err := c.locked(func(s *state) error {
		run = mergeable(s.layers(class), c.limit/8)
		if !slices.ContainsFunc(run, func(a layer) bool { return !c.whole(a) }) {
			for _, a := range run {
				if _, err := held.hold(c, a); err != nil {
					return err
				}
			}
			return nil
		}
		run = nil
		return nil
	})
	if err != nil || len(run) == 0 {
		return err
	}
	d, err := c.newDraft()
	if err != nil {
		return err
	}
	defer d.discard()
	sealed := time.Time{}
	for _, a := range run {
		if err := d.link(ctx, a); err != nil {
			return err
		}
		if a.Sealed.After(sealed) {
			sealed = a.Sealed
		}
	}
	held.Release() // so that the sweep after this can take them
	return c.locked(func(s *state) error {
		layers := s.layers(class)
		at := slices.IndexFunc(layers, func(a layer) bool { return a.ID == run[0].ID })
		if at < 0 || len(layers)-at < len(run) || !slices.Equal(layers[at:at+len(run)], run) {
			return nil // somebody else was faster
		}
		merged, err := d.commit(s, sealed)
		if err != nil {
			return err
		}
		return s.save(class, slices.Replace(layers, at, at+len(run), merged))
	})
}

// mergeable returns the neighbors to merge, none if the list is short enough
// or all that could be merged is more than most bytes.
//
// It takes the newest ones, and each older one that is not larger than what is
// taken already: so layers grow like the powers of two, and a file is linked
// again only when about as much has come after it.
func mergeable(layers []layer, most int64) []layer {
	if len(layers) <= maxLayers {
		return nil
	}
	fits := func(run []layer) bool {
		var n int64
		for _, a := range run {
			n += a.Bytes
		}
		return n <= most
	}
	n, files := 2, layers[0].Files+layers[1].Files
	for n < len(layers) && layers[n].Files <= files && fits(layers[:n+1]) {
		files += layers[n].Files
		n++
	}
	if fits(layers[:n]) {
		return layers[:n]
	}
	var best []layer
	for i := range len(layers) - 1 {
		pair := layers[i : i+2]
		if fits(pair) && (best == nil || pair[0].Files+pair[1].Files < best[0].Files+best[1].Files) {
			best = pair
		}
	}
	return best
}

// Prune removes layers, the least recently used ones first, until the cache
// takes at most keep bytes, and returns how many bytes it freed. What is
// leased stays.
func (c *Cache) Prune(ctx context.Context, keep int64) (freed int64, err error) {
	if err := context.Cause(ctx); err != nil {
		return 0, fmt.Errorf("prune build cache: %w", err)
	}
	err = c.locked(func(s *state) error {
		before := s.bytes()
		err := s.evict(keep, func(Class) bool { return true }, s.removeIdle)
		freed = before - s.bytes()
		if err != nil {
			return err
		}
		return s.sweep()
	})
	if err != nil {
		return freed, fmt.Errorf("prune build cache: %w", err)
	}
	return freed, nil
}

// A victim is a layer that may go.
type victim struct {
	class Class
	age   int // its place in the list, from the oldest one
	last  time.Time
	layer layer
}

// evict has remove take layers of the classes that may go, until those take at
// most keep bytes. A class goes when it was not used for longest, its oldest layer
// first. The shared class is always in use: there a layer counts as used when
// it was made.
func (s *state) evict(keep int64, may func(Class) bool, remove func(victim) (bool, error)) error {
	var total int64
	for class, l := range s.lists {
		if may(class) {
			total += l.bytes()
		}
	}
	if total <= keep {
		return nil
	}
	victims, err := s.victims(may)
	if err != nil {
		return err
	}
	for _, v := range victims {
		if total <= keep {
			return nil
		}
		gone, err := remove(v)
		if err != nil {
			return err
		}
		if gone {
			total -= v.layer.Bytes
		}
	}
	return nil
}

func (s *state) victims(may func(Class) bool) ([]victim, error) {
	var all []victim
	for class, l := range s.lists {
		if !may(class) {
			continue
		}
		used, err := s.used(class)
		if err != nil {
			return nil, err
		}
		for i, a := range l.Layers {
			v := victim{class, len(l.Layers) - i, used, a}
			if class.kind == KindShared {
				v.last = a.Sealed
			}
			all = append(all, v)
		}
	}
	slices.SortFunc(all, func(a, b victim) int {
		return cmp.Or(a.last.Compare(b.last), cmp.Compare(a.class.key(), b.class.key()), cmp.Compare(a.age, b.age))
	})
	return all, nil
}

// remove takes a layer out of its list. Its directory goes too, if need be when
// its last lease ends: builds lease what they append to, so a limit that waited
// for layers that nobody uses would be none.
func (s *state) remove(v victim) (bool, error) {
	layers := slices.DeleteFunc(s.layers(v.class), func(a layer) bool { return a.ID == v.layer.ID })
	if err := s.save(v.class, layers); err != nil {
		return false, err
	}
	return true, s.throw(v.layer.ID)
}

// removeIdle removes a layer unless it is leased.
func (s *state) removeIdle(v victim) (bool, error) {
	held := seize(s.cache.layerPath(v.layer.ID))
	if held == nil {
		return false, nil
	}
	held.Close()
	return s.remove(v)
}
