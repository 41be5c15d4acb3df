package cache_test

import (
	"bufio"
	"context"
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
	"testing/synctest"
	"time"

	"github.com/monochromegane/cargo/cache"
)

// child is what another process does with a cache: the test binary runs itself.
const child = "CARGO_TEST_CACHE_CHILD"

func TestMain(m *testing.M) {
	if what, dir, ok := strings.Cut(os.Getenv(child), " "); ok {
		if err := runChild(what, dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func runChild(what, dir string) error {
	c, err := cache.Open(cache.Options{Dir: dir, Limit: churnLimit})
	if err != nil {
		return err
	}
	switch what {
	case "prune":
		_, err = c.Prune(context.Background(), 0)
	case "churn":
		err = churn(c)
	}
	return err
}

func command(t *testing.T, what, dir string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), child+"="+what+" "+dir)
	return cmd
}

const (
	churnLimit = 4 << 20
	churnNames = 400
)

// churn appends, compacts, leases and prunes until it is killed.
func churn(c *cache.Cache) error {
	ctx := context.Background()
	all := []cache.Class{std, shared, repository("github.com/a/b"), repository("github.com/a/c")}
	t := &testing.T{} // for the helpers, which fail it only where the disk does
	for i := 0; ; i++ {
		dir, err := os.MkdirTemp("", "churn")
		if err != nil {
			return err
		}
		for range 1 + rand.N(20) {
			name := fmt.Sprint(rand.N(churnNames))
			upper(dir).put(t, name, "output of "+name)
		}
		class := all[rand.N(len(all))]
		l, err := c.Lease(class, shared)
		if err != nil {
			return err
		}
		if _, err := c.Append(ctx, class, dir); err != nil {
			return err
		}
		l.Release()
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		if rand.N(10) == 0 {
			if _, err := c.Prune(ctx, rand.N(int64(churnLimit/8))); err != nil {
				return err
			}
		}
		fmt.Println("round", i)
	}
}

func TestKilledAtAnyInstruction(t *testing.T) {
	dir, scratch := t.TempDir(), t.TempDir()
	rounds := 30
	if testing.Short() {
		rounds = 5
	}
	for range rounds {
		cmd := command(t, "churn", dir)
		cmd.Env = append(cmd.Env, "TMPDIR="+scratch)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Once it works, it is killed at some instant of a later round.
		lines := bufio.NewScanner(out)
		for range 1 + rand.N(5) {
			if !lines.Scan() || !strings.HasPrefix(lines.Text(), "round") {
				t.Fatalf("the child said %q", lines.Text())
			}
		}
		timer := time.AfterFunc(rand.N(20*time.Millisecond), func() { _ = cmd.Process.Kill() })
		for lines.Scan() {
			if !strings.HasPrefix(lines.Text(), "round") {
				t.Fatalf("the child said %q", lines.Text())
			}
		}
		_ = cmd.Wait()
		timer.Stop()
		c := open(t, cache.Options{Dir: dir, Limit: churnLimit})
		checkWhole(t, dir)
		checkBytes(t, c, dir)
	}
}

// checkBytes compares what a cache says of its size with the disk.
func checkBytes(t *testing.T, c *cache.Cache, dir string) {
	t.Helper()
	var disk int64
	files, _ := filepath.Glob(filepath.Join(dir, "layers", "*", "*", "*"))
	for _, name := range files {
		info, err := os.Lstat(name)
		if err != nil {
			t.Fatal(err)
		}
		disk += (info.Size() + 4095) / 4096 * 4096
	}
	if got := c.Bytes(); got != disk {
		t.Errorf("the cache counts %d bytes, the disk has %d", got, disk)
	}
	infos, err := c.List()
	if err != nil {
		t.Fatal(err)
	}
	counted := 0
	for _, i := range infos {
		counted += i.Files
	}
	if counted != len(files) {
		t.Errorf("the cache counts %d files, the disk has %d", counted, len(files))
	}
}

func TestLeaseHoldsAgainstAnotherProcess(t *testing.T) {
	dir := t.TempDir()
	c := open(t, cache.Options{Dir: dir})
	build(t, c, std, "fmt")
	build(t, c, shared, "yaml")
	l := lease(t, c, std)
	prune := func() {
		t.Helper()
		if out, err := command(t, "prune", dir).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	prune()
	if !c.Has(std) || c.Has(shared) {
		t.Errorf("after a prune there are %v, want the leased class", classes(t, c))
	}
	if _, ok := get(l.Layers(), "fmt"); !ok {
		t.Error("a leased layer has lost an entry")
	}
	l.Release()
	prune()
	if left := classes(t, c); len(left) > 0 {
		t.Errorf("after the release and a prune there are %v", left)
	}
	checkWhole(t, dir)
}

func TestCompaction(t *testing.T) {
	dir := t.TempDir()
	c := open(t, cache.Options{Dir: dir})
	const builds = 200
	var first *cache.Lease
	longest := 0
	for i := range builds {
		build(t, c, shared, fmt.Sprint(i), "of all")
		if i == 3 {
			first = lease(t, c, shared)
		}
		infos, err := c.List()
		if err != nil {
			t.Fatal(err)
		}
		longest = max(longest, infos[0].Layers)
	}
	if longest > 8 {
		t.Errorf("the list grew to %d layers", longest)
	}
	// A build that began before the layers were merged keeps what it had.
	for i := range 4 {
		if _, ok := get(first.Layers(), fmt.Sprint(i)); !ok {
			t.Errorf("entry %d is gone from a leased layer", i)
		}
	}
	first.Release()
	checkBytes(t, open(t, cache.Options{Dir: dir}), dir)
	checkWhole(t, dir)
	l := lease(t, c, shared)
	for i := range builds {
		if got, ok := get(l.Layers(), fmt.Sprint(i)); !ok || got != fmt.Sprint("output of ", i) {
			t.Errorf("entry %d after compaction: %q, %v", i, got, ok)
		}
	}
	// A large layer at the bottom is left alone.
	var large []string
	for i := range 300 {
		large = append(large, fmt.Sprint("large ", i))
	}
	build(t, c, std, large...)
	bottom := func() string {
		l := lease(t, c, std)
		defer l.Release()
		return l.Layers()[len(l.Layers())-2]
	}
	before := bottom()
	for i := range 40 {
		build(t, c, std, fmt.Sprint("small ", i))
	}
	if bottom() != before {
		t.Error("a large layer was merged for a few files")
	}
}

func TestLeastRecentlyUsedGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const entry = 2 * 4096
		dir := t.TempDir()
		c := open(t, cache.Options{Dir: dir, Limit: 8 * entry})
		wait := func() { time.Sleep(time.Hour) }
		use := func(all ...cache.Class) { lease(t, c, all...).Release(); wait() }
		x, y, z := repository("x"), repository("y"), repository("z")

		build(t, c, std, "fmt")
		wait()
		for _, class := range []cache.Class{x, y, shared, shared, shared, z} {
			build(t, c, class, fmt.Sprint(len(classes(t, c)), time.Now()))
			wait()
		}
		use(x)
		use(std)
		check := func(when string, want ...string) {
			t.Helper()
			got := classes(t, c)
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("%s: %v, want %v", when, got, want)
			}
		}
		layers := func() int { l := lease(t, c, shared); defer l.Release(); return len(l.Layers()) - 1 }
		check("below the limit", "standard", "shared", "repository x", "repository y", "repository z")

		build(t, c, x, "one") // fills the cache
		wait()
		check("at the limit", "standard", "shared", "repository x", "repository y", "repository z")
		build(t, c, repository("w"), "one")
		wait()
		check("y was not used for longest", "standard", "shared", "repository x", "repository z", "repository w")
		if layers() != 3 {
			t.Errorf("%d shared layers, want 3", layers())
		}
		use(z)
		use(shared) // makes its layers no younger
		build(t, c, repository("v"), "one")
		wait()
		check("a shared layer is the oldest thing", "standard", "shared", "repository x", "repository z", "repository w", "repository v")
		if layers() != 2 {
			t.Errorf("%d shared layers, want 2", layers())
		}
		// A repository has a quarter at most, which is two entries here.
		build(t, c, repository("v"), "two")
		build(t, c, repository("v"), "three")
		l := lease(t, c, repository("v"))
		for name, want := range map[string]bool{"one": false, "two": true, "three": true} {
			if _, ok := get(l.Layers(), name); ok != want {
				t.Errorf("%s is there: %v", name, ok)
			}
		}
		l.Release()

		freed, err := c.Prune(t.Context(), 3*entry)
		if err != nil || c.Bytes() > 3*entry {
			t.Errorf("freed %d of %d, %v", freed, c.Bytes(), err)
		}
		if _, err := c.Prune(t.Context(), 0); err != nil || c.Bytes() != 0 {
			t.Errorf("%d bytes left, %v", c.Bytes(), err)
		}
		checkWhole(t, dir)
	})
}

// Repositories, whose code may leave what it likes, have three quarters of the
// room in all: the rest stays with what every build uses.
func TestRepositoriesLeaveRoom(t *testing.T) {
	c := open(t, cache.Options{Dir: t.TempDir(), Limit: 64 * 4096})
	standard := cache.Standard("go1.26.8", linux)
	build(t, c, standard, "fmt", "os")
	build(t, c, shared, "yaml", "cobra")
	for i := range 30 {
		build(t, c, repository(fmt.Sprint("r", i)), fmt.Sprint(i), fmt.Sprint(i, "b"), fmt.Sprint(i, "c"))
	}
	if _, ok := get(lease(t, c, standard).Layers(), "fmt"); !ok {
		t.Error("the standard library is gone")
	}
	if _, ok := get(lease(t, c, shared).Layers(), "yaml"); !ok {
		t.Error("what is shared is gone")
	}
	if _, ok := get(lease(t, c, repository("r29")).Layers(), "29"); !ok {
		t.Error("the newest repository's is gone")
	}
}

func TestLimitHolds(t *testing.T) {
	dir := t.TempDir()
	c := open(t, cache.Options{Dir: dir, Limit: 64 * 4096})
	for i := range 100 {
		build(t, c, shared, fmt.Sprint(i), fmt.Sprint(i, "b"))
		if c.Bytes() > 64*4096 {
			t.Fatalf("%d bytes after %d builds", c.Bytes(), i)
		}
	}
	if _, ok := get(lease(t, c, shared).Layers(), "99"); !ok {
		t.Error("the newest entry is gone")
	}
	if c.Bytes() < 32*4096 {
		t.Errorf("only %d bytes are left", c.Bytes())
	}
}

func TestVerifiedAfterBoot(t *testing.T) {
	tests := []struct {
		name string
		tear func(path string) error
	}{
		{"zeros", func(path string) error { return os.WriteFile(path, make([]byte, len("output of torn")), 0o600) }},
		{"shorter", func(path string) error { return os.Truncate(path, 3) }},
		{"empty", func(path string) error { return os.Truncate(path, 0) }},
		{"gone", os.Remove},
	}
	for _, test := range tests {
		for _, kind := range []string{"a", "d"} {
			t.Run(test.name+" "+kind, func(t *testing.T) {
				o := cache.Options{Dir: t.TempDir()}
				c := open(t, o.InBoot("one"))
				build(t, c, shared, "torn", "good")
				build(t, c, shared, "better")
				l := lease(t, c, shared)
				id := action("torn")
				if kind == "d" {
					id = sum("output of torn")
				}
				path := upper(l.Layers()[1]).path(t, id, kind)
				must(t, os.Chmod(path, 0o600))
				must(t, test.tear(path))
				l.Release()
				c = open(t, o.InBoot("two"))
				l = lease(t, c, shared)
				for name, want := range map[string]bool{"torn": false, "good": true, "better": true} {
					if _, ok := get(l.Layers(), name); ok != want {
						t.Errorf("%s is there: %v", name, ok)
					}
				}
				checkWhole(t, o.Dir)
				checkBytes(t, c, o.Dir)
				// The go command can make the lost entry anew.
				build(t, c, shared, "torn")
				if _, ok := get(lease(t, c, shared).Layers(), "torn"); !ok {
					t.Error("the entry does not come back")
				}
			})
		}
	}
}

func TestVerifiedOnce(t *testing.T) {
	o := cache.Options{Dir: t.TempDir()}
	build(t, open(t, o.InBoot("one")), shared, "fmt")
	lease(t, open(t, o.InBoot("two")), shared).Release()
	l := lease(t, open(t, o.InBoot("two")), shared)
	// What is torn without a boot is not looked for.
	path := upper(l.Layers()[0]).path(t, sum("output of fmt"), "d")
	must(t, os.Chmod(path, 0o600))
	must(t, os.Truncate(path, 1))
	l.Release()
	if l := lease(t, open(t, o.InBoot("two")), shared); len(l.Layers()) != 2 {
		t.Error("the layer was verified again")
	}
	if l := lease(t, open(t, o.InBoot("three")), shared); len(l.Layers()) != 1 {
		t.Error("the layer was not verified")
	}
}

func TestTornListIsDropped(t *testing.T) {
	o := cache.Options{Dir: t.TempDir()}
	c := open(t, o)
	build(t, c, shared, "fmt")
	build(t, c, std, "fmt")
	lists, _ := filepath.Glob(filepath.Join(o.Dir, "classes", "*"))
	if err := os.Truncate(lists[0], 0); err != nil {
		t.Fatal(err)
	}
	c = open(t, o)
	if got := classes(t, c); len(got) != 1 {
		t.Errorf("%v, want one class", got)
	}
	if got := checkWhole(t, o.Dir); got != 1 {
		t.Errorf("%d layers, want 1", got)
	}
}

// An operator may give builds another user id.
func TestLayersFollowTheBuildUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	o := cache.Options{Dir: t.TempDir(), UID: 1000, GID: 1000}
	build(t, open(t, o), shared, "fmt")
	o.UID, o.GID = 2000, 2001
	l := lease(t, open(t, o), shared)
	for _, layer := range l.Layers() {
		err := filepath.WalkDir(layer, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			st := info.Sys().(*syscall.Stat_t)
			mine := st.Uid == 2000 && st.Gid == 2001
			if builds := e.IsDir() || strings.HasSuffix(path, "-a"); builds != mine {
				t.Errorf("%s belongs to %d:%d", path, st.Uid, st.Gid)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := get(l.Layers(), "fmt"); !ok {
		t.Error("the entry is gone")
	}
}

// Builds lease the layers of the class that they append to. Those are evicted
// like others, before what the build adds, and go from the disk when nobody
// uses them any more.
func TestLimitHoldsForWhatIsLeased(t *testing.T) {
	const limit = 64 * 4096
	dir := t.TempDir()
	c := open(t, cache.Options{Dir: dir, Limit: limit})
	for _, class := range []cache.Class{shared, repository("v")} {
		for i := range 40 {
			l := lease(t, c, class)
			build(t, c, class, fmt.Sprint(i), fmt.Sprint(i, "b"))
			if c.Bytes() > limit {
				t.Fatalf("%d bytes after %d builds", c.Bytes(), i)
			}
			for _, layer := range l.Layers() {
				if _, err := os.Stat(layer); err != nil {
					t.Fatalf("a leased layer is gone: %v", err)
				}
			}
			l.Release()
		}
		l := lease(t, c, class)
		if _, ok := get(l.Layers(), "39"); !ok {
			t.Errorf("%s: the newest entry is gone", class)
		}
		l.Release()
	}
	infos, err := c.List()
	listed := 0
	for _, info := range infos {
		listed += info.Layers
	}
	if there := names(t, filepath.Join(dir, "layers")); err != nil || len(there) != listed {
		t.Errorf("%d layers are on the disk, %d in lists, %v", len(there), listed, err)
	}
}
