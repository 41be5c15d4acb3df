package gitsrc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/transport"
	githttp "github.com/go-git/go-git/v5/plumbing/transport/http"

	"github.com/monochromegane/cargo/build"
)

// errRedirected is a redirect to another scheme, host or port.
var errRedirected = errors.New("redirected to another host")

func newTransport() http.RoundTripper {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxResponseHeaderBytes = 64 << 10
	t.MaxIdleConnsPerHost = 8
	return t
}

// connect lists the refs of a repository, and returns the session so that
// objects can be asked for. Its errors are those of Resolve.
func (s *Source) connect(ctx context.Context, repo build.Repository, tok Token) (transport.UploadPackSession, *packp.AdvRefs, error) {
	base, ok := s.remotes[repo.Remote]
	if !ok {
		return nil, nil, ErrNotFound
	}
	if err := repo.Validate(); err != nil { // or its name could lead elsewhere on the host
		return nil, nil, err
	}
	endpoint, err := transport.NewEndpoint(base.JoinPath(repo.Owner, repo.Name+".git").String())
	if err != nil {
		return nil, nil, fmt.Errorf("address of %s: %w", repo, err)
	}
	client := githttp.NewClient(&http.Client{Transport: bounded{next: s.transport, limits: s.limits}})
	var auth transport.AuthMethod // a nil *BasicAuth in it would be an AuthMethod
	if a := tok.auth(); a != nil {
		auth = a
	}
	session, err := client.NewUploadPackSession(endpoint, auth)
	if err != nil {
		return nil, nil, fmt.Errorf("session with %s: %w", repo.Remote, err)
	}
	refs, err := session.AdvertisedReferencesContext(ctx)
	if errors.Is(err, transport.ErrEmptyRemoteRepository) {
		return session, packp.NewAdvRefs(), nil
	}
	if err != nil {
		return nil, nil, s.classify(ctx, repo, err)
	}
	return session, refs, nil
}

// bounded is the way to a git host for one job: it bounds what comes back, and
// lets no redirect lead away from the host that was asked. A renamed
// repository redirects within it.
type bounded struct {
	next   http.RoundTripper
	limits Limits
}

func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := b.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		// go-git would read it all into an error; and it may repeat our token.
		_ = resp.Body.Close()
		resp.Body = http.NoBody
		if to, err := resp.Location(); err == nil && (to.Scheme != req.URL.Scheme || to.Host != req.URL.Host || to.User != nil) {
			return nil, errRedirected
		}
		return resp, nil
	}
	if req.Method == http.MethodGet {
		resp.Body = &boundedBody{resp.Body, b.limits.Refs, refuse("its list of tags and branches is larger than %s", size(b.limits.Refs))}
	} else {
		resp.Body = &boundedBody{resp.Body, b.limits.WireBytes, refuse("more than %s would be downloaded for it (--source-limit)", size(b.limits.WireBytes))}
	}
	return resp, nil
}

// A boundedBody fails with err on the byte after the last allowed one.
type boundedBody struct {
	io.ReadCloser
	left int64
	err  error
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.ReadCloser.Read(p)
	if int64(n) > b.left {
		return int(b.left), b.err
	}
	b.left -= int64(n)
	return n, err
}

// classify turns what went wrong between us and a git host into what a caller
// can act on. The log gets the cause of a refusal, which the caller must not see.
func (s *Source) classify(ctx context.Context, repo build.Repository, err error) error {
	if e, ok := errors.AsType[*plumbing.UnexpectedError](err); ok {
		err = e.Err // it hides what it wraps
	}
	if e, ok := errors.AsType[*RefusedError](err); ok {
		return e
	}
	if ctx.Err() != nil {
		return s.ended(ctx, repo)
	}
	refusal := ""
	switch {
	case errors.Is(err, transport.ErrAuthenticationRequired):
		refusal = "401"
	case errors.Is(err, transport.ErrAuthorizationFailed):
		refusal = "403"
	case errors.Is(err, transport.ErrRepositoryNotFound):
		refusal = "404"
	case errors.Is(err, errRedirected):
		refusal = "redirect to another host"
	default:
		if e, ok := errors.AsType[*githttp.Err](err); ok && final(e.StatusCode()) {
			refusal = fmt.Sprint(e.StatusCode())
		}
	}
	if refusal == "" {
		return &unavailableError{remote: repo.Remote, why: why(err), cause: err}
	}
	s.log.Debug("git host refused", "repo", repo.String(), "answer", refusal)
	return ErrNotFound
}

// final reports whether asking again will not change a status.
func final(status int) bool {
	return status >= 400 && status < 500 && status != http.StatusTooManyRequests && status != http.StatusRequestTimeout
}

// slowError is the cause of a context that ended because of a limit of ours.
type slowError time.Duration

func (e slowError) Error() string {
	return fmt.Sprintf("it took longer than %v", time.Duration(e))
}

// ended is the error of a job whose context has ended: ErrUnavailable where
// that was our own time limit, else its cause.
func (s *Source) ended(ctx context.Context, repo build.Repository) error {
	cause := context.Cause(ctx)
	if slow, ok := errors.AsType[slowError](cause); ok {
		return &unavailableError{remote: repo.Remote, why: slow.Error(), cause: slow}
	}
	return fmt.Errorf("read %s: %w", repo, cause)
}

// An unavailableError is ErrUnavailable with a reason. It says nothing that
// the git host said: that may hold the token.
type unavailableError struct {
	remote, why string
	cause       error
}

func (e *unavailableError) Error() string   { return e.remote + " cannot be read now: " + e.why }
func (e *unavailableError) Unwrap() []error { return []error{ErrUnavailable, e.cause} }

func why(err error) string {
	if e, ok := errors.AsType[*githttp.Err](err); ok {
		return fmt.Sprintf("it answers with status %d", e.StatusCode())
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return "its name does not resolve"
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "its certificate is not trusted"
	}
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return "it does not answer in time"
	}
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		return e.Error()
	}
	return "it broke off, or it does not speak git's smart HTTP protocol"
}

// size writes a number of bytes for people.
func size(n int64) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}
