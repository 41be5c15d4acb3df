package s3store

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"syscall"

	"github.com/minio/minio-go/v7"

	"github.com/monochromegane/cargo/artifact"
)

// ErrSettings is what Open and ParseURL return for a store that cannot be used
// as it is set up; the text says what to change.
var ErrSettings = errors.New("S3 storage")

// errConflict is for a conditional write whose object is not what was read
// before: it has to be read again.
var errConflict = errors.New("the object has changed meanwhile")

// response is what the server said, zero for any other error.
func response(err error) minio.ErrorResponse {
	r, _ := errors.AsType[minio.ErrorResponse](err)
	return r
}

// missing reports whether the server says that there is no such object, and not
// that there is no such bucket or user.
func missing(err error) bool {
	r := response(err)
	return r.Code == minio.NoSuchKey || r.Code == "NotFound"
}

// conflict turns the answers to a conditional write that did not find what it
// expected into errConflict.
func conflict(err error) error {
	switch r := response(err); {
	case r.StatusCode == http.StatusPreconditionFailed, r.StatusCode == http.StatusConflict,
		r.Code == minio.PreconditionFailed, missing(err): // If-Match finds nothing at all
		return fmt.Errorf("%w: %w", errConflict, err)
	}
	return err
}

// again reports whether another attempt may succeed where err was the outcome:
// whatever is not an answer of the server, and answers that are about it and not
// about the request.
func again(err error) bool {
	r := response(err)
	switch {
	case errors.Is(err, errConflict):
		return true
	case errors.Is(err, syscall.EIO): // the disk of this machine, under what is sent
		return false
	case wrongSpeech(err) != "":
		return false
	case r.Code == "" && r.StatusCode == 0:
		return true // the network, or what arrived makes no sense
	}
	switch r.Code {
	case "SlowDown", "SlowDownRead", "SlowDownWrite", "RequestTimeout", "InternalError", "ServiceUnavailable", "OperationAborted",
		"Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestThrottled", "ConditionalRequestConflict",
		"IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch": // what was sent has not arrived as it was
		return true
	case minio.NotImplemented:
		return false
	}
	switch r.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, 499: // nginx: the client went away
		return true
	}
	return r.StatusCode >= 500 && r.StatusCode != http.StatusNotImplemented
}

// explain is the error of something that another attempt cannot mend. What the
// server has against us, and not against the request, is also
// artifact.ErrUnavailable: it is the same to who asked.
func (s *Store) explain(what string, err error) error {
	if sentence := s.refusal(err); sentence != "" {
		return fmt.Errorf("%w: %w", artifact.ErrUnavailable, refusedError{what, sentence})
	}
	if r := response(err); r.Code != "" {
		return fmt.Errorf("%s: the server of %s says %d %s: %w", what, s.where, r.StatusCode, r.Code, err)
	}
	return fmt.Errorf("%s: %w", what, artifact.Unavailable(err))
}

// A refusedError is what a server has against how the store is set up.
type refusedError struct{ what, sentence string }

func (e refusedError) Error() string { return e.what + ": " + e.sentence }

// refusal says in a sentence what is wrong with the store's settings, if err
// means that.
func (s *Store) refusal(err error) string {
	r := response(err)
	switch r.Code {
	case minio.NoSuchBucket:
		return "there is no " + s.where + "; make it, or correct its name"
	case "InvalidAccessKeyId", "InvalidAccessKeyID", "XAdminUserNotFound":
		return "the server of " + s.where + " does not know this access key; look at AWS_ACCESS_KEY_ID or the credentials file"
	case "SignatureDoesNotMatch":
		return "the server of " + s.where + " refuses the signature: the secret key is not that of the access key, or a proxy in between changes the Host header"
	case "ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired":
		return "the session token for " + s.where + " has expired or is another's; get a new one, or leave AWS_SESSION_TOKEN out"
	case "RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture":
		return "the clock of this machine and that of the server of " + s.where + " are more than some minutes apart; set the wrong one, and keep it right with NTP"
	case "AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect", "Redirect", minio.InvalidRegion, "IllegalLocationConstraintException":
		if r.Region != "" {
			return fmt.Sprintf("%s is in the region %s; add region=%s to the URL", s.where, r.Region, r.Region)
		}
		return s.where + " is in another region; add region=REGION to the URL"
	case minio.InvalidBucketName:
		return "the server of " + s.where + " refuses the name of the bucket; correct it"
	case "AllAccessDisabled", "AccountProblem":
		return "the server of " + s.where + " has disabled all access to it; its owner knows why"
	}
	if r.Code == minio.AccessDenied || r.StatusCode == http.StatusForbidden {
		return "these credentials may not do that in " + s.where + "; allow s3:ListBucket and s3:ListBucketMultipartUploads on it, and s3:GetObject, s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload on what is in it"
	}
	if speech := wrongSpeech(err); speech != "" {
		return "the server of " + s.where + " " + speech
	}
	return ""
}

// wrongSpeech says what is wrong with how the two speak with each other.
func wrongSpeech(err error) string {
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	_, invalid := errors.AsType[*tls.CertificateVerificationError](err)
	switch {
	case err == nil:
		return ""
	case unknown || invalid:
		return "shows a certificate that this machine does not trust; add its authority to the system's, or correct the name in endpoint=https://NAME"
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return "does not speak TLS; write endpoint=http://HOST:PORT if that is meant"
	case strings.Contains(err.Error(), "HTTP request to an HTTPS server"), strings.Contains(err.Error(), "malformed HTTP response"):
		return "speaks TLS; write endpoint=https://HOST:PORT"
	}
	return ""
}
