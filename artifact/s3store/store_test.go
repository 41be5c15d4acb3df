package s3store_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/artifact/artifacttest"
	"github.com/monochromegane/cargo/artifact/s3store"
	"github.com/monochromegane/cargo/artifact/s3store/s3test"
	"github.com/monochromegane/cargo/build"
)

var _ artifacttest.Store = (*s3store.Store)(nil)

// options are those of a store in the server's bucket.
func options(t testing.TB, server *s3test.Server) s3store.Options {
	t.Helper()
	return s3store.Options{
		Endpoint: server.Endpoint, Bucket: server.Bucket, Prefix: "some/where",
		Credentials: &s3store.Credentials{Access: server.Access, Secret: server.Secret},
		Scratch:     filepath.Join(t.TempDir(), "scratch"),
		Log:         slog.New(slog.NewTextHandler(testLog{t}, nil)),
	}
}

type testLog struct{ testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

func open(t testing.TB, o s3store.Options) *s3store.Store {
	t.Helper()
	s, err := s3store.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// raw is a client of the server that is not the store's.
func raw(t testing.TB, server *s3test.Server) *minio.Client {
	t.Helper()
	c, err := minio.New(server.Endpoint, &minio.Options{Creds: credentials.NewStaticV4(server.Access, server.Secret, ""), Region: "us-east-1"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestStore(t *testing.T) {
	server := s3test.Start(t)
	artifacttest.Test(t, func(t *testing.T) artifacttest.Harness {
		o := options(t, server)
		o.Prefix = string(build.NewID()) // of this subtest
		client := raw(t, server)
		replace := func(t *testing.T, key string, content []byte) {
			t.Helper()
			key = o.Prefix + "/" + key
			err := client.RemoveObject(t.Context(), o.Bucket, key, minio.RemoveObjectOptions{})
			if err == nil && content != nil {
				_, err = client.PutObject(t.Context(), o.Bucket, key, bytes.NewReader(content), int64(len(content)), minio.PutObjectOptions{})
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		return artifacttest.Harness{
			Store:  open(t, o),
			Again:  func(t *testing.T) artifacttest.Store { t.Helper(); return open(t, o) },
			Blob:   func(t *testing.T, sum string, content []byte) { t.Helper(); replace(t, "blobs/"+sum, content) },
			Record: func(t *testing.T, slot string, content []byte) { t.Helper(); replace(t, "meta/"+slot+".json", content) },
			Text: func(t *testing.T, slot string) []byte {
				t.Helper()
				object, err := client.GetObject(t.Context(), o.Bucket, o.Prefix+"/meta/"+slot+".json", minio.GetObjectOptions{})
				if err != nil {
					t.Fatal(err)
				}
				defer object.Close()
				text, err := io.ReadAll(object)
				if err != nil {
					t.Fatal(err)
				}
				return text
			},
			Leftovers: func(t *testing.T) []string { t.Helper(); return append(server.Uploads(), names(t, o.Scratch)...) },
		}
	})
}

func names(t testing.TB, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func meta(version string, id build.ID, attempt int) artifact.Meta {
	return artifact.Meta{Key: artifacttest.Key(version), BuildID: id, Attempt: attempt, CreatedAt: time.Unix(1_700_000_000, 0).UTC()}
}

func put(ctx context.Context, s *s3store.Store, m artifact.Meta, content []byte) (artifact.Meta, error) {
	return s.Put(ctx, m, artifact.PutOptions{}, func(w io.Writer) error {
		_, err := io.Copy(w, struct{ io.Reader }{bytes.NewReader(content)})
		return err
	})
}
