package s3store_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/artifact/artifacttest"
	"github.com/monochromegane/cargo/artifact/s3store"
	"github.com/monochromegane/cargo/artifact/s3store/s3test"
	"github.com/monochromegane/cargo/build"
)

// What is set up wrongly is said in one sentence, which has no secret in it.
func TestOpenRefused(t *testing.T) {
	server := s3test.Start(t)
	p := newProxy(t, server)
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	secureAddress := strings.TrimPrefix(secure.URL, "https://")
	const hunter2 = "hunter2hunter2"

	says := func(status int, code string, of ...string) func(*http.Request, int) fault {
		return func(r *http.Request, _ int) fault {
			if len(of) > 0 && kind(r) != of[0] {
				return fault{}
			}
			return fault{answer: says(status, code)}
		}
	}
	for _, tc := range []struct {
		name     string
		change   func(*s3store.Options)
		fault    func(*http.Request, int) fault
		sentence string
	}{
		{"no bucket", func(o *s3store.Options) { o.Bucket = "not-there" }, nil, `there is no bucket "not-there" at`},
		{"bucket name", func(o *s3store.Options) { o.Bucket = "No Bucket" }, nil, "is no bucket name"},
		{"prefix", func(o *s3store.Options) { o.Prefix = "/a" }, nil, "prefix"},
		{"scratch", func(o *s3store.Options) { o.Scratch = "" }, nil, "directory"},
		{"access key", func(o *s3store.Options) { o.Credentials = &s3store.Credentials{Access: "nobody", Secret: hunter2} }, nil, "does not know this access key"},
		{"secret key", func(o *s3store.Options) { o.Credentials.Secret = hunter2 }, nil, "the secret key is not that of the access key"},
		{"session token", func(o *s3store.Options) { o.Endpoint = p.endpoint }, says(http.StatusBadRequest, "ExpiredToken"), "AWS_SESSION_TOKEN"},
		{"may not list", func(o *s3store.Options) { o.Endpoint = p.endpoint }, says(http.StatusForbidden, "AccessDenied", "GET list"), "allow s3:ListBucket"},
		{"may not write", func(o *s3store.Options) { o.Endpoint = p.endpoint }, says(http.StatusForbidden, "AccessDenied", "PUT probe"), "s3:PutObject"},
		{"clock", func(o *s3store.Options) { o.Endpoint = p.endpoint }, says(http.StatusForbidden, "RequestTimeTooSkewed"), "NTP"},
		{"region", func(o *s3store.Options) { o.Region = "eu-central-1" }, nil, "add region="},
		{"no TLS", func(o *s3store.Options) { o.Secure = true }, nil, "write endpoint=http://"},
		{"TLS", func(o *s3store.Options) { o.Endpoint = secureAddress }, nil, "write endpoint=https://"},
		{"certificate", func(o *s3store.Options) { o.Endpoint, o.Secure = secureAddress, true }, nil, "certificate"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p.set(tc.fault)
			o := options(t, server)
			o.Patience = 5 * time.Second
			tc.change(&o)
			s, err := s3store.Open(t.Context(), o)
			if s != nil || !errors.Is(err, s3store.ErrSettings) || errors.Is(err, artifact.ErrUnavailable) || !strings.Contains(err.Error(), tc.sentence) {
				t.Errorf("Open = %v, want a sentence with %q", err, tc.sentence)
			}
			if err == nil {
				return
			}
			if strings.ContainsAny(err.Error(), "\n") || strings.Contains(err.Error(), hunter2) || strings.Contains(err.Error(), server.Secret) {
				t.Errorf("Open = %v", err)
			}
			t.Log(err)
		})
	}
	p.set(nil)
	if got := server.Objects(); len(got) > 0 {
		t.Errorf("objects %q after nothing but refusals", got)
	}
}

func TestOpenUnavailable(t *testing.T) {
	server := s3test.Start(t)
	o := options(t, server)
	o.Patience = 300 * time.Millisecond
	server.Kill()
	if _, err := s3store.Open(t.Context(), o); !errors.Is(err, artifact.ErrUnavailable) || errors.Is(err, s3store.ErrSettings) {
		t.Errorf("Open = %v, want ErrUnavailable", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errOfTest)
	if _, err := s3store.Open(ctx, o); !errors.Is(err, errOfTest) {
		t.Errorf("Open under a context that has ended = %v", err)
	}
}

// A permission that is taken away while the store is open is the store's fault,
// not that of who asks.
func TestRefusedLater(t *testing.T) {
	server := s3test.Start(t)
	p := newProxy(t, server)
	o := options(t, server)
	o.Endpoint = p.endpoint
	s := open(t, o)
	p.set(func(*http.Request, int) fault { return fault{answer: says(http.StatusForbidden, "AccessDenied")} })
	_, err := s.Lookup(t.Context(), artifacttest.Key("v1").Slot())
	_, putErr := put(t.Context(), s, meta("v1", build.NewID(), 1), []byte("new"))
	for _, err := range []error{err, putErr} {
		if !errors.Is(err, artifact.ErrUnavailable) || errors.Is(err, artifact.ErrNotFound) || !strings.Contains(err.Error(), "allow s3:ListBucket") {
			t.Errorf("error %v, want ErrUnavailable with a sentence", err)
		}
	}
	if n := len(p.seen()); n > 3 {
		t.Errorf("%d requests: asking again cannot help", n)
	}
}

func TestScratch(t *testing.T) {
	server := s3test.Start(t)
	o := options(t, server)
	if err := os.MkdirAll(o.Scratch, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"archive-123", "README"} {
		if err := os.WriteFile(filepath.Join(o.Scratch, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, o)
	if got := strings.Join(names(t, o.Scratch), " "); got != "README" {
		t.Errorf("after Open: %s", got)
	}
	// Another that is opened while an archive is received takes nothing away.
	_, err := s.Put(t.Context(), meta("v1", build.NewID(), 1), artifact.PutOptions{}, func(w io.Writer) error {
		open(t, o)
		if got := strings.Join(names(t, o.Scratch), " "); got != "README" {
			t.Errorf("while an archive is received: %s", got)
		}
		return artifacttest.Content("hello")(w)
	})
	if err != nil {
		t.Error(err)
	}
	holds(t, server, o, "v1", []byte("hello"))
	if err := os.RemoveAll(o.Scratch); err != nil {
		t.Fatal(err)
	}
	if _, err := put(t.Context(), s, meta("v1", build.NewID(), 1), nil); err == nil {
		t.Error("Put without a scratch directory succeeds")
	}
}

// A store that is only looked at is as it was, and so is this machine.
func TestKeep(t *testing.T) {
	server := s3test.Start(t)
	o := options(t, server)
	o.Scratch, o.Keep = "", true
	s := open(t, o)
	if got := server.Objects(); len(got) > 0 {
		t.Errorf("Open made %q", got)
	}
	o.Scratch, o.Keep = t.TempDir(), false
	if _, err := put(t.Context(), open(t, o), meta("v1", build.NewID(), 1), []byte("hello")); err != nil {
		t.Fatal(err)
	}
	m, err := s.Lookup(t.Context(), meta("v1", build.NewID(), 1).Key.Slot())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context(), m); err != nil {
		t.Error(err)
	}
}

// noCredentials keeps what this machine and its user have from the test, and
// names a file and a role that are the test's own.
func noCredentials(t *testing.T, role http.HandlerFunc) (file string) {
	t.Helper()
	roles := httptest.NewServer(role)
	t.Cleanup(roles.Close)
	file = filepath.Join(t.TempDir(), "credentials")
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "", "AWS_ACCESS_KEY": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_SECRET_KEY": "", "AWS_SESSION_TOKEN": "", "AWS_PROFILE": "",
		"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "", "AWS_WEB_IDENTITY_TOKEN_FILE": "", "AWS_CONTAINER_AUTHORIZATION_TOKEN": "", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "",
		"AWS_SHARED_CREDENTIALS_FILE": file, "AWS_CONFIG_FILE": file + ".config", "HOME": t.TempDir(),
		"AWS_CONTAINER_CREDENTIALS_FULL_URI": roles.URL,
	} {
		t.Setenv(name, value)
	}
	return file
}

func TestCredentials(t *testing.T) {
	server := s3test.Start(t)
	nobody := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }
	open := func(t *testing.T) error {
		t.Helper()
		o := options(t, server)
		o.Credentials = nil
		s, err := s3store.Open(t.Context(), o)
		if err == nil {
			_, err = put(t.Context(), s, meta("v1", build.NewID(), 1), []byte("hello"))
			s.Close()
		}
		return err
	}
	t.Run("none", func(t *testing.T) {
		noCredentials(t, nobody)
		if err := open(t); !errors.Is(err, s3store.ErrSettings) || !strings.Contains(err.Error(), "AWS_ACCESS_KEY_ID") {
			t.Errorf("Open = %v", err)
		}
	})
	t.Run("role that does not answer", func(t *testing.T) {
		release := make(chan struct{})
		noCredentials(t, func(http.ResponseWriter, *http.Request) { <-release })
		start := time.Now()
		err := open(t)
		close(release)
		if took := time.Since(start); !errors.Is(err, s3store.ErrSettings) || took > 9*time.Second {
			t.Errorf("Open = %v after %v", err, took)
		}
	})
	t.Run("environment", func(t *testing.T) {
		noCredentials(t, nobody)
		t.Setenv("AWS_ACCESS_KEY_ID", server.Access)
		t.Setenv("AWS_SECRET_ACCESS_KEY", server.Secret)
		if err := open(t); err != nil {
			t.Error(err)
		}
	})
	t.Run("file", func(t *testing.T) {
		file := noCredentials(t, nobody)
		text := "[default]\naws_access_key_id = " + server.Access + "\naws_secret_access_key = " + server.Secret + "\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := open(t); err != nil {
			t.Error(err)
		}
	})
	t.Run("role", func(t *testing.T) {
		noCredentials(t, func(w http.ResponseWriter, _ *http.Request) {
			_ = json.NewEncoder(w).Encode(map[string]any{
				"AccessKeyID": server.Access, "SecretAccessKey": server.Secret, "Expiration": time.Now().Add(time.Hour),
			})
		})
		if err := open(t); err != nil {
			t.Error(err)
		}
	})
}

func TestSignedURL(t *testing.T) {
	server := s3test.Start(t)
	s := open(t, options(t, server))
	m, err := put(t.Context(), s, meta("v1", build.NewID(), 1), []byte("0123456789"))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := s.SignedURL(t.Context(), m, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	get := func(address, ranges string) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
		if err != nil {
			t.Fatal(err)
		}
		if ranges != "" {
			req.Header.Set("Range", ranges)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(body)
	}
	resp, body := get(signed, "")
	if h := resp.Header; resp.StatusCode != http.StatusOK || body != "0123456789" || h.Get("Content-Type") != "application/gzip" ||
		h.Get("Content-Disposition") != `attachment; filename="app_linux_amd64.tar.gz"` {
		t.Errorf("GET = %d, %q, %v", resp.StatusCode, body, h)
	}
	if resp, body := get(signed, "bytes=3-"); resp.StatusCode != http.StatusPartialContent || body != "3456789" {
		t.Errorf("GET of a range = %d, %q", resp.StatusCode, body)
	}
	u, err := url.Parse(signed)
	if err != nil || u.Query().Get("X-Amz-Expires") != "60" || strings.Contains(signed, server.Secret) {
		t.Errorf("SignedURL = %s, %v", signed, err)
	}
	other := strings.Replace(signed, m.Artifact.SHA256, strings.Repeat("0", 64), 1)
	if resp, _ := get(other, ""); resp.StatusCode != http.StatusForbidden {
		t.Errorf("GET of something else with the same signature = %d", resp.StatusCode)
	}
	if _, err := s.SignedURL(t.Context(), artifact.Meta{Artifact: build.Artifact{SHA256: "../meta/x"}}, time.Minute); !errors.Is(err, artifact.ErrNotFound) {
		t.Errorf("SignedURL of no artifact = %v", err)
	}
}

// Archives that no slot names are told of once they are old enough.
func TestUnused(t *testing.T) {
	server := s3test.Start(t)
	o := options(t, server)
	s := open(t, o)
	old, err := put(t.Context(), s, meta("v1", build.NewID(), 1), []byte("old"))
	if err != nil {
		t.Fatal(err)
	}
	kept, err := put(t.Context(), s, meta("v1", build.NewID(), 1), []byte("kept"))
	if err != nil {
		t.Fatal(err)
	}
	unused := func() (all []build.Artifact) {
		for a, err := range s.Unused(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, a)
		}
		return all
	}
	if got := unused(); len(got) != 0 {
		t.Errorf("unused %v, although they are new", got)
	}
	for _, m := range []artifact.Meta{old, kept} {
		long := time.Now().Add(-2 * time.Hour)
		if err := os.Chtimes(filepath.Join(server.Dir, o.Bucket, o.Prefix, "blobs", m.Artifact.SHA256), long, long); err != nil {
			t.Fatal(err)
		}
	}
	if got := unused(); len(got) != 1 || got[0].SHA256 != old.Artifact.SHA256 || got[0].Size != 3 {
		t.Errorf("unused %v, want %s", got, old.Artifact.SHA256)
	}
}

// A scratch directory that is full is the machine's fault, and is used again
// when it is not.
func TestScratchFull(t *testing.T) {
	server := s3test.Start(t)
	o := options(t, server)
	if err := os.MkdirAll(o.Scratch, 0o700); err != nil {
		t.Fatal(err)
	}
	mount := func(flags uintptr, size string) error {
		return syscall.Mount("cargo-test", o.Scratch, "tmpfs", flags, "size="+size)
	}
	if err := mount(0, "1m"); err != nil {
		if slices.Contains(strings.Split(os.Getenv("CARGO_TEST_REQUIRE"), ","), "loop") { // which mounts, too
			t.Fatal(err)
		}
		t.Skip(err)
	}
	defer func() {
		if err := syscall.Unmount(o.Scratch, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	s := open(t, o)
	content := artifacttest.Random(8, 2<<20)
	if _, err := put(t.Context(), s, meta("v1", build.NewID(), 1), content); !errors.Is(err, artifact.ErrUnavailable) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Put = %v, want ErrUnavailable with %v", err, syscall.ENOSPC)
	}
	if err := mount(syscall.MS_REMOUNT, "4m"); err != nil {
		t.Fatal(err)
	}
	if _, err := put(t.Context(), s, meta("v1", build.NewID(), 1), content); err != nil {
		t.Error(err)
	}
	holds(t, server, o, "v1", content)
}
