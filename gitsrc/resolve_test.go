package gitsrc_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/gitsrc"
	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

func TestResolve(t *testing.T) {
	host := gitsrctest.New(t)
	repo := host.Repository("o/app")
	first := repo.Commit("main", files(map[string]string{"f": "1"}))
	second := repo.Commit("main", files(map[string]string{"f": "2"}))
	other := repo.Commit("same", files(map[string]string{"f": "3"}))
	strangers := repo.CommitTree(repo.WriteTree(files(map[string]string{"f": "4"})))
	repo.SetRef("refs/pull/1/head", strangers)
	repo.Annotate("v1", "commit", first)
	repo.Tag("same", second)
	hexName := strings.Repeat("ab", 20)
	repo.SetRef("refs/heads/"+hexName, other)
	tree := repo.WriteTree(files(map[string]string{"f": "5"}))
	repo.SetRef("refs/tags/tree", tree)
	s := newSource(t, host, nil)

	for _, tc := range []struct{ version, name, commit string }{
		{"v1", "refs/tags/v1", first},       // annotated: peeled
		{"main", "refs/heads/main", second}, // a branch
		{"same", "refs/tags/same", second},  // a tag before a branch
		{first, "refs/tags/v1", first},      // the tip of an annotated tag
		{second, "refs/tags/same", second},  // of a tag before that of a branch
		{strings.ToUpper(second), "refs/tags/same", second},
		{hexName, "refs/heads/" + hexName, other}, // a name before an id
	} {
		got, err := s.Resolve(t.Context(), app, tc.version, gitsrc.Token{}, 0)
		if want := (gitsrc.Ref{Name: tc.name, Commit: tc.commit, Public: true}); err != nil || got != want {
			t.Errorf("Resolve(%s) = %+v, %v; want %+v", tc.version, got, err, want)
		}
	}
	for _, version := range []string{
		strangers,                // listed, but neither tag nor branch
		repo.Ref("refs/tags/v1"), // a tag object
		first[:12], "HEAD", "tags/v1", "refs/tags/v1", "none", strings.Repeat("0", 40), "",
	} {
		if ref, err := s.Resolve(t.Context(), app, version, gitsrc.Token{}, 0); err != gitsrc.ErrNotFound {
			t.Errorf("Resolve(%q) = %+v, %v; want ErrNotFound", version, ref, err)
		}
	}
	ref, err := s.Resolve(t.Context(), app, "tree", gitsrc.Token{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	_, err = s.Fetch(t.Context(), app, ref, gitsrc.Token{}, dir)
	wantRefused(t, err, "refs/tags/tree does not point to a commit")
	wantEmpty(t, dir)
}

// A name that is not plain does not reach the host.
func TestNamesThatAreNotPlain(t *testing.T) {
	host := gitsrctest.New(t)
	s := newSource(t, host, nil)
	for _, name := range []string{"..", "../x", "a b", "a?b", "a%2fb", "x.git", ""} {
		repo := build.Repository{Remote: remote, Owner: "o", Name: name}
		if _, err := s.Resolve(t.Context(), repo, "main", gitsrc.Token{}, 0); !errors.Is(err, build.ErrInvalid) {
			t.Errorf("Resolve(%s) = %v, want ErrInvalid", repo, err)
		}
		if _, err := s.Fetch(t.Context(), repo, gitsrc.Ref{}, gitsrc.Token{}, t.TempDir()); !errors.Is(err, build.ErrInvalid) {
			t.Errorf("Fetch(%s) = %v, want ErrInvalid", repo, err)
		}
	}
	if got := host.Requests(); len(got) > 0 {
		t.Errorf("requests: %v", got)
	}
}

// The four cases of not found are one error with one text.
func TestNotFoundIsOneError(t *testing.T) {
	host := gitsrctest.New(t)
	host.Repository("o/app").Commit("main", files(map[string]string{"f": "1"}))
	host.Repository("o/private").Commit("main", files(map[string]string{"f": "1"}))
	host.Repository("o/empty")
	host.Protect("o/private", "right")
	s := newSource(t, host, nil)
	for _, repo := range []build.Repository{
		{Remote: "other.test", Owner: "o", Name: "app"},
		{Remote: remote, Owner: "o", Name: "missing"},
		{Remote: remote, Owner: "o", Name: "private"},
		{Remote: remote, Owner: "o", Name: "empty"},
		{Remote: remote, Owner: "o", Name: "app"}, // without that version
	} {
		for _, header := range []string{"", "token wrong"} {
			if _, err := s.Resolve(t.Context(), repo, "none", token(t, header), 0); err != gitsrc.ErrNotFound {
				t.Errorf("Resolve(%s) with %q = %v, want ErrNotFound as it is", repo, header, err)
			}
			ref := gitsrc.Ref{Name: "refs/tags/none", Commit: strings.Repeat("1", 40)}
			dir := t.TempDir()
			_, err := s.Fetch(t.Context(), repo, ref, token(t, header), dir)
			if readable := repo.Name == "app" && repo.Remote == remote || repo.Name == "empty"; readable && err != gitsrc.ErrMoved || !readable && err != gitsrc.ErrNotFound {
				t.Errorf("Fetch(%s) with %q = %v", repo, header, err)
			}
			wantEmpty(t, dir)
		}
	}
}

func TestToken(t *testing.T) {
	host := gitsrctest.New(t)
	commit := host.Repository("o/app").Commit("main", files(map[string]string{"f": "1"}))
	host.Protect("o/app", "s3cret")
	for _, tc := range []struct{ header, user, secret string }{
		{"token s3cret", "x-access-token", "s3cret"},
		{"Bearer s3cret", "x-access-token", "s3cret"},
		{"bAsIc bWU6czNjcmV0", "me", "s3cret"}, // me:s3cret
	} {
		s := newSource(t, host, nil)
		before := len(host.Requests())
		tok := token(t, tc.header)
		ref, err := s.Resolve(t.Context(), app, "main", tok, 0)
		if want := (gitsrc.Ref{Name: "refs/heads/main", Commit: commit}); err != nil || ref != want {
			t.Errorf("Resolve with %s = %+v, %v; want %+v", tc.header, ref, err, want)
		}
		if _, err := s.Fetch(t.Context(), app, ref, tok, t.TempDir()); err != nil {
			t.Errorf("Fetch with %s = %v", tc.header, err)
		}
		got := host.Requests()[before:]
		if len(got) != 4 { // anonymous, with the token, and the two of Fetch
			t.Fatalf("%d requests: %v", len(got), got)
		}
		if got[0].Secret != "" {
			t.Error("the first question was not anonymous")
		}
		for _, r := range got[1:] {
			if r.User != tc.user || r.Secret != tc.secret {
				t.Errorf("%s: sent %q:%q, want Basic %s:%s", tc.header, r.User, r.Secret, tc.user, tc.secret)
			}
		}
	}
}

// A repository that everybody can read is public, whatever came along; and
// what was public is fetched as everybody, or not at all.
func TestPublicNeedsNoToken(t *testing.T) {
	host := gitsrctest.New(t)
	host.Repository("o/app").Commit("main", files(map[string]string{"f": "1"}))
	s := newSource(t, host, nil)
	tok := token(t, "token T")
	ref, err := s.Resolve(t.Context(), app, "main", tok, 0)
	if err != nil || !ref.Public {
		t.Fatalf("Resolve = %+v, %v; want it public", ref, err)
	}
	if public, err := s.Readable(t.Context(), app, tok); err != nil || !public {
		t.Errorf("Readable = %v, %v", public, err)
	}
	host.Protect("o/app", "T")
	if _, err := s.Fetch(t.Context(), app, ref, tok, t.TempDir()); err != gitsrc.ErrNotFound {
		t.Errorf("Fetch of what is private now = %v, want ErrNotFound", err)
	}
	for _, r := range host.Requests() {
		if r.Secret != "" {
			t.Errorf("the token was sent: %v", r)
		}
	}
}

func TestHostErrors(t *testing.T) {
	host := gitsrctest.New(t)
	host.Repository("o/app").Commit("main", files(map[string]string{"f": "1"}))
	s := newSource(t, host, nil)
	ref, err := s.Resolve(t.Context(), app, "main", gitsrc.Token{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	check := func(t *testing.T, want error) {
		t.Helper()
		if _, err := s.Resolve(t.Context(), app, "main", gitsrc.Token{}, 0); !errors.Is(err, want) {
			t.Errorf("Resolve = %v, want %v", err, want)
		}
		dir := t.TempDir()
		if _, err := s.Fetch(t.Context(), app, ref, gitsrc.Token{}, dir); !errors.Is(err, want) {
			t.Errorf("Fetch = %v, want %v", err, want)
		}
		wantEmpty(t, dir)
	}
	for status, want := range map[int]error{
		401: gitsrc.ErrNotFound, 403: gitsrc.ErrNotFound, 404: gitsrc.ErrNotFound, 410: gitsrc.ErrNotFound, 451: gitsrc.ErrNotFound,
		408: gitsrc.ErrUnavailable, 429: gitsrc.ErrUnavailable, 500: gitsrc.ErrUnavailable, 502: gitsrc.ErrUnavailable, 503: gitsrc.ErrUnavailable,
	} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			host.Fail(status)
			defer host.Fail(0)
			check(t, want)
		})
	}
	for name, answer := range map[string]string{
		"html":      "<!DOCTYPE html><title>Sign in</title>",
		"nothing":   "",
		"truncated": "001e# service=git-upload-pack\n0000015",
	} {
		t.Run(name, func(t *testing.T) {
			host.Intercept(func(w http.ResponseWriter, _ *http.Request) bool {
				_, _ = w.Write([]byte(answer))
				return true
			})
			defer host.Intercept(nil)
			check(t, gitsrc.ErrUnavailable)
		})
	}
	t.Run("breaks off", func(t *testing.T) {
		host.Intercept(func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) })
		defer host.Intercept(nil)
		check(t, gitsrc.ErrUnavailable)
	})
	t.Run("gone", func(t *testing.T) {
		host.Stop()
		check(t, gitsrc.ErrUnavailable)
		_, err := s.Resolve(t.Context(), app, "main", gitsrc.Token{}, 0)
		if want := "git.test cannot be read now: connection refused"; err == nil || err.Error() != want {
			t.Errorf("Resolve = %q, want %q", err, want)
		}
	})
}

func TestRedirects(t *testing.T) {
	elsewhere := gitsrctest.New(t)
	elsewhere.Repository("o/app").Commit("main", files(map[string]string{"f": "1"}))
	host := gitsrctest.New(t)
	host.Repository("o/new").Commit("main", files(map[string]string{"f": "1"}))
	host.Protect("o/new", "T")
	tok := token(t, "token T")

	for name, target := range map[string]string{
		"other port":   elsewhere.URL,
		"other host":   strings.Replace(elsewhere.URL, "127.0.0.1", "127.0.0.2", 1),
		"other scheme": strings.Replace(host.URL, "http:", "https:", 1),
		"file":         "file:///tmp",
	} {
		t.Run(name, func(t *testing.T) {
			host.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
				http.Redirect(w, r, target+r.URL.RequestURI(), http.StatusFound)
				return true
			})
			defer host.Intercept(nil)
			s := newSource(t, host, nil)
			if _, err := s.Resolve(t.Context(), app, "main", tok, 0); err != gitsrc.ErrNotFound {
				t.Errorf("Resolve = %v, want ErrNotFound", err)
			}
		})
	}
	if got := elsewhere.Requests(); len(got) > 0 {
		t.Errorf("the other host was asked: %v", got)
	}

	t.Run("renamed", func(t *testing.T) {
		host.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasPrefix(r.URL.Path, "/o/app.git/") {
				http.Redirect(w, r, strings.Replace(r.URL.RequestURI(), "/o/app.git", "/o/new.git", 1), http.StatusMovedPermanently)
				return true
			}
			return false
		})
		defer host.Intercept(nil)
		s := newSource(t, host, nil)
		ref, err := s.Resolve(t.Context(), app, "main", tok, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Fetch(t.Context(), app, ref, tok, t.TempDir()); err != nil {
			t.Errorf("Fetch = %v", err)
		}
	})
}

// What a host says beside a refusal is not read: it may never end.
func TestEndlessRefusal(t *testing.T) {
	host := gitsrctest.New(t)
	host.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(http.StatusNotFound)
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				break
			}
		}
		return true
	})
	if _, err := newSource(t, host, nil).Resolve(t.Context(), app, "main", gitsrc.Token{}, 0); err != gitsrc.ErrNotFound {
		t.Errorf("Resolve = %v, want ErrNotFound", err)
	}
}

// A ref whose name git would not accept is not there.
func TestHostileRefNames(t *testing.T) {
	host := gitsrctest.New(t)
	commit := strings.Repeat("ab", 20)
	for _, name := range []string{"../config", "a/../../b", ".hidden", "a.lock", "a/.b", "a//b", "a/", "a.", "a..b", "a@{0}", "a~1", "a\x7f"} {
		host.Intercept(func(w http.ResponseWriter, _ *http.Request) bool {
			first := commit + " refs/tags/" + name + "\x00shallow\n"
			_, _ = fmt.Fprintf(w, "001e# service=git-upload-pack\n0000%04x%s0000", len(first)+4, first)
			return true
		})
		for _, version := range []string{name, commit} {
			if ref, err := newSource(t, host, nil).Resolve(t.Context(), app, version, gitsrc.Token{}, 0); err != gitsrc.ErrNotFound {
				t.Errorf("Resolve(%q) = %+v, %v; want ErrNotFound", version, ref, err)
			}
		}
	}
}

func TestRefLimit(t *testing.T) {
	host := gitsrctest.New(t)
	repo := host.Repository("o/app")
	commit := repo.Commit("main", files(map[string]string{"f": "1"}))
	for i := range 40 {
		repo.Tag(fmt.Sprintf("%s%d", strings.Repeat("v", 100), i), commit)
	}
	s := newSource(t, host, func(o *gitsrc.Options) { o.Limits.Refs = 4 << 10 })
	_, err := s.Resolve(t.Context(), app, "main", gitsrc.Token{}, 0)
	wantRefused(t, err, "its list of tags and branches is larger than 4 KiB")
}

// manyRefs is as large as the listing of moby.
func TestManyRefs(t *testing.T) {
	host := gitsrctest.New(t)
	repo := host.Repository("o/app")
	commit := repo.Commit("main", files(map[string]string{"f": "1"}))
	var packed strings.Builder
	for i := range 35_000 {
		fmt.Fprintf(&packed, "%s refs/tags/v%05d\n", commit, i)
	}
	if err := os.WriteFile(filepath.Join(repo.Dir, "packed-refs"), []byte(packed.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	s := newSource(t, host, nil)
	for range 3 {
		ref, err := s.Resolve(t.Context(), app, "v34999", gitsrc.Token{}, time.Minute)
		if err != nil || ref.Commit != commit {
			t.Fatalf("Resolve = %+v, %v", ref, err)
		}
	}
	if got := len(host.Requests()); got != 1 {
		t.Errorf("%d requests, want 1", got)
	}
}

// direct reaches a host without a connection, so that time can stand still.
type direct struct{ http.Handler }

func (d direct) RoundTrip(r *http.Request) (*http.Response, error) {
	rec := httptest.NewRecorder()
	d.ServeHTTP(rec, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	resp := rec.Result()
	resp.Request = r
	return resp, nil
}

// inBubble runs f where time is fake, with a host of one repository that needs
// the token "right", or none.
func inBubble(t *testing.T, protected bool, f func(t *testing.T, host *gitsrctest.Host, s *gitsrc.Source)) {
	host := gitsrctest.New(t) // its goroutines wait for a network, outside
	host.Repository("o/app").Commit("main", files(map[string]string{"f": "1"}))
	if protected {
		host.Protect("o/app", "right")
	}
	synctest.Test(t, func(t *testing.T) {
		f(t, host, newSource(t, host, func(o *gitsrc.Options) { o.Transport = direct{host} }))
	})
}

func TestAccessIsCached(t *testing.T) {
	right, wrong := token(t, "token right"), token(t, "token wrong")
	inBubble(t, true, func(t *testing.T, host *gitsrctest.Host, s *gitsrc.Source) {
		asked := 0
		ask := func(tok gitsrc.Token, want error, requests int) {
			t.Helper()
			public, err := s.Readable(t.Context(), app, tok)
			if err != want || public {
				t.Errorf("Readable = %v, %v; want false, %v", public, err, want)
			}
			if got := len(host.Requests()); got-asked != requests {
				t.Errorf("%d requests, want %d", got-asked, requests)
			}
			asked = len(host.Requests())
		}
		ask(right, nil, 2) // anonymous, then with the token
		ask(right, nil, 0)
		ask(wrong, gitsrc.ErrNotFound, 1) // that it is not public is known
		ask(wrong, gitsrc.ErrNotFound, 0)
		ask(gitsrc.Token{}, gitsrc.ErrNotFound, 0)

		time.Sleep(5 * time.Second)
		ask(right, nil, 0)
		ask(gitsrc.Token{}, gitsrc.ErrNotFound, 1)
		ask(wrong, gitsrc.ErrNotFound, 1)

		host.Protect("o/app", "changed")
		time.Sleep(54 * time.Second)
		ask(right, nil, 0)
		time.Sleep(time.Second)
		ask(right, gitsrc.ErrNotFound, 2)
	})
}

func TestResolveMaxAge(t *testing.T) {
	inBubble(t, false, func(t *testing.T, host *gitsrctest.Host, s *gitsrc.Source) {
		for i, tc := range []struct {
			wait, maxAge time.Duration
			want         int // requests so far
		}{
			{0, 10 * time.Second, 1},
			{9 * time.Second, 10 * time.Second, 1},
			{0, 0, 2},
			{20 * time.Second, 10 * time.Second, 3},
			{59 * time.Second, time.Hour, 3},
			{time.Second, time.Hour, 4}, // a minute is the most
		} {
			time.Sleep(tc.wait)
			if _, err := s.Resolve(t.Context(), app, "main", gitsrc.Token{}, tc.maxAge); err != nil {
				t.Fatal(err)
			}
			if got := len(host.Requests()); got != tc.want {
				t.Errorf("%d: %d requests, want %d", i, got, tc.want)
			}
		}
	})
}

func TestStale(t *testing.T) {
	inBubble(t, false, func(t *testing.T, host *gitsrctest.Host, s *gitsrc.Source) {
		if _, err := s.ResolveStale(app, "main"); err != gitsrc.ErrNotFound || s.ReadableStale(app) {
			t.Errorf("ResolveStale of nothing = %v", err)
		}
		ref, err := s.Resolve(t.Context(), app, "main", gitsrc.Token{}, 0)
		if err != nil {
			t.Fatal(err)
		}
		host.Fail(503)
		time.Sleep(59 * time.Minute)
		if _, err := s.Resolve(t.Context(), app, "main", gitsrc.Token{}, time.Minute); !errors.Is(err, gitsrc.ErrUnavailable) {
			t.Errorf("Resolve = %v, want ErrUnavailable", err)
		}
		if got, err := s.ResolveStale(app, "main"); err != nil || got != ref || !s.ReadableStale(app) {
			t.Errorf("ResolveStale = %+v, %v; want %+v", got, err, ref)
		}
		if _, err := s.ResolveStale(app, "none"); err != gitsrc.ErrNotFound {
			t.Errorf("ResolveStale of no version = %v", err)
		}
		time.Sleep(time.Minute)
		if _, err := s.ResolveStale(app, "main"); err != gitsrc.ErrNotFound || s.ReadableStale(app) {
			t.Errorf("ResolveStale after an hour = %v", err)
		}
	})
}

// What was public and is not any more is not served from memory.
func TestStaleEndsWithARefusal(t *testing.T) {
	inBubble(t, false, func(t *testing.T, host *gitsrctest.Host, s *gitsrc.Source) {
		if _, err := s.Readable(t.Context(), app, gitsrc.Token{}); err != nil {
			t.Fatal(err)
		}
		host.Protect("o/app", "right")
		time.Sleep(time.Minute)
		if _, err := s.Readable(t.Context(), app, gitsrc.Token{}); err != gitsrc.ErrNotFound {
			t.Fatalf("Readable = %v", err)
		}
		host.Fail(503)
		if _, err := s.ResolveStale(app, "main"); err != gitsrc.ErrNotFound || s.ReadableStale(app) {
			t.Errorf("ResolveStale = %v, want ErrNotFound", err)
		}
	})
}

func TestPrivateIsNeverStale(t *testing.T) {
	right := token(t, "token right")
	inBubble(t, true, func(t *testing.T, host *gitsrctest.Host, s *gitsrc.Source) {
		if _, err := s.Resolve(t.Context(), app, "main", right, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := s.ResolveStale(app, "main"); err != gitsrc.ErrNotFound || s.ReadableStale(app) {
			t.Errorf("ResolveStale = %v, want ErrNotFound", err)
		}
	})
}

func TestEqualQuestionsAreOne(t *testing.T) {
	right, wrong := token(t, "token right"), token(t, "token wrong")
	inBubble(t, true, func(t *testing.T, host *gitsrctest.Host, s *gitsrc.Source) {
		host.Delay(time.Second)
		gone, leave := context.WithCancelCause(t.Context())
		cause := errors.New("the client went away")
		var wg sync.WaitGroup
		wg.Go(func() { // asks first, and leaves
			if _, err := s.Resolve(gone, app, "main", right, 0); !errors.Is(err, cause) {
				t.Errorf("Resolve = %v, want %v", err, cause)
			}
		})
		synctest.Wait()
		for range 50 {
			wg.Go(func() {
				if _, err := s.Resolve(t.Context(), app, "main", right, 0); err != nil {
					t.Errorf("Resolve = %v", err)
				}
			})
		}
		wg.Go(func() {
			if _, err := s.Resolve(t.Context(), app, "main", wrong, 0); err != gitsrc.ErrNotFound {
				t.Errorf("Resolve with another token = %v, want ErrNotFound", err)
			}
		})
		synctest.Wait()
		leave(cause)
		wg.Wait()
		if got := len(host.Requests()); got != 3 { // anonymous, right, wrong
			t.Errorf("%d requests, want 3: %v", got, host.Requests())
		}
	})
}

// When nobody waits for an answer, the question ends too: no goroutine stays
// in the bubble.
func TestLastCallerEndsTheQuestion(t *testing.T) {
	inBubble(t, false, func(t *testing.T, host *gitsrctest.Host, s *gitsrc.Source) {
		host.Delay(time.Hour)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		if _, err := s.Resolve(ctx, app, "main", gitsrc.Token{}, 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Resolve = %v", err)
		}
		if took := time.Since(begin); took != time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

func TestSlowListing(t *testing.T) {
	inBubble(t, false, func(t *testing.T, host *gitsrctest.Host, s *gitsrc.Source) {
		host.Delay(time.Hour)
		_, err := s.Resolve(t.Context(), app, "main", gitsrc.Token{}, 0)
		if want := "git.test cannot be read now: it took longer than 30s"; !errors.Is(err, gitsrc.ErrUnavailable) || err.Error() != want {
			t.Errorf("Resolve = %v, want %s", err, want)
		}
	})
}
