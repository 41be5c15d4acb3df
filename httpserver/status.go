package httpserver

import (
	"fmt"
	"net/http"
	"strings"
)

// health is GET /healthz: the process is alive.
func (s *server) health(w *response, _ call) error {
	return writeJSON(w, http.StatusOK, map[string]bool{"alive": true})
}

// ready is GET /readyz.
func (s *server) ready(w *response, c call) error {
	if pending := s.Ready(c.Context()); len(pending) > 0 {
		return &hintError{
			error: fmt.Errorf("%w: %s", errWaiting, strings.Join(pending, ", ")),
			hint:  hint{NotReady: pending},
		}
	}
	answer := struct {
		Ready bool     `json:"ready"`
		Weak  []string `json:"weak,omitempty"`
	}{Ready: true}
	if s.Weak != nil {
		answer.Weak = s.Weak()
	}
	return writeJSON(w, http.StatusOK, answer)
}

// metrics is GET /metrics.
func (s *server) metrics(w *response, c call) error {
	if s.MetricsHandler == nil {
		return errNoRoute
	}
	s.MetricsHandler.ServeHTTP(w, c.Request)
	return nil
}

// usage is GET /: what a person who found the address wants to know.
func (s *server) usage(w *response, c call) error {
	text := strings.ReplaceAll(usageText, "HOST", c.Host)
	send(w, http.StatusOK, "text/plain; charset=utf-8", []byte(text))
	return nil
}

const usageText = `Cargo builds Go apps: POST the path of a repository, a platform and a version,
and GET the same path a little later to have the binary.

  curl -X POST http://HOST/github.com/rakyll/hey/linux/amd64/v0.1.4?recipe=go
  curl -N http://HOST/builds/BUILD_ID/logs?follow=1
  curl -OJL http://HOST/github.com/rakyll/hey/linux/amd64/v0.1.4?recipe=go

POST   /{remote}/{owner}/{repo}/{GOOS}/{GOARCH}/{version}   build it (?recipe=go, ?rebuild=1)
GET    the same path                                        download it
GET    /builds?state=&after=&limit=                         public builds, newest first
GET    /builds/{id}                                         the record of a build
GET    /builds/{id}/logs?follow=1&offset=N                  its log, one JSON object a line
DELETE /builds/{id}                                         cancel it
GET    /healthz  /readyz  /metrics

A slash in a version is written %2F. For a private repository send
"Authorization: token T" with every request. Where building takes a token of
this server's own, send it as "Cargo-Token: T" with POST and DELETE.
`
