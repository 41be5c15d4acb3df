package s3store

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/s3utils"

	"github.com/monochromegane/cargo/artifact"
)

// Open opens the store in a bucket, which must be there, and asks the server
// for what it will be asked for later. What is wrong with the options is
// ErrSettings, with a sentence that says what to change; a server that does not
// answer is artifact.ErrUnavailable. It removes what is older than a day of
// uploads that were never completed, unless it shall keep all as it is.
func Open(ctx context.Context, o Options) (*Store, error) {
	s := newStore(o)
	if err := checkOptions(o); err != nil {
		return nil, err
	}
	if !o.Keep {
		if err := s.makeScratch(); err != nil {
			return nil, fmt.Errorf("open artifact store: %w", err)
		}
	}
	var err error
	if s.credentials, err = chooseCredentials(ctx, o.Credentials); err != nil {
		return nil, err
	}
	region := o.Region
	if region == "" && cmp.Or(o.Endpoint, amazon) != amazon {
		region = "us-east-1" // what servers call themselves that have no regions
	}
	client, err := minio.NewCore(cmp.Or(o.Endpoint, amazon), &minio.Options{
		Creds: s.credentials, Secure: o.Secure || o.Endpoint == "", Transport: s.transport, Region: region,
		MaxRetries: 1, // try does that, with more patience
	})
	if err != nil {
		return nil, settings("the endpoint %q: %v", o.Endpoint, err)
	}
	s.client = *client
	if err := s.probe(ctx, o.Keep); err != nil {
		return nil, err
	}
	if o.Keep {
		return s, nil
	}
	if !s.conditional {
		s.log.Warn("this S3 server does not know conditional writes; two workers that store the same artifact at the same moment can overwrite each other unseen", "server", s.client.EndpointURL().Host)
	}
	s.abortOld(ctx)
	return s, nil
}

func checkOptions(o Options) error {
	if err := s3utils.CheckValidBucketNameStrict(o.Bucket); err != nil {
		return settings("%q is no bucket name: those have 3 to 63 lower-case letters, digits, dots and hyphens", o.Bucket)
	}
	if o.Scratch == "" && !o.Keep {
		return settings("it needs a directory for archives on their way to the server")
	}
	return checkPrefix(o.Prefix)
}

const scratchPrefix = "archive-"

// makeScratch makes the directory, and removes what is left in it by processes
// that died. That an archive loses its name which is on its way just now does no
// harm: it has none to lose a moment later.
func (s *Store) makeScratch() error {
	if err := os.MkdirAll(s.scratch, 0o700); err != nil {
		return artifact.Unavailable(err)
	}
	left, err := filepath.Glob(filepath.Join(escapeGlob(s.scratch), scratchPrefix+"*"))
	if err != nil {
		return err
	}
	for _, name := range left {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return artifact.Unavailable(err)
		}
	}
	return nil
}

func escapeGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(s)
}

// chooseCredentials finds credentials once, and stays with where it found them:
// a role that cannot be asked for a moment must not turn into nobody.
func chooseCredentials(ctx context.Context, given *Credentials) (*credentials.Credentials, error) {
	if given != nil {
		return credentials.NewStaticV4(given.Access, given.Secret, given.Session), nil
	}
	const patience = 3 * time.Second // off a cloud nobody answers for its roles
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DialContext: (&net.Dialer{Timeout: patience}).DialContext, DisableKeepAlives: true}}
	for _, p := range []credentials.Provider{&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}, &credentials.IAM{Client: client}} {
		v, err := p.RetrieveWithCredContext(&credentials.CredContext{Client: client, Context: ctx})
		if err == nil && v.AccessKeyID != "" && v.SecretAccessKey != "" {
			return credentials.New(p), nil
		}
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
	}
	return nil, settings("there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write them to the shared credentials file, or give this machine a role that has some")
}

// probe lists once, and unless all is to be kept as it is it writes, too, and
// finds out whether conditions are kept.
func (s *Store) probe(ctx context.Context, keep bool) error {
	err := s.try(ctx, s.read, "open artifact store", func(ctx context.Context) error {
		for o := range s.client.ListObjectsIter(ctx, s.bucket, minio.ListObjectsOptions{Prefix: s.metas(), Recursive: true, MaxKeys: 1}) {
			return o.Err
		}
		return nil
	})
	if err == nil && !keep {
		s.conditional, err = s.keepsConditions(ctx)
	}
	if r, ok := errors.AsType[refusedError](err); ok {
		return settings("%s", r.sentence)
	}
	return err
}

// keepsConditions writes what must not be there, twice, and then what must be
// something else: a server that keeps conditions refuses both.
func (s *Store) keepsConditions(ctx context.Context) (bool, error) {
	absent, other := minio.PutObjectOptions{}, minio.PutObjectOptions{}
	absent.SetMatchETagExcept("*")
	other.SetMatchETag(strings.Repeat("0", 32))
	keeps := true
	for i, o := range []minio.PutObjectOptions{absent, absent, other} {
		err := s.try(ctx, s.read, "open artifact store", func(ctx context.Context) error {
			err := s.putSmall(ctx, s.prefix+"probe", []byte("made by Cargo to see whether this server keeps conditions\n"), o)
			refused := errors.Is(conflict(err), errConflict)
			keeps = keeps && (refused || i == 0 && err == nil)
			if refused || response(err).StatusCode == http.StatusNotImplemented {
				return nil
			}
			return err
		})
		if err != nil {
			return false, err
		}
	}
	return keeps, nil
}

// putSmall writes a small object in one request, whose body the server checks.
func (s *Store) putSmall(ctx context.Context, key string, text []byte, o minio.PutObjectOptions) error {
	sum := sha256.Sum256(text)
	o.DisableContentSha256 = true // of each chunk: there is one for all
	_, err := s.client.PutObject(ctx, s.bucket, key, bytes.NewReader(text), int64(len(text)), "", hex.EncodeToString(sum[:]), o)
	return err
}

// abortOld removes uploads that have not been completed for a day: nobody is at
// work on them any more. That it may not is no reason not to open the store.
func (s *Store) abortOld(ctx context.Context) {
	const old, patience = 24 * time.Hour, 10 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	aborted := 0
	var failed error
	for _, prefix := range []string{s.blobs(), s.logs()} {
		for u := range s.client.ListIncompleteUploads(ctx, s.bucket, prefix, true) { // to its end, or its goroutine stays
			switch {
			case u.Err != nil:
				failed = u.Err
			case strings.HasPrefix(u.Key, prefix) && time.Since(u.Initiated) > old:
				if err := s.client.AbortMultipartUpload(ctx, s.bucket, u.Key, u.UploadID); err != nil {
					failed = err
					continue
				}
				aborted++
			}
		}
	}
	if aborted > 0 {
		s.log.Info("removed uploads that were never completed", "uploads", aborted)
	}
	if failed != nil {
		s.log.Warn("uploads that were never completed may take space in the artifact store", "err", failed)
	}
}
