package s3store_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/artifact/artifacttest"
	"github.com/monochromegane/cargo/artifact/s3store/s3test"
	"github.com/monochromegane/cargo/build"
)

// brief is a patience that is soon over, but long enough for a busy machine.
const brief = 4 * time.Second

// uploading waits until the server has files of an upload in parts.
func uploading(t *testing.T, server *s3test.Server, files int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); len(server.Uploads()) < files; {
		if time.Now().After(deadline) {
			t.Fatal("no upload has begun")
		}
		time.Sleep(time.Millisecond)
	}
}

// whole checks that the server has these objects and nothing else.
func whole(t *testing.T, server *s3test.Server, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := server.Objects(); !slices.Equal(got, want) {
		t.Errorf("objects %q, want %q", got, want)
	}
}

// The server dies in the middle of an upload, and comes back.
func TestServerKilledInAnUpload(t *testing.T) {
	server := s3test.Start(t)
	o := options(t, server)
	s := open(t, o)
	old := []byte("old")
	before, err := put(t.Context(), s, meta("v1", build.NewID(), 1), old)
	if err != nil {
		t.Fatal(err)
	}
	content := artifacttest.Random(5, 200<<20)
	var stored artifact.Meta
	var wg sync.WaitGroup
	wg.Go(func() {
		var err error
		if stored, err = put(t.Context(), s, meta("v1", build.NewID(), 1), content); err != nil {
			t.Error(err)
		}
	})
	for _, parts := range []int{4, 8} {
		uploading(t, server, parts)
		server.Kill()
		whole(t, server, o.Prefix+"/probe", o.Prefix+"/blobs/"+before.Artifact.SHA256, o.Prefix+"/meta/"+before.Key.Slot()+".json")
		server.Restart()
		holds(t, server, o, "v1", old)
	}
	wg.Wait()
	holds(t, server, o, "v1", content)
	if left := server.Uploads(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	whole(t, server, o.Prefix+"/probe", o.Prefix+"/blobs/"+before.Artifact.SHA256, o.Prefix+"/blobs/"+stored.Artifact.SHA256, o.Prefix+"/meta/"+before.Key.Slot()+".json")
	if left := names(t, o.Scratch); len(left) > 0 {
		t.Errorf("left in the scratch directory: %q", left)
	}
}

// The server dies and stays away: Put ends, and what could not be taken back is
// removed when the store is opened a day later.
func TestServerGone(t *testing.T) {
	server := s3test.Start(t)
	o := options(t, server)
	o.Patience = brief
	s := open(t, o)
	old := []byte("old")
	if _, err := put(t.Context(), s, meta("v1", build.NewID(), 1), old); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error)
	go func() {
		_, err := put(t.Context(), s, meta("v1", build.NewID(), 1), artifacttest.Random(6, 100<<20))
		failed <- err
	}()
	uploading(t, server, 2)
	server.Kill()
	if err := <-failed; !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("Put = %v, want ErrUnavailable", err)
	}
	_, err := s.Lookup(t.Context(), artifacttest.Key("v1").Slot())
	if !errors.Is(err, artifact.ErrUnavailable) || errors.Is(err, artifact.ErrNotFound) {
		t.Errorf("Lookup = %v, want ErrUnavailable", err)
	}
	server.Restart()
	holds(t, server, o, "v1", old) // with the same Store as before, too:
	if _, err := s.Lookup(t.Context(), artifacttest.Key("v1").Slot()); err != nil {
		t.Error(err)
	}
	if len(server.Uploads()) == 0 {
		t.Error("nothing is left of an upload that was cut off, which this test is about")
	}
	for _, name := range server.Uploads() {
		long := time.Now().Add(-25 * time.Hour)
		dir := name[:strings.LastIndex(name, "/")]
		if err := errors.Join(os.Chtimes(name, long, long), os.Chtimes(dir, long, long)); err != nil {
			t.Fatal(err)
		}
	}
	// That of a living one stays.
	alive, err := minio.Core{Client: raw(t, server)}.NewMultipartUpload(t.Context(), o.Bucket, o.Prefix+"/blobs/"+strings.Repeat("a", 64), minio.PutObjectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	log := &lockedLog{}
	o.Log = log.logger()
	open(t, o)
	for u := range raw(t, server).ListIncompleteUploads(t.Context(), o.Bucket, "", true) {
		if u.Err != nil || u.UploadID != alive {
			t.Errorf("left: %+v", u)
		}
	}
	if !strings.Contains(log.String(), "uploads=1") {
		t.Errorf("the log says %q", log)
	}
}

// Who uploads goes away: nothing of the upload stays, not even what a server
// keeps that has been told to forget it.
func TestUploadCanceled(t *testing.T) {
	server := s3test.Start(t)
	p := newProxy(t, server)
	o := options(t, server)
	o.Endpoint = p.endpoint
	s := open(t, o)
	ctx, cancel := context.WithCancelCause(t.Context())
	aborts := 0
	p.set(func(r *http.Request, _ int) fault {
		switch {
		case kind(r) == "PUT blobs part" && r.URL.Query().Get("partNumber") != "1":
			return fault{hang: true}
		case r.Method == http.MethodDelete:
			if aborts++; aborts == 1 {
				return fault{answer: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }}
			}
		}
		return fault{}
	})
	failed := make(chan error)
	go func() {
		_, err := put(ctx, s, meta("v1", build.NewID(), 1), artifacttest.Random(7, 40<<20))
		failed <- err
	}()
	uploading(t, server, 1)
	cancel(errOfTest)
	if err := <-failed; !errors.Is(err, errOfTest) || errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("Put = %v, want %v", err, errOfTest)
	}
	if left := server.Uploads(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	whole(t, server, o.Prefix+"/probe")
}

// A server that is paused holds nobody up for longer than was agreed, and what
// waits for it goes on when it does.
func TestServerPaused(t *testing.T) {
	server := s3test.Start(t)
	o := options(t, server)
	s := open(t, o)
	m, err := put(t.Context(), s, meta("v1", build.NewID(), 1), []byte("old"))
	if err != nil {
		t.Fatal(err)
	}
	o.Patience = brief
	hasty := open(t, o)
	server.Pause()
	start := time.Now()
	if _, err := hasty.Lookup(t.Context(), m.Key.Slot()); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("Lookup = %v, want ErrUnavailable", err)
	}
	if _, err := put(t.Context(), hasty, meta("v1", build.NewID(), 1), []byte("brief")); !errors.Is(err, artifact.ErrUnavailable) {
		t.Errorf("Put = %v, want ErrUnavailable", err)
	}
	if took := time.Since(start); took > 10*brief {
		t.Errorf("both took %v", took)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := put(t.Context(), s, meta("v1", build.NewID(), 1), []byte("new")); err != nil {
			t.Error(err)
		}
	})
	server.Resume()
	wg.Wait()
	holds(t, server, o, "v1", []byte("new"))
}

// Two processes on two connections, each with many attempts of builds of one
// slot: what is there at last is whole and of the last attempt of its build.
func TestRaceWithFaults(t *testing.T) {
	server := s3test.Start(t)
	p := newProxy(t, server)
	o := options(t, server)
	o.Endpoint = p.endpoint
	a, b := open(t, o), open(t, o)
	id := build.NewID()
	p.set(func(r *http.Request, n int) fault {
		if r.Method != http.MethodPut {
			return fault{}
		}
		return fault{lost: n%3 == 0, reset: n%5 == 0} // answers and requests
	})
	var wg sync.WaitGroup
	for attempt := 1; attempt <= 10; attempt++ {
		s := a
		if attempt%2 == 0 {
			s = b
		}
		wg.Go(func() {
			_, err := put(t.Context(), s, meta("v1", id, attempt), fmt.Append(nil, "attempt ", attempt))
			if err != nil && !errors.Is(err, artifact.ErrSuperseded) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	holds(t, server, o, "v1", []byte("attempt 10"))
}
