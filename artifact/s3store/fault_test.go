package s3store_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/artifact/artifacttest"
	"github.com/monochromegane/cargo/artifact/s3store"
	"github.com/monochromegane/cargo/artifact/s3store/s3test"
	"github.com/monochromegane/cargo/build"
)

// holds checks, without the proxy, that a slot holds content whole, and that the
// server has nothing that is not an object.
func holds(t *testing.T, server *s3test.Server, o s3store.Options, version string, content []byte) {
	t.Helper()
	o.Endpoint = server.Endpoint
	s := open(t, o)
	m, err := s.Lookup(t.Context(), artifacttest.Key(version).Slot())
	if err != nil {
		t.Error(err)
		return
	}
	f, err := s.Open(t.Context(), m)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	if got, err := io.ReadAll(f); err != nil || string(got) != string(content) {
		t.Errorf("the slot of %s holds %d bytes, %v, want %d others", version, len(got), err, len(content))
	}
}

// Whatever happens to whichever request of a Put, once: the artifact is stored.
func TestPutSurvivesEveryFault(t *testing.T) {
	faults := map[string]fault{
		"503 SlowDown":     {answer: says(http.StatusServiceUnavailable, "SlowDown")},
		"500 without text": {answer: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }},
		"reset":            {reset: true},
		"half":             {half: true},
		"lost answer":      {lost: true},
		"cut answer":       {cut: true},
		"damaged":          {damaged: true},
	}
	for name, f := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := s3test.Start(t)
			p := newProxy(t, server)
			o := options(t, server)
			o.Endpoint = p.endpoint
			s := open(t, o)
			seed := uint64(0)
			sizes := []int{1000, 17 << 20}           // in one request, in two parts
			if name == "500 without text" || f.cut { // which are much like others
				sizes = sizes[:1]
			}
			for _, size := range sizes {
				for at, more := 0, true; more; at++ {
					seed++
					content := artifacttest.Random(seed, size)
					var hit string
					p.set(func(r *http.Request, n int) fault {
						if n == at && !(f.damaged && r.ContentLength <= 0) {
							hit = kind(r)
							return f
						}
						return fault{}
					})
					version := fmt.Sprint("v", seed)
					_, err := put(t.Context(), s, meta(version, build.NewID(), 1), content)
					more = len(p.seen()) > at
					p.set(nil)
					if err != nil {
						t.Errorf("request %d (%s): %v", at, hit, err)
						continue
					}
					holds(t, server, o, version, content)
					if left := server.Uploads(); len(left) > 0 && !(f.lost || f.cut) {
						t.Errorf("request %d (%s): left behind: %q", at, hit, left)
					}
				}
			}
		})
	}
}

// While the server refuses, nothing is stored; when the patience is over, that is
// what the error says, and what the store held it holds.
func TestPutGivesUp(t *testing.T) {
	for of, size := range map[string]int{
		"HEAD blobs": 1000, "PUT blobs": 1000, "GET meta": 1000, "PUT meta": 1000,
		"POST blobs uploads": 17 << 20, "PUT blobs part": 17 << 20, "POST blobs upload": 17 << 20,
	} {
		t.Run(of, func(t *testing.T) {
			t.Parallel()
			server := s3test.Start(t)
			p := newProxy(t, server)
			o := options(t, server)
			o.Endpoint, o.Patience = p.endpoint, brief
			s := open(t, o)
			old, content := []byte("old"), artifacttest.Random(uint64(size), size)
			if _, err := put(t.Context(), s, meta("v1", build.NewID(), 1), old); err != nil {
				t.Fatal(err)
			}
			p.set(func(r *http.Request, _ int) fault {
				if kind(r) == of {
					return fault{answer: says(http.StatusServiceUnavailable, "SlowDown")}
				}
				return fault{}
			})
			_, err := put(t.Context(), s, meta("v1", build.NewID(), 1), content)
			p.set(nil)
			if !errors.Is(err, artifact.ErrUnavailable) || !strings.Contains(err.Error(), "a fault of the test") && !strings.Contains(err.Error(), "503") {
				t.Errorf("Put = %v, want ErrUnavailable with its cause", err)
			}
			holds(t, server, o, "v1", old)
			if left := server.Uploads(); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
			if _, err := put(t.Context(), s, meta("v1", build.NewID(), 1), content); err != nil {
				t.Error(err)
			}
			holds(t, server, o, "v1", content)
		})
	}
}

// Who goes away while the last request of a Put is under way learns what has
// become of it.
func TestPutCanceledAtTheLastMoment(t *testing.T) {
	server := s3test.Start(t)
	p := newProxy(t, server)
	o := options(t, server)
	o.Endpoint = p.endpoint
	s := open(t, o)
	for _, tc := range []struct {
		name   string
		fault  fault
		stored bool
	}{
		{"it arrives", fault{}, true},
		{"it arrives, the answer does not", fault{lost: true}, true},
		{"it does not arrive", fault{reset: true}, false},
		{"it is refused", fault{answer: says(http.StatusServiceUnavailable, "SlowDown")}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			old, content := artifacttest.Random(1, 100), artifacttest.Random(2, 100)
			version := strings.ReplaceAll(tc.name, " ", "-")
			if _, err := put(t.Context(), s, meta(version, build.NewID(), 1), old); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancelCause(t.Context())
			p.set(func(r *http.Request, _ int) fault {
				if kind(r) == "PUT meta" {
					f := tc.fault
					f.before = func() { cancel(errOfTest) }
					return f
				}
				return fault{}
			})
			_, err := put(ctx, s, meta(version, build.NewID(), 1), content)
			p.set(nil)
			if tc.stored && err != nil || !tc.stored && !errors.Is(err, errOfTest) {
				t.Errorf("Put = %v, stored: %v", err, tc.stored)
			}
			if tc.stored {
				old = content
			}
			holds(t, server, o, version, old)
		})
	}
}

// A server that was paused keeps the connection and says nothing: the request is
// given up for another, and not before that.
func TestReadGoesOn(t *testing.T) {
	server := s3test.Start(t)
	p := newProxy(t, server)
	o := options(t, server)
	o.Endpoint = p.endpoint
	s := open(t, o)
	content := artifacttest.Random(3, 1<<20)
	m, err := put(t.Context(), s, meta("v1", build.NewID(), 1), content)
	if err != nil {
		t.Fatal(err)
	}
	id := build.NewID()
	if err := s.PutLog(t.Context(), id, 1, strings.NewReader(string(content)), int64(len(content))); err != nil {
		t.Fatal(err)
	}
	for name, open := range map[string]func() (io.ReadSeekCloser, error){
		"archive": func() (io.ReadSeekCloser, error) { return s.Open(t.Context(), m) },
		"log":     func() (io.ReadSeekCloser, error) { f, _, err := s.OpenLog(t.Context(), id); return f, err },
	} {
		var breaks atomic.Int32
		p.set(func(r *http.Request, _ int) fault {
			if r.Method == http.MethodGet && breaks.Add(1) <= 4 {
				return fault{cut: true} // each time in the middle of what was left
			}
			return fault{}
		})
		f, err := open()
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(f)
		f.Close()
		if err != nil || string(got) != string(content) || breaks.Load() < 5 {
			t.Errorf("%s: %d bytes, %v, after %d requests", name, len(got), err, breaks.Load())
		}
	}
}

// A log that another attempt replaces is not continued with what that one wrote.
func TestLogReplacedWhileRead(t *testing.T) {
	server := s3test.Start(t)
	p := newProxy(t, server)
	o := options(t, server)
	o.Endpoint = p.endpoint
	s := open(t, o)
	id := build.NewID()
	first, second := strings.Repeat("1", 1<<20), strings.Repeat("2", 1<<20)
	if err := s.PutLog(t.Context(), id, 1, strings.NewReader(first), int64(len(first))); err != nil {
		t.Fatal(err)
	}
	f, _, err := s.OpenLog(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p.set(func(r *http.Request, _ int) fault { return fault{cut: r.Method == http.MethodGet} })
	if _, err := io.ReadFull(f, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	p.set(nil)
	if err := s.PutLog(t.Context(), id, 2, strings.NewReader(second), int64(len(second))); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(f)
	if !errors.Is(err, artifact.ErrNotFound) || strings.Contains(string(rest), "2") {
		t.Errorf("read on: %d bytes, %v", len(rest), err)
	}
}

// A server without conditional writes is said to be one, and used all the same.
func TestWithoutConditions(t *testing.T) {
	server := s3test.Start(t)
	for name, answer := range map[string]func(r *http.Request) fault{
		"refuses them": func(r *http.Request) fault {
			if r.Header.Get("If-Match")+r.Header.Get("If-None-Match") != "" && r.Method != http.MethodGet {
				return fault{answer: says(http.StatusNotImplemented, "NotImplemented")}
			}
			return fault{}
		},
		"ignores them": func(r *http.Request) fault {
			if kind(r) == "PUT probe" {
				return fault{answer: func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("ETag", `"1"`) }}
			}
			return fault{}
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProxy(t, server)
			p.set(func(r *http.Request, _ int) fault { return answer(r) })
			o := options(t, server)
			o.Endpoint, o.Prefix = p.endpoint, string(build.NewID())
			log := &lockedLog{}
			o.Log = log.logger()
			s := open(t, o)
			if !strings.Contains(log.String(), "conditional writes") {
				t.Errorf("the log says %q", log)
			}
			id := build.NewID()
			for _, size := range []int{1000, 17 << 20} {
				content := artifacttest.Random(uint64(size), size)
				m := meta(fmt.Sprint("v", size), id, 2)
				if _, err := put(t.Context(), s, m, content); err != nil {
					t.Error(err)
				}
				m.Attempt = 1
				if _, err := put(t.Context(), s, m, []byte("first")); !errors.Is(err, artifact.ErrSuperseded) {
					t.Errorf("Put of an earlier attempt = %v", err)
				}
				holds(t, server, o, fmt.Sprint("v", size), content)
			}
		})
	}
	if log := (&lockedLog{}); true {
		o := options(t, server)
		o.Log = log.logger()
		open(t, o)
		open(t, o) // the second time something is there
		if log.String() != "" {
			t.Errorf("a server that has them: the log says %q", log)
		}
	}
}

// An upload whose answer came too late is not sent again.
func TestPutFindsWhatIsThere(t *testing.T) {
	server := s3test.Start(t)
	p := newProxy(t, server)
	o := options(t, server)
	o.Endpoint = p.endpoint
	s := open(t, o)
	content := artifacttest.Random(4, 17<<20)
	if _, err := put(t.Context(), s, meta("v1", build.NewID(), 1), content); err != nil {
		t.Fatal(err)
	}
	p.set(nil)
	if _, err := put(t.Context(), s, meta("v2", build.NewID(), 1), content); err != nil {
		t.Fatal(err)
	}
	if seen := p.seen(); slices.Contains(seen, "PUT blobs part") || slices.Contains(seen, "PUT blobs") {
		t.Errorf("requests %q", seen)
	}
}

// A later attempt stores its log between the look of an earlier one and its
// upload, in one request or in parts.
func TestLogSupersededMeanwhile(t *testing.T) {
	server := s3test.Start(t)
	p := newProxy(t, server)
	o := options(t, server)
	direct := open(t, o)
	o.Endpoint = p.endpoint
	s := open(t, o)
	for _, existing := range []bool{false, true} {
		for request, size := range map[string]int{"PUT logs": 100, "POST logs upload": 17 << 20} {
			id := build.NewID()
			log := func(s *s3store.Store, attempt, size int) error {
				text := strings.Repeat(fmt.Sprint(attempt), size)
				return s.PutLog(t.Context(), id, attempt, strings.NewReader(text), int64(size))
			}
			if existing {
				if err := log(direct, 0, 10); err != nil {
					t.Fatal(err)
				}
			}
			var once sync.Once
			p.set(func(r *http.Request, _ int) fault {
				if kind(r) != request {
					return fault{}
				}
				return fault{before: func() {
					once.Do(func() {
						if err := log(direct, 2, 20); err != nil {
							t.Error(err)
						}
					})
				}}
			})
			if err := log(s, 1, size); !errors.Is(err, artifact.ErrSuperseded) {
				t.Errorf("%s: PutLog = %v, want %v", request, err, artifact.ErrSuperseded)
			}
			f, n, err := direct.OpenLog(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
			if n != 20 {
				t.Errorf("%s: the log has %d bytes", request, n)
			}
			if left := server.Uploads(); len(left) > 0 {
				t.Errorf("%s: left behind: %q", request, left)
			}
		}
	}
}
