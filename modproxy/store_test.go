package modproxy_test

import (
	"bufio"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/monochromegane/cargo/modproxy"
)

// shelf fills a registry with n modules of some 40 kB.
func shelf(t *testing.T, n int) (g *registry, modules []string) {
	g = newRegistry(t)
	for i := range n {
		path := fmt.Sprintf("example.com/m%02d", i)
		g.add(t, path, "v1.0.0", "", map[string]string{"a.go": strings.Repeat("a", 10_000), "sub/b.go": strings.Repeat("b", 20_000)})
		modules = append(modules, path+"@v1.0.0")
	}
	return g, modules
}

func (g *registry) needs(t *testing.T, modules ...string) []modproxy.Module {
	return needs(t, "module example.org/app\n", g.lines(t, modules...))
}

// onDisk is what du says of a directory: what has two names counts once. The
// directories into which the cache sorts its entries do not count.
func onDisk(t *testing.T, dir string) (bytes int64) {
	t.Helper()
	seen := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && len(d.Name()) == 2 {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		if st := fi.Sys().(*syscall.Stat_t); !seen[st.Ino] {
			seen[st.Ino] = true
			bytes += st.Blocks * 512
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}

func TestLimitIsOfAllThatIsKept(t *testing.T) {
	const limit = 800_000
	g, modules := shelf(t, 30)
	o := g.options(t)
	o.CacheLimit = limit
	p := newProxy(t, o)
	held := tree(t, p, g.needs(t, modules[0], modules[1]))
	for i := 2; i < len(modules); i++ {
		tr := tree(t, p, g.needs(t, modules[i], modules[1]))
		check(t, g, tr.Dir(), modules[1], modules[i])
		tr.Release()
		check(t, g, held.Dir(), modules[0], modules[1])
	}
	if n := onDisk(t, o.Dir); n > limit+20_000 || n < limit/2 {
		t.Errorf("%d bytes on disk, the limit is %d", n, limit)
	}
	dir := held.Dir()
	held.Release()
	held.Release()
	for i := 2; i < len(modules); i++ {
		tree(t, p, g.needs(t, modules[i])).Release()
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("a tree that nobody uses was kept, though others were used after it")
	}
	if n := onDisk(t, o.Dir); n > limit+20_000 {
		t.Errorf("%d bytes on disk, the limit is %d", n, limit)
	}
	tr := tree(t, p, g.needs(t, modules...))
	if tr.Missing() == 0 || tr.Missing() == 2*len(modules) {
		t.Errorf("%d missing where all is more than a quarter of the limit", tr.Missing())
	}
}

// A go.sum of thousands of modules does not have all of them fetched, and what
// others need evicted, for a tree in which they have no room.
func TestTreeThatIsFullFetchesNoMore(t *testing.T) {
	g, modules := shelf(t, 80)
	o := g.options(t)
	o.CacheLimit = 400_000
	tr := tree(t, newProxy(t, o), g.needs(t, modules...))
	zips := 0
	for _, path := range g.asked {
		if strings.HasSuffix(path, ".zip") {
			zips++
		}
	}
	const fit, underWay = 10, 16
	if zips > fit+underWay || tr.Missing() == 0 {
		t.Errorf("%d of %d modules fetched, where about %d have room", zips, len(modules), fit)
	}
}

func TestTreesSurviveARestart(t *testing.T) {
	g, modules := shelf(t, 20)
	o := g.options(t)
	want := g.needs(t, modules[:3]...)
	first := tree(t, newProxy(t, o), want)
	trees, err := filepath.Glob(filepath.Join(o.Dir, "trees/*/*"))
	if err != nil || len(trees) != 3 {
		t.Fatalf("%q, %v", trees, err)
	}
	o.CacheLimit = 800_000
	p := newProxy(t, o)
	again := tree(t, p, want)
	if first.Dir() != again.Dir() {
		t.Errorf("%s, then %s", first.Dir(), again.Dir())
	}
	kept := func() int {
		for _, m := range modules[3:] {
			tree(t, p, g.needs(t, m)).Release()
		}
		return len(slices.DeleteFunc(slices.Clone(trees), func(dir string) bool {
			_, err := os.Stat(dir)
			return err != nil
		}))
	}
	if n := kept(); n != 3 {
		t.Errorf("%d of 3 trees kept: their bytes are there as long as the view that is held, and must count", n)
	}
	again.Release()
	if n := kept(); n != 0 {
		t.Errorf("%d trees kept that nobody uses", n)
	}
}

func TestTreeThatSomebodyDeletedIsMadeAgain(t *testing.T) {
	g, modules := shelf(t, 2)
	o := g.options(t)
	p := newProxy(t, o)
	want := g.needs(t, modules...)
	for _, lost := range []string{"views", "trees", "entries", ""} {
		tree(t, p, want).Release()
		found, err := filepath.Glob(filepath.Join(o.Dir, lost, "*"))
		if err != nil || len(found) == 0 {
			t.Fatalf("%q, %v", found, err)
		}
		for _, dir := range found {
			if filepath.Base(dir) == "tmp" {
				continue
			}
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
		tr := tree(t, p, want)
		if tr.Missing() != 0 {
			t.Errorf("%s: %d missing", lost, tr.Missing())
		}
		check(t, g, tr.Dir(), modules...)
		tr.Release()
	}
}

// A loss of power can leave anything of what was not synced.
func TestTornTreesAreNotUsed(t *testing.T) {
	g, modules := shelf(t, 3)
	want := g.needs(t, modules...)
	for name, tear := range map[string]func(tree, view string) error{
		"nothing":          func(string, string) error { return nil },
		"a file":           func(tree, _ string) error { return os.Truncate(tree+"/root/a.go", 100) },
		"a file is lost":   func(tree, _ string) error { return os.Remove(tree + "/root/sub/b.go") },
		"the hash":         func(tree, _ string) error { return os.Truncate(tree+"/ziphash", 0) },
		"a tree":           func(tree, _ string) error { return os.RemoveAll(tree) },
		"a file of a view": func(_, view string) error { return os.Remove(view + "/mod/example.com/m00@v1.0.0/a.go") },
		"a view's go.mod": func(_, view string) error {
			return os.Truncate(view+"/mod/cache/download/example.com/m00/@v/v1.0.0.mod", 3)
		},
		"a view's contents": func(_, view string) error { return os.Truncate(view+"/trees", 10) },
	} {
		t.Run(name, func(t *testing.T) {
			o := g.options(t)
			o.BootID = "one"
			first := tree(t, newProxy(t, o), want)
			trees, err := filepath.Glob(filepath.Join(o.Dir, "trees/*/*"))
			if err != nil || len(trees) != len(modules) {
				t.Fatalf("%q, %v", trees, err)
			}
			whole, err := os.Stat(filepath.Join(trees[1], "root/a.go"))
			if err != nil {
				t.Fatal(err)
			}
			if err := tear(trees[0], filepath.Dir(first.Dir())); err != nil {
				t.Fatal(err)
			}
			o.BootID = "two"
			for range 2 {
				tr := tree(t, newProxy(t, o), want)
				if tr.Missing() != 0 {
					t.Errorf("%d missing", tr.Missing())
				}
				check(t, g, tr.Dir(), modules...)
				reused := slices.ContainsFunc(modules, func(m string) bool {
					fi, err := os.Stat(filepath.Join(tr.Dir(), m, "a.go"))
					return err == nil && os.SameFile(fi, whole)
				})
				if !reused {
					t.Error("a whole tree was extracted again")
				}
			}
		})
	}
}

// crashEnv tells a process that it is the one to be killed, and where.
const crashEnv = "MODPROXY_TEST_CRASH"

func TestKilledAtAnyPoint(t *testing.T) {
	if os.Getenv(crashEnv) != "" {
		t.Skip("this is the other process")
	}
	g, modules := shelf(t, 12)
	o := g.options(t)
	r := rand.New(rand.NewPCG(1, 2))
	for range 12 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestCrashing$")
		cmd.Env = append(os.Environ(), crashEnv+"="+strings.Join([]string{o.Dir, o.GOPROXY, o.GOSUMDB, g.lines(t, modules...)}, "|"))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "go\n" {
			t.Errorf("%q, %v", line, err)
		}
		time.Sleep(time.Duration(r.IntN(100)) * time.Millisecond) // the point at which it is killed is what varies
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		p := newProxy(t, o)
		if left, _ := filepath.Glob(filepath.Join(o.Dir, "tmp/*")); len(left) != 0 {
			t.Errorf("left behind: %q", left)
		}
		some := slices.Clone(modules)
		r.Shuffle(len(some), func(i, j int) { some[i], some[j] = some[j], some[i] })
		tr := tree(t, p, g.needs(t, some[:3]...))
		if tr.Missing() != 0 {
			t.Errorf("%d missing", tr.Missing())
		}
		check(t, g, tr.Dir(), some[:3]...)
		tr.Release()
	}
}

// TestCrashing makes and evicts trees until it is killed.
func TestCrashing(t *testing.T) {
	if os.Getenv(crashEnv) == "" {
		t.Skip("TestKilledAtAnyPoint runs it")
	}
	set := strings.SplitN(os.Getenv(crashEnv), "|", 4)
	all := needs(t, "module example.org/app\n", set[3])
	p := newProxy(t, modproxy.Options{Dir: set[0], GOPROXY: set[1], GOSUMDB: set[2], CacheLimit: 2_000_000})
	fmt.Println("go")
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		some := slices.Clone(all)
		rand.Shuffle(len(some), func(i, j int) { some[i], some[j] = some[j], some[i] })
		tr, err := p.Tree(t.Context(), some[:len(some)/4])
		if err != nil {
			t.Fatal(err)
		}
		tr.Release()
	}
}
