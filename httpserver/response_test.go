package httpserver

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
)

// A kernel is a ResponseWriter that remembers what it was given to read from.
type kernel struct {
	*httptest.ResponseRecorder
	direct int
}

func (k *kernel) ReadFrom(src io.Reader) (int64, error) {
	if limited, ok := src.(*io.LimitedReader); ok {
		if _, ok := limited.R.(*os.File); ok {
			k.direct++
		}
	}
	return io.Copy(k.ResponseRecorder, src)
}

func TestResponseHandsFilesDown(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), (2*piece+16)/16)
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	k := &kernel{ResponseRecorder: httptest.NewRecorder()}
	w := newResponse(k)
	rest := &io.LimitedReader{R: f, N: int64(len(content)) - 3} // as http.ServeContent does
	n, err := w.ReadFrom(rest)
	if err != nil || n != int64(len(content))-3 || rest.N != 0 {
		t.Fatalf("ReadFrom = %d, %v with %d left; want %d, nil with 0", n, err, rest.N, len(content)-3)
	}
	if !bytes.Equal(k.Body.Bytes(), content[:len(content)-3]) {
		t.Error("the content changed on its way")
	}
	if k.direct != 3 {
		t.Errorf("the file itself was handed down %d times, want 3", k.direct)
	}
	if w.code != http.StatusOK || w.bytes != n {
		t.Errorf("remembered code %d and %d bytes, want 200 and %d", w.code, w.bytes, n)
	}

	if n, err := w.ReadFrom(f); err != nil || n != 3 {
		t.Errorf("ReadFrom to the end of the file = %d, %v; want 3, nil", n, err)
	}
}

func TestResponseIsWhatMiddlewareExpects(t *testing.T) {
	var w any = newResponse(httptest.NewRecorder())
	if _, ok := w.(io.ReaderFrom); !ok {
		t.Error("no io.ReaderFrom")
	}
	if _, ok := w.(http.Flusher); !ok {
		t.Error("no http.Flusher")
	}
	if _, ok := w.(interface{ Unwrap() http.ResponseWriter }); !ok {
		t.Error("no Unwrap")
	}
	if _, ok := any(&rangeResponse{}).(io.ReaderFrom); !ok {
		t.Error("rangeResponse hides io.ReaderFrom")
	}
}
