package httpserver_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/gitsrc"
	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
	"github.com/monochromegane/cargo/httpserver"
	"github.com/monochromegane/cargo/queue"
)

const (
	target  = "/github.com/o/r/linux/amd64/v1"
	archive = target + "/r_linux_amd64.tar.gz"
)

// The way of the README: POST, 202, build, GET, 303, 200.
func TestFromPostToDownload(t *testing.T) {
	a := newAPI(t)
	_, commit := a.repository("o/r")
	id := a.do(t, "POST", target).submitted(t)

	p := a.do(t, "GET", target).problem(t, http.StatusNotFound)
	if p.BuildID != id || !strings.Contains(p.Detail, "queued") {
		t.Errorf("GET of what is queued says %+v", p)
	}
	other := strings.Replace(target, "amd64", "arm64", 1)
	if p := a.do(t, "GET", other).problem(t, http.StatusNotFound); p.BuildID != "" {
		t.Errorf("GET of another platform says %+v", p)
	}
	b := a.work(t, []byte("the archive"))
	if b.ID != id || b.Commit != commit || b.RefName != "refs/tags/v1" || !b.Public || b.Image != image {
		t.Errorf("queued was %+v", b)
	}

	for _, method := range []string{"GET", "HEAD"} {
		r := a.do(t, method, target)
		if r.code != http.StatusSeeOther || r.header.Get("Location") != archive || r.header.Get("Cache-Control") != "no-cache" {
			t.Errorf("%s = %d, Location %q, Cache-Control %q", method, r.code, r.header.Get("Location"), r.header.Get("Cache-Control"))
		}
	}
	if r := a.do(t, "GET", archive); r.code != http.StatusOK || r.body != "the archive" {
		t.Errorf("GET %s = %d %q", archive, r.code, r.body)
	}

	p = a.do(t, "POST", target).problem(t, http.StatusConflict)
	if p.Download != target || p.BuildID != id {
		t.Errorf("POST of what is built says %+v", p)
	}
	if again := a.do(t, "POST", target+"?rebuild=1").submitted(t); again == id {
		t.Error("rebuild=1 gives the old build")
	}
	a.work(t, nil)

	a.become("sha256:2222")
	if again := a.do(t, "POST", target).submitted(t); again == id {
		t.Error("a new image gives the old build")
	}
	if r := a.do(t, "GET", archive); r.code != http.StatusOK {
		t.Errorf("what an older image built is %d, want 200", r.code)
	}
}

func TestRecipe(t *testing.T) {
	a := newAPI(t)
	a.repository("o/r")
	a.do(t, "POST", target+"?recipe=go").submitted(t)
	if b := a.work(t, []byte("x")); b.Recipe != build.RecipeGo {
		t.Errorf("recipe is %q", b.Recipe)
	}
	if got := a.do(t, "GET", target+"?recipe=go").header.Get("Location"); got != archive+"?recipe=go" {
		t.Errorf("Location is %q", got)
	}
	if r := a.do(t, "GET", archive+"?recipe=go"); r.code != http.StatusOK {
		t.Errorf("GET of the file is %d", r.code)
	}
	if p := a.do(t, "POST", target+"?recipe=go").problem(t, http.StatusConflict); p.Download != target+"?recipe=go" {
		t.Errorf("409 says %+v", p)
	}
	if p := a.do(t, "GET", target).problem(t, http.StatusNotFound); p.Download != target+"?recipe=go" {
		t.Errorf("GET without the recipe says %+v", p)
	}
}

func TestNotBuiltSaysWhatToDo(t *testing.T) {
	a := newAPI(t)
	_, commit := a.repository("o/r")
	for _, path := range []string{target, archive} {
		p := a.do(t, "GET", path).problem(t, http.StatusNotFound)
		if !strings.Contains(p.Detail, "POST") || !strings.Contains(p.Detail, commit) {
			t.Errorf("GET %s says %q", path, p.Detail)
		}
	}
	if n := a.queue.Depth(); n != 0 {
		t.Errorf("GET queued %d builds", n)
	}
}

// A version that moves is another thing to build.
func TestMovedVersion(t *testing.T) {
	a := newAPI(t)
	repo, first := a.repository("o/r")
	branch := strings.Replace(target, "v1", "main", 1)
	a.do(t, "POST", branch).submitted(t)
	a.work(t, []byte("first"))
	if r := a.do(t, "GET", branch); r.code != http.StatusSeeOther {
		t.Fatalf("GET = %d", r.code)
	}
	second := repo.Commit("main", gitsrctest.Files(map[string]string{"go.mod": "module y\n"}))
	p := a.do(t, "GET", branch).problem(t, http.StatusNotFound)
	if !strings.Contains(p.Detail, second) || strings.Contains(p.Detail, first) {
		t.Errorf("GET after a push says %q", p.Detail)
	}
}

func TestNestedOwnerAndSlashInVersion(t *testing.T) {
	a := newAPI(t)
	repo, commit := a.repository("group/sub/r")
	repo.Tag("release/1.2", commit)
	path := "/github.com/group/sub/r/windows/arm64/release%2F1.2"
	a.do(t, "POST", path).submitted(t)
	b := a.work(t, []byte("x"))
	if b.Owner != "group/sub" || b.Version != "release/1.2" || b.RefName != "refs/tags/release/1.2" {
		t.Errorf("queued was %+v", b)
	}
	location := a.do(t, "GET", path).header.Get("Location")
	if location != path+"/r_windows_arm64.tar.gz" {
		t.Errorf("Location is %q", location)
	}
	if r := a.do(t, "GET", location); r.code != http.StatusOK {
		t.Errorf("GET %s = %d", location, r.code)
	}
}

func TestFiftyPostsMakeOneBuild(t *testing.T) {
	a := newAPI(t)
	a.repository("o/r")
	ids := make([]build.ID, 50)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			r := a.do(t, "POST", target)
			ids[i] = build.ID(r.body)
			if r.code != http.StatusAccepted {
				t.Errorf("POST = %d %s", r.code, r.body)
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("two answers: %s and %s", ids[0], id)
		}
	}
	if n := a.queue.Depth(); n != 1 {
		t.Errorf("%d builds are queued", n)
	}
}

func TestQueueFull(t *testing.T) {
	a := newAPI(t)
	a.repository("o/r")
	for _, arch := range []string{"386", "amd64", "arm", "arm64", "mips", "mipsle", "ppc64", "s390x"} { // as many as the queue's limit
		a.do(t, "POST", "/github.com/o/r/linux/"+arch+"/v1").submitted(t)
	}
	p := a.do(t, "POST", "/github.com/o/r/windows/amd64/v1").problem(t, http.StatusServiceUnavailable)
	if !strings.Contains(p.Detail, "queue is full") {
		t.Errorf("a full queue says %q", p.Detail)
	}
}

func TestQueueBroken(t *testing.T) {
	a := newAPI(t, func(o *httpserver.Options) { o.Builds = fullDisk{o.Builds} })
	a.repository("o/r")
	r := a.do(t, "POST", target)
	if p := r.problem(t, http.StatusServiceUnavailable); !strings.Contains(p.Detail, "cannot write to its disk") || r.header.Get("Retry-After") == "" {
		t.Errorf("a queue that cannot be written says %q, %v", p.Detail, r.header)
	}
}

// fullDisk is a queue whose store has failed to write.
type fullDisk struct{ httpserver.Builds }

func (fullDisk) Submit(context.Context, queue.Submission) (build.Build, error) {
	return build.Build{}, fmt.Errorf("submit: %w (no space left on device)", queue.ErrBroken)
}

func TestImageNotReady(t *testing.T) {
	a := newAPI(t)
	a.repository("o/r")
	a.become("", "the builder image", "containerd")
	p := a.do(t, "POST", target).problem(t, http.StatusServiceUnavailable)
	if !strings.Contains(p.Detail, "builder image is being prepared") {
		t.Errorf("POST says %q", p.Detail)
	}
	if p := a.do(t, "GET", "/readyz").problem(t, http.StatusServiceUnavailable); len(p.NotReady) != 2 || p.NotReady[1] != "containerd" {
		t.Errorf("/readyz says %+v", p)
	}
	a.become(image)
	if r := a.do(t, "GET", "/readyz"); r.code != http.StatusOK || r.body != "{\"ready\":true}\n" {
		t.Errorf("/readyz = %d %q", r.code, r.body)
	}
}

// A server that works, but not as safely as it should, says so and is ready.
func TestWeakness(t *testing.T) {
	a := newAPI(t, func(o *httpserver.Options) { o.Weak = func() []string { return []string{"no loop disks here"} } })
	if r := a.do(t, "GET", "/readyz"); r.code != http.StatusOK || r.body != `{"ready":true,"weak":["no loop disks here"]}`+"\n" {
		t.Errorf("/readyz = %d %q", r.code, r.body)
	}
}

func TestBadRequests(t *testing.T) {
	a := newAPI(t)
	a.repository("o/r")
	for _, tc := range []struct {
		method, path, says string
	}{
		{"POST", "/github.com/o/r/linux/amd65/v1", "go tool dist list"},
		{"POST", "/github.com/o/r/linux/amd64/$(id)", "not plain"},
		{"POST", "/github.com/o/r/linux/amd64/-x", "not plain"},
		{"POST", "/github.com/o/r/linux/amd64/v1%00", "not plain"},
		{"POST", "/github.com/o/r/linux/amd64/v1/", "trailing slash"},
		{"GET", "//github.com/o/r/linux/amd64/v1", "doubled"},
		{"GET", "/github.com/../r/linux/amd64/v1", "not a plain"},
		{"GET", "/github.com/%2e%2e/r/linux/amd64/v1", "not a plain"},
		{"GET", "/github.com/o%2Fp/r/linux/amd64/v1", "encoded slash"},
		{"GET", "/GitHub.com/o/r/linux/amd64/v1", "not a plain host"},
		{"GET", "/t0ken@github.com/o/r/linux/amd64/v1", "not a plain host"},
		{"POST", target + "?rebuild=yes", "rebuild=1"},
		{"POST", target + "?recipe=make", "recipe=go"},
		{"POST", target + "?recipe=", "recipe=go"},
		{"POST", target + "?recipe=go&recipe=go", "more than once"},
		{"POST", target + "?token=x", "unknown query parameter"},
		{"POST", target + "?a;b", "name=value"},
		{"GET", target + "?rebuild=1", "unknown query parameter"},
		{"GET", archive + "?v=1", "unknown query parameter"},
		{"GET", "/builds?state=done", "queued"},
		{"GET", "/builds?after=1", "not a build id"},
		{"GET", "/builds?after=" + string(build.NewID()), "not a known build"},
		{"GET", "/builds?limit=0", "from 1 to"},
		{"GET", "/builds?limit=1000", "from 1 to"},
		{"GET", "/builds?page=2", "unknown query parameter"},
	} {
		r := a.do(t, tc.method, tc.path)
		if p := r.problem(t, http.StatusBadRequest); !strings.Contains(p.Detail, tc.says) {
			t.Errorf("%s %s says %q, want something of %q", tc.method, tc.path, p.Detail, tc.says)
		}
	}
}

func TestNoSuchPath(t *testing.T) {
	a := newAPI(t)
	for _, path := range []string{"/favicon.ico", "/builds/x/y", "/github.com/o/r/linux/amd64", "/healthz/x", archive + "x"} {
		a.do(t, "GET", path).problem(t, http.StatusNotFound)
	}
	a.do(t, "GET", "/"+strings.Repeat("a", 5000)).problem(t, http.StatusRequestURITooLong)
}

// A remote that is not allowed, a repository or version that does not exist,
// and one that the caller may not read: the answers are the same to the byte.
func TestNoOracle(t *testing.T) {
	a := newAPI(t)
	a.repository("o/r")
	a.repository("o/private")
	a.host.Protect("o/private", secret)
	for _, method := range []string{"POST", "GET"} {
		var first reply
		for i, tc := range []struct {
			path  string
			token string
		}{
			{path: "/evil.example/o/r/linux/amd64/v1"},
			{path: "/github.com/o/missing/linux/amd64/v1"},
			{path: "/github.com/o/r/linux/amd64/v9"},
			{path: "/github.com/o/private/linux/amd64/v1"},
			{path: "/github.com/o/private/linux/amd64/v1", token: "token wrong"},
			{path: "/github.com/o/private/linux/amd64/v9", token: "token " + secret},
		} {
			var headers []string
			if tc.token != "" {
				headers = []string{"Authorization", tc.token}
			}
			r := a.do(t, method, tc.path, headers...)
			r.problem(t, http.StatusNotFound)
			r.header.Del("Date")
			if i == 0 {
				first = r
			} else if r.body != first.body || !sameHeader(r.header, first.header) {
				t.Errorf("%s %s differs: %s %v, the first was %s %v", method, tc.path, r.body, r.header, first.body, first.header)
			}
		}
	}
}

func sameHeader(a, b http.Header) bool {
	var x, y strings.Builder
	_ = a.Write(&x)
	_ = b.Write(&y)
	return x.String() == y.String()
}

func TestPrivateRepository(t *testing.T) {
	a := newAPI(t)
	a.repository("o/r")
	a.host.Protect("o/r", secret)
	for _, auth := range []string{"token " + secret, "Bearer " + secret} {
		a.do(t, "POST", target, "Authorization", auth).submitted(t)
	}
	claim, err := a.queue.Claim(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(claim.Sealed()) == 0 || strings.Contains(string(claim.Sealed()), secret) {
		t.Errorf("the waiting token is %d bytes, plain %v", len(claim.Sealed()), strings.Contains(string(claim.Sealed()), secret))
	}
	b := a.finish(t, claim, []byte("private"))
	if b.Public {
		t.Error("the build is public")
	}

	me := []string{"Authorization", "token " + secret}
	r := a.do(t, "GET", archive, me...)
	if r.code != http.StatusOK || r.body != "private" || !strings.Contains(r.header.Get("Cache-Control"), "private") {
		t.Errorf("with the token: %d %q, Cache-Control %q", r.code, r.body, r.header.Get("Cache-Control"))
	}
	for _, path := range []string{target, archive} {
		a.do(t, "GET", path).problem(t, http.StatusNotFound)
		a.do(t, "GET", path, "Authorization", "token wrong").problem(t, http.StatusNotFound)
	}
	a.do(t, "GET", target, "Authorization", "Digest x").problem(t, http.StatusUnauthorized)

	unknown := a.do(t, "GET", "/builds/"+string(build.NewID()))
	unknown.problem(t, http.StatusNotFound)
	for _, path := range []string{"/builds/" + string(b.ID), "/builds/" + string(b.ID) + "/logs"} {
		if r := a.do(t, "GET", path, me...); r.code != http.StatusOK {
			t.Errorf("GET %s with the token = %d", path, r.code)
		}
		if r := a.do(t, "GET", path); r.body != unknown.body || r.code != unknown.code {
			t.Errorf("GET %s without the token = %d %s", path, r.code, r.body)
		}
	}
	if r := a.do(t, "DELETE", "/builds/"+string(b.ID)); r.body != unknown.body {
		t.Errorf("DELETE without the token = %d %s", r.code, r.body)
	}
	if r := a.do(t, "GET", "/builds"); strings.Contains(r.body, string(b.ID)) {
		t.Error("the list shows a private build")
	}

	if strings.Contains(a.log.String(), secret) {
		t.Error("the log has the token")
	}
}

// A source that remembers nothing: what is public now counts.
type freshSource struct{ httpserver.Source }

func (s freshSource) Readable(ctx context.Context, r build.Repository, tok gitsrc.Token) (bool, error) {
	ref, err := s.Resolve(ctx, r, "v1", tok, 0)
	return ref.Public, err
}

func TestRepositoryBecomesPrivate(t *testing.T) {
	a := newAPI(t, func(o *httpserver.Options) { o.Source = freshSource{o.Source} })
	a.repository("o/r")
	a.repository("o/other")
	id := a.do(t, "POST", target).submitted(t)
	a.work(t, []byte("x"))
	other := a.do(t, "POST", strings.Replace(target, "/r/", "/other/", 1)).submitted(t)
	record := "/builds/" + string(id)
	if r := a.do(t, "GET", "/builds"); !strings.Contains(r.body, string(id)) || !strings.Contains(r.body, string(other)) {
		t.Errorf("the list of public builds is %s", r.body)
	}
	a.host.Protect("o/r", secret)
	for _, path := range []string{target, archive, record, record + "/logs", record + "/logs?follow=1"} {
		a.do(t, "GET", path).problem(t, http.StatusNotFound)
	}
	a.do(t, "DELETE", record).problem(t, http.StatusNotFound)
	if r := a.do(t, "GET", record, "Authorization", "token "+secret); r.code != http.StatusOK {
		t.Errorf("with a token the record is %d", r.code)
	}
	if r := a.do(t, "GET", "/builds"); strings.Contains(r.body, string(id)) || !strings.Contains(r.body, string(other)) {
		t.Errorf("the list of public builds is %s", r.body)
	}
}

func TestHostDown(t *testing.T) {
	a := newAPI(t, func(o *httpserver.Options) { o.Source = freshSource{o.Source} })
	a.repository("o/r")
	a.repository("o/private")
	a.host.Protect("o/private", secret)
	me := []string{"Authorization", "token " + secret}
	private := strings.Replace(target, "/r/", "/private/", 1)
	public := a.do(t, "POST", target).submitted(t)
	a.work(t, []byte("public"))
	hidden := a.do(t, "POST", private, me...).submitted(t)
	a.work(t, []byte("private"))
	if r := a.do(t, "GET", private, me...); r.code != http.StatusSeeOther {
		t.Fatalf("GET = %d", r.code)
	}

	list := a.do(t, "GET", "/builds").body
	a.host.Fail(http.StatusBadGateway)
	a.do(t, "GET", private, me...).problem(t, http.StatusServiceUnavailable)
	a.do(t, "POST", target).problem(t, http.StatusServiceUnavailable)
	if r := a.do(t, "GET", target); r.code != http.StatusSeeOther {
		t.Errorf("what was public is %d %s, want 303", r.code, r.body)
	}
	if r := a.do(t, "GET", archive); r.code != http.StatusOK || r.body != "public" {
		t.Errorf("the file of what was public is %d %q", r.code, r.body)
	}
	if got := a.do(t, "GET", "/builds").body; got != list {
		t.Errorf("the list is %s, before it was %s", got, list)
	}
	for id, want := range map[build.ID]int{public: http.StatusOK, hidden: http.StatusServiceUnavailable} {
		if r := a.do(t, "GET", "/builds/"+string(id), me...); r.code != want {
			t.Errorf("the record of %s is %d, want %d", id, r.code, want)
		}
	}
}
