package httpserver

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/gitsrc"
)

// The routes, as docs/openapi.yaml writes them.
const (
	routeUsage   = "/"
	routeHealth  = "/healthz"
	routeReady   = "/readyz"
	routeMetrics = "/metrics"
	routeBuilds  = "/builds"
	routeBuild   = "/builds/{id}"
	routeLog     = "/builds/{id}/logs"
	routeTarget  = "/{remote}/{owner}/{repo}/{GOOS}/{GOARCH}/{version}"
	routeArchive = "/{remote}/{owner}/{repo}/{GOOS}/{GOARCH}/{version}/{archive}"
	routeOther   = "other"
)

// Routes are the values of the metric label route: every route there is, and
// "other" for a path that is none.
var Routes = []string{
	routeUsage, routeHealth, routeReady, routeMetrics, routeBuilds, routeBuild, routeLog, routeTarget, routeArchive, routeOther,
}

// methods are the handlers of one route. That of GET answers HEAD too.
type methods map[string]func(w *response, c call) error

// A call is a request that has found its route.
type call struct {
	*http.Request
	route  string
	caller caller
	id     build.ID     // of routeBuild and routeLog; perhaps not valid
	target build.Target // of routeTarget and routeArchive; valid, without recipe
}

func (s *server) table() map[string]methods {
	return map[string]methods{
		routeUsage:   {"GET": s.usage},
		routeHealth:  {"GET": s.health},
		routeReady:   {"GET": s.ready},
		routeMetrics: {"GET": s.metrics},
		routeBuilds:  {"GET": s.listBuilds},
		routeBuild:   {"GET": s.getBuild, "DELETE": s.cancelBuild},
		routeLog:     {"GET": s.getLog},
		routeTarget:  {"GET": s.findArchive, "POST": s.submit},
		routeArchive: {"GET": s.getArchive},
	}
}

var (
	errNoRoute     = errors.New("there is nothing at this path; GET / says what there is")
	errPathTooLong = errors.New("the path is too long")
	errMethod      = errors.New("method not allowed")
	errCrossOrigin = errors.New("a page of another site may not ask for this")
)

// maxPath is longer than the path of any valid target.
const maxPath = 4 << 10

// find tells which route r is for. The call has a route even if there is an
// error. The path is taken apart as it was sent: [http.ServeMux] would answer
// an unusual one with a redirect instead of a sentence.
func find(r *http.Request) (call, error) {
	c := call{Request: r, route: routeOther}
	segments, err := split(r.URL.EscapedPath())
	if err != nil {
		return c, err
	}
	n := len(segments)
	switch {
	case n == 0:
		c.route = routeUsage
	case n == 1:
		if path := "/" + segments[0]; path == routeHealth || path == routeReady || path == routeMetrics || path == routeBuilds {
			c.route = path
		}
	case segments[0] == "builds" && n == 2:
		c.route, c.id = routeBuild, build.ID(segments[1])
	case segments[0] == "builds" && n == 3 && segments[2] == "logs":
		c.route, c.id = routeLog, build.ID(segments[1])
	case n >= minTarget:
		return c, c.aim(segments)
	}
	if c.route == routeOther {
		return c, errNoRoute
	}
	return c, nil
}

func (c *call) aim(segments []string) error {
	t, archive, err := parseTarget(segments)
	if err != nil {
		return err
	}
	c.target, c.route = t, routeTarget
	if archive {
		c.route = routeArchive
	}
	return nil
}

// handler is what answers the call.
func (s *server) handler(w *response, c call) (func(*response, call) error, error) {
	m := s.routes[c.route]
	method := c.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	if h, ok := m[method]; ok {
		if err := s.crossOrigin.Check(c.Request); err != nil {
			return nil, errCrossOrigin
		}
		return h, nil
	}
	allowed := slices.Collect(maps.Keys(m))
	if m["GET"] != nil {
		allowed = append(allowed, http.MethodHead)
	}
	slices.Sort(allowed)
	allow := strings.Join(allowed, ", ")
	w.Header().Set("Allow", allow)
	return nil, fmt.Errorf("%w: this path answers %s", errMethod, allow)
}

// token is the credential that the caller brought, zero if none.
func (c call) token() (gitsrc.Token, error) {
	values := c.Header.Values("Authorization")
	if len(values) == 0 {
		return gitsrc.Token{}, nil
	}
	if len(values) > 1 {
		return gitsrc.Token{}, gitsrc.ErrBadAuthorization
	}
	return gitsrc.ParseAuthorization(values[0])
}

// query reads the parameters of the call; each may come once, and only those known.
func (c call) query(known ...string) (url.Values, error) {
	q, err := url.ParseQuery(c.URL.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("%w: the query is not of the form name=value&name=value", build.ErrInvalid)
	}
	for name, values := range q {
		if !slices.Contains(known, name) {
			if len(known) == 0 {
				return nil, fmt.Errorf("%w: unknown query parameter %q; there is none here", build.ErrInvalid, name)
			}
			return nil, fmt.Errorf("%w: unknown query parameter %q; there is %s", build.ErrInvalid, name, strings.Join(known, ", "))
		}
		if len(values) > 1 {
			return nil, fmt.Errorf("%w: query parameter %s comes more than once", build.ErrInvalid, name)
		}
	}
	return q, nil
}

// flag reads a parameter whose only value is 1.
func flag(q url.Values, name string) (bool, error) {
	if !q.Has(name) {
		return false, nil
	}
	if v := q.Get(name); v != "1" {
		return false, fmt.Errorf("%w: %s is %q; leave it out or say %s=1", build.ErrInvalid, name, v, name)
	}
	return true, nil
}
