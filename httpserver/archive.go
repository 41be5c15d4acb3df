package httpserver

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/gitsrc"
)

// redirectAge is how old an answer of the remote may be for a file: whoever
// follows the redirect of a target asks twice within moments.
const redirectAge = 5 * time.Second

// locate resolves the call's target and looks up its artifact; m is nil if
// there is none. While the remote is unavailable, what was public a while ago
// can still be found.
func (s *server) locate(c call, maxAge time.Duration) (t build.Target, m *artifact.Meta, ref gitsrc.Ref, err error) {
	q, err := c.query("recipe")
	if err != nil {
		return t, nil, ref, err
	}
	if t, err = c.withRecipe(q); err != nil {
		return t, nil, ref, err
	}
	tok, err := c.token()
	if err != nil {
		return t, nil, ref, err
	}
	ref, err = s.resolve(c, t, tok, maxAge)
	if errors.Is(err, gitsrc.ErrUnavailable) {
		if known, staleErr := s.Source.ResolveStale(t.Repository, t.Version); staleErr == nil {
			ref, err = known, nil
		}
	}
	if err != nil {
		return t, nil, ref, err
	}
	meta, found, err := s.stored(c.Context(), build.Key{Target: t, Commit: ref.Commit})
	if err != nil || !found {
		return t, nil, ref, err
	}
	return t, &meta, ref, nil
}

// getArchive is GET of a target's file.
func (s *server) getArchive(w *response, c call) error {
	t, m, ref, err := s.locate(c, redirectAge)
	if err != nil {
		return err
	}
	if m == nil {
		return s.notBuilt(c, t, ref.Commit)
	}
	setCaching(w, ref.Public)
	if s.SignedURL != nil {
		return s.redirectArchive(w, c, *m, ref.Public)
	}
	f, err := s.Artifacts.Open(c.Context(), *m)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := describeArchive(w, *m); err != nil {
		return err
	}
	ranged := &rangeResponse{response: w}
	http.ServeContent(ranged, c.Request, "", modified(*m), f)
	if ranged.refused {
		return errBadRange
	}
	if w.err != nil {
		return fmt.Errorf("send artifact of %s: %w", m.Key.Repository, w.err)
	}
	return nil
}

// describeArchive sets the headers of an archive.
func describeArchive(w *response, m artifact.Meta) error {
	sum, err := hex.DecodeString(m.Artifact.SHA256)
	if err != nil {
		return fmt.Errorf("artifact of %s: its recorded SHA-256: %w", m.Key.Repository, err)
	}
	h := w.Header()
	h.Set("Content-Type", "application/gzip")
	h.Set("Content-Disposition", `attachment; filename="`+m.Artifact.Name+`"`)
	h.Set("ETag", `"`+m.Artifact.SHA256+`"`)
	h.Set("Repr-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(sum)+":")
	return nil
}

// modified is the time of the commit, zero if that is in the future: an
// author's clock is anybody's, and RFC 9110 forbids the future here.
func modified(m artifact.Meta) time.Time {
	if m.CommitTime.After(time.Now()) {
		return time.Time{}
	}
	return m.CommitTime
}

// A rangeResponse keeps back the plain text with which [http.ServeContent]
// refuses a range, for a problem to take its place.
type rangeResponse struct {
	*response
	refused bool
}

func (w *rangeResponse) WriteHeader(code int) {
	if w.refused = code == http.StatusRequestedRangeNotSatisfiable; !w.refused {
		w.response.WriteHeader(code)
	}
}

func (w *rangeResponse) Write(p []byte) (int, error) {
	if w.refused {
		return len(p), nil
	}
	return w.response.Write(p)
}
