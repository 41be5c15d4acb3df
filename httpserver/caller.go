package httpserver

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// tokenHeader carries Cargo's own token. Authorization is taken: what it
// carries is for the git host, and never for us.
const tokenHeader = "Cargo-Token"

var (
	errNoToken    = errors.New("this server builds and cancels only for callers whom it knows; send the token that its operator gave you in a header of its own, \"" + tokenHeader + ": TOKEN\" (Authorization is for the git host)")
	errWrongToken = errors.New("the token in the " + tokenHeader + " header is nobody's; its operator gives out others")
)

// Tokens knows the callers who may build and cancel.
type Tokens interface {
	// Caller returns the name of the caller whose token it is.
	Caller(token string) (name string, known bool)
}

// Access says who may build, and how often somebody may ask. Its zero value
// lets everybody do everything.
type Access struct {
	Tokens Tokens // nil: whoever reaches the server may build and cancel

	// AddressRate and TokenRate are for POST and DELETE, of callers without a
	// token and of those with one. What makes us ask a git host is rated too,
	// and may come readRate times as often.
	AddressRate, TokenRate Rate

	// Proxies are the peers whose X-Forwarded-For is believed.
	Proxies []netip.Prefix

	// Secret keys what the queue is told in place of an address, so that it
	// cannot be turned back into one. nil means one that lasts as long as the
	// server: an address whose builds were queued before may then have more.
	Secret []byte
}

// readRate is how many times as often one may read as build: reading a record
// or following a redirect is most of what an honest client does.
const readRate = 10

// A caller is who asks: the holder of a token, else an address.
type caller struct {
	name string       // of the token; "" if there is none, or nobody's
	from netip.Prefix // all zero if there is a name
}

// A gate holds the callers to the rules of Access.
type gate struct {
	Access
	address, token meters
}

// meters are those of one kind of caller.
type meters struct{ build, read *meter }

func newGate(a Access) *gate {
	if a.Secret == nil {
		a.Secret = make([]byte, sha256.Size)
		_, _ = rand.Read(a.Secret) // never fails
	}
	return &gate{
		Access:  a,
		address: meters{build: newMeter(a.AddressRate), read: newMeter(a.AddressRate.times(readRate))},
		token:   meters{build: newMeter(a.TokenRate), read: newMeter(a.TokenRate.times(readRate))},
	}
}

// identify tells who sends r. A token that is nobody's makes its sender an
// address, which may read.
func (g *gate) identify(r *http.Request) caller {
	if token := r.Header.Values(tokenHeader); g.Tokens != nil && len(token) == 1 {
		if name, ok := g.Tokens.Caller(token[0]); ok {
			return caller{name: name}
		}
	}
	return caller{from: network(g.client(r))}
}

// admit lets the call through, or says why not. The rate comes before the
// token, so that guessing tokens has a rate as well.
func (g *gate) admit(c call) error {
	m := g.address
	if c.caller.name != "" {
		m = g.token
	}
	switch {
	case c.Method == http.MethodPost || c.Method == http.MethodDelete:
		if err := m.build.take(c.caller); err != nil {
			return err
		}
		if g.Tokens == nil || c.caller.name != "" {
			return nil
		}
		if len(c.Header.Values(tokenHeader)) == 0 {
			return errNoToken
		}
		return errWrongToken
	case asking[c.route]:
		return m.read.take(c.caller)
	}
	return nil
}

// asking are the routes whose answer may need the git host's.
var asking = map[string]bool{routeTarget: true, routeArchive: true, routeBuilds: true, routeBuild: true, routeLog: true}

// account is c's name in the queue.
func (g *gate) account(c caller) string {
	if c.name != "" {
		return "token:" + c.name
	}
	h := hmac.New(sha256.New, g.Secret)
	_, _ = h.Write([]byte("address of a caller: " + c.from.String())) // so that nothing else made with Secret is equal
	return "address:" + hex.EncodeToString(h.Sum(nil)[:16])
}

// client is the address that r comes from: that of the peer, or, where it is a
// trusted proxy, the one that it says it had r from, and so on. Whatever a
// stranger wrote into X-Forwarded-For stands left of what a proxy added, and
// is not reached.
func (g *gate) client(r *http.Request) netip.Addr {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	at := peer.Addr().Unmap()
	forwarded := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, entry := range slices.Backward(forwarded) {
		if !g.trusted(at) {
			break
		}
		next, err := parseHop(strings.TrimSpace(entry))
		if err != nil {
			break
		}
		at = next
	}
	return at
}

func (g *gate) trusted(a netip.Addr) bool {
	return slices.ContainsFunc(g.Proxies, func(p netip.Prefix) bool { return p.Contains(a) })
}

// parseHop reads an address; some proxies write its port too.
func parseHop(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		var p netip.AddrPort
		p, err = netip.ParseAddrPort(s)
		a = p.Addr()
	}
	return a.Unmap().WithZone(""), err
}

// network is what counts as one address: of IPv6 the 64 bits that a single
// customer has at least.
func network(a netip.Addr) netip.Prefix {
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, _ := a.WithZone("").Prefix(bits) // all who have no address are one
	return p
}
