package main

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"github.com/monochromegane/cargo/build"
)

// A parser collects what is wrong.
type parser struct {
	c    *cli.Context
	errs []error

	worker    bool // the command is cargo worker
	arguments bool // the command takes some
}

func (p *parser) fail(format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf(format, args...))
}

func (p *parser) positive(flag string, n int64) int64 {
	if n <= 0 {
		p.fail("--%s %d: want more than zero", flag, n)
	}
	return n
}

func (p *parser) size(flag string) int64 {
	n, err := units.RAMInBytes(p.c.String(flag))
	if err != nil || n <= 0 {
		p.fail("--%s %q: want a size such as 512MiB or 4GiB", flag, p.c.String(flag))
	}
	return n
}

func (p *parser) address(flag string) string {
	a := p.c.String(flag)
	if a == "" && p.worker {
		return ""
	}
	if _, _, err := net.SplitHostPort(a); err != nil {
		p.fail("--%s %q: want host:port, such as 127.0.0.1:8080", flag, a)
	}
	return a
}

// dir is the absolute path that the flag names, or what stands in for it.
func (p *parser) dir(flag, fallback string) string {
	d := p.c.String(flag)
	if d == "" {
		d = fallback
	}
	if d == "" {
		p.fail("--%s is empty: want a path", flag)
		return ""
	}
	abs, err := filepath.Abs(d)
	if err != nil {
		p.fail("--%s %q: %v", flag, d, err)
	}
	return abs
}

// remotes is the allow-list: name to base URL.
func (p *parser) remotes() map[string]string {
	m := map[string]string{}
	for _, r := range p.c.StringSlice("remote") {
		name, base, mapped := strings.Cut(strings.TrimSpace(r), "=")
		if !mapped {
			base = "https://" + name
		}
		probe := build.Repository{Remote: name, Owner: "owner", Name: "repo"}
		if err := probe.Validate(); err != nil {
			p.fail("--remote %q: want a plain lower-case host name, or NAME=BASE_URL", r)
			continue
		}
		u, err := url.Parse(base)
		switch {
		case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "":
			p.fail("--remote %s: want a base URL such as https://%s", name, name)
		case u.User != nil:
			p.fail("--remote %s: a base URL holds no credentials; callers send their own token", name)
		default:
			m[name] = strings.TrimSuffix(base, "/")
		}
	}
	return m
}

// platforms are GOOS/GOARCH pairs, separated by commas; none stands for none.
func (p *parser) platforms(flag string) []platform {
	var all []platform
	for _, list := range p.c.StringSlice(flag) {
		for text := range strings.SplitSeq(list, ",") {
			text = strings.TrimSpace(text)
			if text == "none" || text == "" {
				continue
			}
			goos, goarch, _ := strings.Cut(text, "/")
			if !build.KnownPlatform(goos, goarch) {
				p.fail("--%s %q: want GOOS/GOARCH, such as linux/amd64; `go tool dist list` prints all", flag, text)
				continue
			}
			all = append(all, platform{goos, goarch})
		}
	}
	return all
}

// notNegative is a number of which 0 means no limit.
func (p *parser) notNegative(flag string) int {
	n := p.c.Int(flag)
	if n < 0 {
		p.fail("--%s %d: want zero, for no limit, or more", flag, n)
	}
	return n
}

func (p *parser) duration(flag string) time.Duration {
	d := p.c.Duration(flag)
	if d <= 0 {
		p.fail("--%s %v: want more than zero, such as 720h", flag, d)
	}
	return d
}

func (p *parser) quotas() quotas {
	return quotas{
		cache:    p.size("cache-limit"),
		modules:  p.size("module-cache-limit"),
		storage:  p.size("storage-limit"),
		logBytes: p.size("logs-limit"),
		minFree:  p.size("min-free"),
		logs:     p.duration("log-retention"),
		records:  p.duration("record-retention"),
	}
}

// access also refuses to let the whole network build without being told so.
func (p *parser) access() access {
	a := access{
		tokensFile:   p.c.String("auth-tokens-file"),
		addressRate:  p.notNegative("address-rate"),
		tokenRate:    p.notNegative("token-rate"),
		callerBuilds: p.notNegative("caller-builds"),
	}
	for _, text := range p.c.StringSlice("trusted-proxy") {
		prefix, err := parsePrefix(strings.TrimSpace(text))
		if err != nil {
			p.fail("--trusted-proxy %q: want an address or a range of them, such as 10.0.0.0/8", text)
			continue
		}
		a.trustedProxies = append(a.trustedProxies, prefix)
	}
	if p.worker { // accepts nothing from anybody
		return access{}
	}
	if err := checkOpen(p.c.String("listen"), a.tokensFile, p.c.Bool("open")); err != nil {
		p.errs = append(p.errs, err)
	}
	return a
}

func parsePrefix(text string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		return addr.Prefix(addr.BitLen())
	}
	return netip.ParsePrefix(text)
}
