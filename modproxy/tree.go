package modproxy

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
)

// A Tree is a directory with modules in it, as the go command would have put
// them into GOMODCACHE.
type Tree struct {
	dir     string
	missing int
	release func()
}

// Dir is absolute, and the lower directory of an overlay at a build's
// GOMODCACHE: nothing may be written to it, since what lies there is shared.
func (t *Tree) Dir() string { return t.dir }

// Missing is how many of the needs are not there. The build asks its Door for
// them.
func (t *Tree) Missing() int { return t.missing }

// Release ends the use of Dir, which may be deleted from then on. It may be
// called again.
func (t *Tree) Release() { t.release() }

// Tree makes a directory of what is needed, or finds the one that it made
// before. Each module is fetched, checked and extracted once for all Trees, and
// is in a Tree only if it has the hash that the needs say. What cannot be
// fetched, or not without an upstream's password, is left out, and what would
// take more than a quarter of CacheLimit; an error is of this server's own
// disk, or the end of ctx. The caller calls Release.
func (p *Proxy) Tree(ctx context.Context, needs []Module) (*Tree, error) {
	needs = slices.Compact(slices.SortedFunc(slices.Values(needs), Module.compare))
	name := p.viewName(needs)
	h, err := p.heldView(name)
	if err == nil {
		p.metrics.ModulesServed(fromCache, len(needs))
		return &Tree{dir: viewDir(h.dir), release: sync.OnceFunc(func() { h.Close() })}, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	made := false
	v, release, err := p.views.do(ctx, string(name[:]), func(ctx context.Context) (*view, error) {
		made = true
		return p.gather(ctx, needs)
	})
	if err != nil {
		return nil, err
	}
	if !made {
		v = v.again()
	}
	for from, n := range v.served {
		p.metrics.ModulesServed(from, n)
	}
	return &Tree{dir: viewDir(v.dir), missing: v.missing, release: sync.OnceFunc(release)}, nil
}

// A view is the directory of a Tree, held, and what went into it.
type view struct {
	*hold
	missing int
	served  map[string]int // by source
}

// again is v for another who wanted the same.
func (v *view) again() *view {
	served := map[string]int{}
	for from, n := range v.served {
		if from == fromUpstream {
			from = fromCache
		}
		served[from] += n
	}
	return &view{v.hold, v.missing, served}
}

// viewName is the name in the cache of the view of such modules.
func (p *Proxy) viewName(modules []Module) digest {
	h := sha256.New()
	fmt.Fprintf(h, "view\x00%d %d\n", p.uid, p.gid)
	for _, m := range modules {
		fmt.Fprint(h, m.line())
	}
	return digest(h.Sum(nil))
}

// heldView returns fs.ErrNotExist for a view that was made before a loss of
// power: it costs more to check than to make.
func (p *Proxy) heldView(name digest) (*hold, error) {
	h, err := p.cache.hold(name)
	if err == nil && !h.whole {
		h.forget()
		return nil, fs.ErrNotExist
	}
	return h, err
}

// gather makes the view of what can be had of wanted.
func (p *Proxy) gather(ctx context.Context, wanted []Module) (v *view, err error) {
	s, err := p.newStage()
	if err != nil {
		return nil, err
	}
	defer s.remove() // but for what the cache has taken
	g := &gathering{proxy: p, stage: s, served: map[string]int{}, room: p.cache.limit / 4}
	defer g.release()
	if err := parallel(ctx, fetchers, len(wanted), func(ctx context.Context, i int) error { return g.add(ctx, wanted[i]) }); err != nil {
		return nil, err
	}
	slices.SortFunc(g.got, Module.compare)
	v = &view{missing: len(wanted) - len(g.got), served: g.served}
	name := p.viewName(g.got)
	if v.hold, err = p.heldView(name); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return v, err
	}
	if err := parallel(ctx, runtime.GOMAXPROCS(0), len(g.parts), func(ctx context.Context, i int) error { return s.addTree(ctx, g.parts[i]) }); err != nil {
		return nil, err
	}
	v.hold, err = s.keep(name, g.parts)
	return v, err
}

const (
	// fetchers is how many modules one Tree fetches at once.
	fetchers = 16
	// maxFailures is after how many fetches without an answer a Tree takes
	// only what is kept. The build then waits for the rest if it needs it.
	maxFailures = 3
)

// A gathering fetches and extracts what goes into one view.
type gathering struct {
	proxy *Proxy
	stage *stage

	mu       sync.Mutex
	served   map[string]int
	got      []Module
	parts    []part
	room     int64 // bytes that the trees may still take
	full     bool  // one of them was too large
	failures int
}

// A part is an extracted module.
type part struct {
	Module
	*hold
	release func()
}

func (g *gathering) release() {
	for _, part := range g.parts {
		part.release()
	}
}

// add fetches m for the view. An error is of our own disk or ctx.
func (g *gathering) add(ctx context.Context, m Module) error {
	from, err := fromRefused, error(nil)
	q, ok := m.request()
	if sum, ok2 := m.digest(); ok && ok2 && q.kind == kindMod {
		from, err = g.addMod(ctx, m, q)
	} else if ok && ok2 {
		from, err = g.addZip(ctx, m, q, sum)
	}
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, errCache) {
			return err
		}
		from = whence(err)
		g.proxy.log.Debug("module left out of a tree", "module", m.Path+"@"+m.Version, "err", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.served[from]++
	if err == nil && (from == fromCache || from == fromUpstream) {
		g.got = append(g.got, m)
	}
	return nil
}

var (
	// errSum is a module that is not the one that go.sum means.
	errSum = errors.New("not what go.sum says")
	// errRoom is a module for which a view has no room.
	errRoom = errors.New("the modules are too large for this server's cache")
)

// maxTreeMod bounds a go.mod in a view, in bytes. Real ones have some 10,000.
const maxTreeMod = 1 << 20

func (g *gathering) addMod(ctx context.Context, m Module, q request) (from string, err error) {
	file, from, release, err := g.open(ctx, q)
	if err != nil {
		return "", err
	}
	defer release()
	b, err := file.bytes(maxTreeMod)
	if err != nil {
		return "", err
	}
	if sum, err := goModSum(b); err != nil || sum != m.Sum {
		return "", errSum
	}
	return from, g.stage.addMod(q, file.File, b)
}

func (g *gathering) addZip(ctx context.Context, m Module, q request, sum digest) (from string, err error) {
	p := g.proxy
	v := module.Version{Path: q.path, Version: q.version}
	fetched := fromCache // or by another Tree
	h, release, err := p.trees.do(ctx, v.String(), func(ctx context.Context) (*hold, error) {
		h, err := p.heldTree(v)
		if !errors.Is(err, fs.ErrNotExist) {
			return h, err
		}
		file, from, release, err := g.open(ctx, q)
		if err != nil {
			return nil, err
		}
		defer release()
		fetched = from
		return p.unpack(ctx, v, file.File)
	})
	if err != nil {
		return "", err
	}
	if err := g.take(part{m, h, release}, sum); err != nil {
		release()
		return "", err
	}
	return fetched, nil
}

func (g *gathering) take(p part, sum digest) error {
	if p.entry.sum != sum {
		return errSum
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.room < p.entry.size {
		g.full = true
		return errRoom
	}
	g.room -= p.entry.size
	g.parts = append(g.parts, p)
	return nil
}

// open is Proxy.open for files that may be kept, which asks no upstream after
// too many had no answer, nor when the view is full: go.sum is anybody's, and
// nothing else bounds what is fetched for it.
func (g *gathering) open(ctx context.Context, q request) (*answer, string, func(), error) {
	g.mu.Lock()
	down, full := g.failures >= maxFailures, g.full
	g.mu.Unlock()
	if down || full {
		f, err := g.proxy.cache.get(q.name)
		if err != nil && full {
			return nil, "", nil, errRoom
		}
		if err != nil {
			return nil, "", nil, fmt.Errorf("upstream does not answer, and %s is not kept", q.name)
		}
		return &answer{f, true}, fromCache, func() { f.Close() }, nil
	}
	file, from, release, err := g.proxy.open(ctx, q)
	if err == nil && !file.kept {
		release()
		err = errPassword
	}
	if err != nil {
		if whence(err) == fromFailed && !errors.Is(err, errUnverified) {
			g.mu.Lock()
			g.failures++
			g.mu.Unlock()
		}
		return nil, "", nil, err
	}
	return file, from, release, nil
}

// A tree is a module's directory and the .ziphash of the go command's cache.
const (
	treeRoot = "root"
	treeHash = "ziphash"
)

func treeName(v module.Version) digest { return sha256.Sum256([]byte("tree\x00" + v.String())) }

// heldTree is the module as it was extracted before, or fs.ErrNotExist.
func (p *Proxy) heldTree(v module.Version) (*hold, error) {
	h, err := p.cache.hold(treeName(v))
	if err != nil || h.whole {
		return h, err
	}
	sum, err := dirhash.HashDir(filepath.Join(h.dir, treeRoot), v.String(), dirhash.Hash1)
	hash, err2 := os.ReadFile(filepath.Join(h.dir, treeHash))
	if scarce(err) || scarce(err2) { // which says nothing of the tree
		h.Close()
		return nil, cacheError(cmp.Or(err, err2))
	}
	if want := h1(h.entry.sum); err != nil || err2 != nil || sum != want || string(hash) != want {
		h.forget()
		return nil, fs.ErrNotExist
	}
	if err := h.confirm(); err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

// unpack extracts a module into the cache.
func (p *Proxy) unpack(ctx context.Context, v module.Version, file *os.File) (*hold, error) {
	select {
	case p.unpacking <- struct{}{}:
		defer func() { <-p.unpacking }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	temp, err := os.MkdirTemp(p.cache.tempDir(), "tree-")
	if err != nil {
		return nil, cacheError(err)
	}
	defer os.RemoveAll(temp) // but for what the cache has taken
	root := filepath.Join(temp, treeRoot)
	if err := os.Mkdir(root, 0o755); err != nil {
		return nil, cacheError(err)
	}
	sum, size, err := unpack(ctx, v, file, root)
	if err != nil {
		return nil, err
	}
	if err := writeFile(filepath.Join(temp, treeHash), []byte(h1(sum))); err != nil {
		return nil, cacheError(err)
	}
	size += 2 * block
	return p.cache.keep(&entry{area: areaTrees, name: treeName(v), sum: sum, size: size}, temp)
}

// parallel calls do for 0 to n-1, some at once. The first error ends it.
func parallel(ctx context.Context, workers, n int, do func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan int, n)
	for i := range n {
		next <- i
	}
	close(next)
	var wg sync.WaitGroup
	for range min(workers, n) {
		wg.Go(func() {
			for i := range next {
				if ctx.Err() != nil {
					return
				}
				if err := do(ctx, i); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}
