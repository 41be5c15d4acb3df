package httpserver

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/monochromegane/cargo/artifact"
)

// How long a signed URL may be used, by anybody who has it: that of a private
// repository only for as long as following a redirect takes.
const (
	publicTTL  = 10 * time.Minute
	privateTTL = 45 * time.Second
)

// redirectArchive answers for the archive from what is recorded of it, and
// sends a GET that is about the content on to the store, its range too. The
// URL is a key: it is in the answer and nowhere else.
func (s *server) redirectArchive(w *response, c call, m artifact.Meta, public bool) error {
	if err := describeArchive(w, m); err != nil {
		return err
	}
	head := c.WithContext(c.Context())
	head.Method = http.MethodHead // no body is sent from here
	if c.Method == http.MethodGet {
		head.Header = c.Header.Clone()
		head.Header.Del("Range")
	}
	answer := &headResponse{response: w, get: c.Method == http.MethodGet}
	http.ServeContent(answer, head, "", modified(m), &hollow{size: m.Artifact.Size})
	if answer.refused {
		return errBadRange
	}
	if !answer.found {
		return nil
	}
	ttl := privateTTL
	if public {
		ttl = publicTTL
	}
	url, err := s.SignedURL(c.Context(), m, ttl)
	if err != nil {
		return fmt.Errorf("sign the URL of the artifact of %s: %w", m.Key.Repository, err)
	}
	h := w.Header()
	for _, name := range slices.Concat(archiveHeaders, []string{"Accept-Ranges", "Content-Length", "Content-Type"}) {
		h.Del(name)
	}
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Location", url)
	w.WriteHeader(http.StatusSeeOther)
	return nil
}

// A headResponse keeps back the answer to a GET that has content.
type headResponse struct {
	*response
	get     bool
	found   bool
	refused bool
}

func (w *headResponse) WriteHeader(code int) {
	w.refused = code == http.StatusRequestedRangeNotSatisfiable
	w.found = w.get && code == http.StatusOK
	if !w.refused && !w.found {
		w.response.WriteHeader(code)
	}
}

// Write drops the text of a refusal. To a HEAD there is no other.
func (w *headResponse) Write(p []byte) (int, error) { return len(p), nil }

// hollow is content of which only the size is known.
type hollow struct{ size, at int64 }

func (h *hollow) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
		h.at = offset
	case io.SeekCurrent:
		h.at += offset
	case io.SeekEnd:
		h.at = h.size + offset
	}
	return h.at, nil
}

func (h *hollow) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
