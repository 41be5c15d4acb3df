package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
)

// ask sends a request with Cargo's own token, "" for none, and returns the
// status and the body.
func (s *server) ask(method, path, token string) reply {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Cargo-Token", token)
	}
	return s.send(req)
}

// Only those in the file may build and cancel, from the moment on at which the
// file says so.
func TestTokensFile(t *testing.T) {
	const anna, otto = "anna-0123456789abcdef", "otto-0123456789abcdef"
	engines(t, func(t *testing.T, engine string) {
		host := gitsrctest.New(t)
		host.Repository("me/slow").Commit("main", gitsrctest.Files(makes("sleep 60")))
		file := filepath.Join(t.TempDir(), "tokens")
		write := func(lines string) {
			t.Helper()
			if err := os.WriteFile(file, []byte(lines), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("anna " + anna + "\n")
		data := t.TempDir()
		s := newServer(t, engine, data, host, "--auth-tokens-file", file)
		const path = "/git.test/me/slow/linux/amd64/main"
		want := func(method, path, token string, status int) reply {
			t.Helper()
			r := s.ask(method, path, token)
			if r.StatusCode != status {
				t.Errorf("%s %s = %s %s, want %d", method, path, r.Status, r.body, status)
			}
			return r
		}
		for _, token := range []string{"", otto} {
			if r := want(http.MethodPost, path, token, http.StatusUnauthorized); r.Header.Get("WWW-Authenticate") == "" {
				t.Error("WWW-Authenticate is missing")
			}
		}
		id := accepted(t, want(http.MethodPost, path, anna, http.StatusAccepted))
		want(http.MethodGet, "/builds/"+string(id), "", http.StatusOK)
		want(http.MethodDelete, "/builds/"+string(id), "", http.StatusUnauthorized)

		write("otto " + otto + "\n")
		until(t, "otto may build", func() bool { return s.ask(http.MethodPost, path, otto).StatusCode == http.StatusAccepted })
		want(http.MethodDelete, "/builds/"+string(id), anna, http.StatusUnauthorized)
		write("otto\n") // changes nothing
		until(t, "the server says that the file is broken", func() bool {
			want(http.MethodPost, path, otto, http.StatusAccepted)
			return strings.Contains(s.stderr.String(), "line 1: want NAME TOKEN")
		})
		want(http.MethodDelete, "/builds/"+string(id), otto, http.StatusAccepted)
		s.want(id, "", build.Canceled, "")
		s.stop()
		for _, token := range []string{anna, otto} {
			wantInNoFile(t, data, token)
			if strings.Contains(s.stderr.String(), token) {
				t.Error("a token is in the server's log")
			}
		}
	})
}

// Who asks too often, or has too much under way, is told when to come again.
func TestRates(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		host := gitsrctest.New(t)
		path := func(i int) string { return fmt.Sprintf("/git.test/me/slow%d/linux/amd64/main", i) }
		for i := range 3 {
			host.Repository(fmt.Sprintf("me/slow%d", i)).Commit("main", gitsrctest.Files(makes("sleep 60")))
		}
		s := newServer(t, engine, t.TempDir(), host, "--caller-builds", "2", "--address-rate", "4")
		for i := range 2 {
			s.post(path(i), "")
		}
		for _, says := range []string{"builds", "builds", "requests"} { // and the rate is used up
			r := s.do(http.MethodPost, path(2), "")
			after, err := strconv.Atoi(r.Header.Get("Retry-After"))
			if r.StatusCode != http.StatusTooManyRequests || err != nil || after < 1 || !strings.Contains(string(r.body), says) {
				t.Errorf("POST = %s %s, Retry-After %q; want 429 for too many %s", r.Status, r.body, r.Header.Get("Retry-After"), says)
			}
		}
	})
}

// One owner's many builds do not keep another's one waiting.
func TestTurnsBetweenOwners(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		host := gitsrctest.New(t)
		s := newServer(t, engine, t.TempDir(), host, "--concurrency", "1")
		submit := func(name string) build.ID {
			t.Helper()
			host.Repository(name).Commit("main", gitsrctest.Files(makes("sleep 0.3; echo x > out.txt")))
			return s.post("/git.test/"+name+"/linux/amd64/main", "")
		}
		var many []build.ID
		for i := range 10 {
			many = append(many, submit(fmt.Sprintf("busy/app%d", i)))
		}
		one, _ := s.want(submit("other/app"), "", build.Succeeded, "")
		before := 0 // of the busy owner's builds since the other one was accepted
		for _, id := range many {
			if b := s.record(id, ""); !b.StartedAt.IsZero() && b.StartedAt.After(one.AcceptedAt) && b.StartedAt.Before(one.StartedAt) {
				before++
			}
		}
		if before > 2 {
			t.Errorf("%d builds of another owner started before it", before)
		}
	})
}

// An address that others reach wants to be told who may build.
func TestOpenAddress(t *testing.T) {
	for _, args := range [][]string{{"--listen", "0.0.0.0:0"}, {"--listen", ":0"}, {"--listen", "[::]:0"}} {
		var out, said strings.Builder
		code := run(t.Context(), slices.Concat([]string{"cargo", "serve", "--data-dir", t.TempDir()}, args), &out, &said)
		if code != exitUsage || strings.Count(said.String(), "\n") != 1 || !strings.Contains(said.String(), "--auth-tokens-file") || !strings.Contains(said.String(), "--open") {
			t.Errorf("%q: exit status %d: %s", args, code, said.String())
		}
	}
}
