package httpserver_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/monochromegane/cargo/build"
)

// A record is what the API says of a build.
type record struct {
	build.Build
	Links struct{ Self, Logs, Download string }
}

func (r reply) json(t *testing.T, into any) {
	t.Helper()
	if r.code != http.StatusOK || r.header.Get("Content-Type") != "application/json" {
		t.Fatalf("code %d, %s: %s", r.code, r.header.Get("Content-Type"), r.body)
	}
	if err := json.Unmarshal([]byte(r.body), into); err != nil {
		t.Fatal(err)
	}
}

func TestRecord(t *testing.T) {
	a := newAPI(t)
	_, commit := a.repository("o/r")
	id := a.do(t, "POST", target).submitted(t)
	self := "/builds/" + string(id)

	var got record
	a.do(t, "GET", self).json(t, &got)
	if got.ID != id || got.State != build.Queued || got.Commit != commit || got.AcceptedAt.IsZero() || got.Links.Download != "" {
		t.Errorf("queued: %+v", got)
	}
	if got.Links.Self != self || got.Links.Logs != self+"/logs" {
		t.Errorf("links: %+v", got.Links)
	}
	a.work(t, []byte("x"))
	r := a.do(t, "GET", self)
	r.json(t, &got)
	if got.State != build.Succeeded || got.Artifact == nil || got.Links.Download != archive {
		t.Errorf("succeeded: %+v", got)
	}
	if r := a.do(t, "GET", got.Links.Download); r.code != http.StatusOK {
		t.Errorf("GET of the download link = %d", r.code)
	}
	if h := a.do(t, "HEAD", self); h.code != http.StatusOK || h.body != "" || h.header.Get("Content-Length") != r.header.Get("Content-Length") {
		t.Errorf("HEAD = %d %q, Content-Length %s", h.code, h.body, h.header.Get("Content-Length"))
	}
}

func TestUnknownBuilds(t *testing.T) {
	a := newAPI(t)
	var first reply
	for i, id := range []string{string(build.NewID()), "x", strings.Repeat("0", 33), "%2e%2e", strings.Repeat("A", 32)} {
		for _, suffix := range []string{"", "/logs"} {
			r := a.do(t, "GET", "/builds/"+id+suffix)
			r.problem(t, http.StatusNotFound)
			if i == 0 && suffix == "" {
				first = r
			} else if r.body != first.body {
				t.Errorf("GET of build %q says %s, the first was %s", id, r.body, first.body)
			}
		}
		if r := a.do(t, "DELETE", "/builds/"+id); r.body != first.body {
			t.Errorf("DELETE of build %q says %s", id, r.body)
		}
	}
}

func TestList(t *testing.T) {
	a := newAPI(t)
	a.repository("o/r")
	a.repository("o/private")
	a.host.Protect("o/private", secret)
	var ids []build.ID // newest first
	post := func(path string, headers ...string) build.ID {
		return a.do(t, "POST", path, headers...).submitted(t)
	}
	ids = append(ids, post(target))
	a.work(t, []byte("x"))
	post(strings.Replace(target, "/r/", "/private/", 1), "Authorization", "token "+secret)
	a.work(t, []byte("x"))
	for _, arch := range []string{"386", "arm64"} {
		ids = append([]build.ID{post("/github.com/o/r/linux/" + arch + "/v1")}, ids...)
	}

	type list struct {
		Builds []record
		Next   build.ID
	}
	var got []build.ID
	next := ""
	for range ids {
		var page list
		a.do(t, "GET", "/builds?limit=1"+next).json(t, &page)
		for _, b := range page.Builds {
			got = append(got, b.ID)
		}
		if (page.Next == "") != (len(got) == len(ids)) {
			t.Errorf("after %d builds next is %q", len(got), page.Next)
		}
		next = "&after=" + string(page.Next)
	}
	if len(got) != len(ids) || got[0] != ids[0] || got[1] != ids[1] || got[2] != ids[2] {
		t.Errorf("page by page the list is %v, want %v", got, ids)
	}
	var queued list
	a.do(t, "GET", "/builds?state=queued").json(t, &queued)
	if len(queued.Builds) != 2 || queued.Builds[0].State != build.Queued || queued.Builds[0].Links.Self == "" {
		t.Errorf("queued are %+v", queued)
	}
	if r := a.do(t, "GET", "/builds?state=canceled"); r.body != "{\"builds\":[]}\n" {
		t.Errorf("an empty list is %q", r.body)
	}
}

func TestCancel(t *testing.T) {
	a := newAPI(t)
	a.repository("o/r")
	id := a.do(t, "POST", target).submitted(t)
	path := "/builds/" + string(id)
	if got := a.do(t, "DELETE", path).submitted(t); got != id {
		t.Errorf("DELETE answers with build %s", got)
	}
	var got record
	a.do(t, "GET", path).json(t, &got)
	if got.State != build.Canceled {
		t.Errorf("state is %s", got.State)
	}
	a.do(t, "DELETE", path).problem(t, http.StatusConflict)

	id = a.do(t, "POST", target).submitted(t)
	claim, err := a.queue.Claim(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a.do(t, "DELETE", "/builds/"+string(id)).submitted(t)
	<-claim.Context().Done()
}
