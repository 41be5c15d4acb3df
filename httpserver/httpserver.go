// Package httpserver is Cargo's HTTP API: the routes, their handlers and the
// one table that turns errors into statuses. docs/api.md describes it for
// those who call it, docs/openapi.yaml for their programs.
package httpserver

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/gitsrc"
	"github.com/monochromegane/cargo/queue"
)

// Records knows what became of builds; a *queue.Queue is one.
type Records interface {
	// Get returns queue.ErrNotFound for a build that was never accepted.
	Get(ctx context.Context, id build.ID) (build.Build, error)
	List(ctx context.Context, f queue.Filter) (page []build.Build, more bool, err error)
}

// Jobs accepts builds and ends them; a *queue.Queue is one.
type Jobs interface {
	// Submit returns a queued or running build of the same key, if there is
	// one, instead of the one submitted. queue.ErrFull if there is no room,
	// queue.ErrCallerFull if the caller has too many already.
	Submit(ctx context.Context, s queue.Submission) (build.Build, error)
	// Cancel returns queue.ErrEnded for a build that has ended.
	Cancel(ctx context.Context, id build.ID) error
	// Wait returns the record once the build has ended.
	Wait(ctx context.Context, id build.ID) (build.Build, error)
}

// Builds is the queue.
type Builds interface {
	Records
	Jobs
}

// Repositories says what a caller may read; a *gitsrc.Source does. Both
// methods return gitsrc.ErrNotFound for whatever the token cannot read and
// gitsrc.ErrUnavailable where the remote does not answer.
type Repositories interface {
	Resolve(ctx context.Context, r build.Repository, version string, tok gitsrc.Token, maxAge time.Duration) (gitsrc.Ref, error)
	Readable(ctx context.Context, r build.Repository, tok gitsrc.Token) (public bool, err error)
}

// Memory answers for a remote that is unavailable, of what everybody could
// read a while ago; a *gitsrc.Source has one.
type Memory interface {
	ResolveStale(r build.Repository, version string) (gitsrc.Ref, error)
	ReadableStale(r build.Repository) bool
}

// A Sealer encrypts the token that a queued build waits with.
type Sealer interface {
	Seal(tok gitsrc.Token, id build.ID) ([]byte, error)
}

// Source is where code comes from.
type Source interface {
	Repositories
	Memory
	Sealer
}

// Artifacts holds what builds made. Both methods return artifact.ErrNotFound
// for what is not there.
type Artifacts interface {
	Lookup(ctx context.Context, slot string) (artifact.Meta, error)
	// Open returns an *os.File where there is one: the kernel then sends it.
	Open(ctx context.Context, m artifact.Meta) (io.ReadSeekCloser, error)
}

// Logs holds the log of each build, as JSON lines.
type Logs interface {
	// Read copies whole lines from offset on, and returns the offset after
	// them. buildlog.ErrNotFound if the build has logged nothing yet,
	// buildlog.ErrOffset if offset is in the midst of a line.
	Read(ctx context.Context, id build.ID, offset int64, w io.Writer) (next int64, err error)
	// Follow emits each line as it appears, until done is closed and all is read.
	Follow(ctx context.Context, id build.ID, offset int64, done <-chan struct{}, emit func(line []byte, next int64) error) error
}

// Metrics is told what happened. Its methods are called concurrently.
type Metrics interface {
	// RequestEnded: route is one of Routes.
	RequestEnded(route string, code int, d time.Duration)
	ArtifactServed(bytes int64)
}

// Options are what the API serves. All are required but SignedURL, NoImage,
// Access, Metrics, MetricsHandler and Log.
type Options struct {
	Builds    Builds
	Source    Source
	Artifacts Artifacts
	Logs      Logs

	// SignedURL makes a URL of the artifact store from which anybody may take
	// an archive until ttl is over; downloads then go there. nil: they come
	// from here.
	SignedURL func(ctx context.Context, m artifact.Meta, ttl time.Duration) (string, error)

	Image   func() string // digest of the builder image; "" while it is not known
	NoImage string        // why that is, for callers; "" means that it is being prepared

	Ready func(ctx context.Context) []string // names what is not ready; none: everything is
	Weak  func() []string                    // names what works worse than it should; nil for nothing

	Access Access // who may build, and how often

	Metrics        Metrics
	MetricsHandler http.Handler // GET /metrics
	Log            *slog.Logger // nil discards
}

// New returns the API. It accepts any method and path, and may be served with
// whatever read and header limits, but not with a WriteTimeout: every write has
// a deadline of its own, and a log that is followed has no end in sight.
func New(o Options) http.Handler {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &server{Options: o, gate: newGate(o.Access), listings: make(chan struct{}, listingsAtOnce), crossOrigin: http.NewCrossOriginProtection()}
	s.routes = s.table()
	return http.MaxBytesHandler(s, maxBody)
}

// maxBody bounds what is read of a request's body, which no route looks at.
const maxBody = 64 << 10

type server struct {
	Options
	gate        *gate
	listings    chan struct{} // one for each that goes on
	routes      map[string]methods
	crossOrigin *http.CrossOriginProtection
}
