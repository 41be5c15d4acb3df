package s3store

import (
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/minio/minio-go/v7/pkg/s3utils"
)

// Options say where a Store is and how it is reached.
type Options struct {
	Endpoint string // host or host:port; "" is Amazon S3
	Secure   bool   // TLS
	Region   string // "" is us-east-1, or at Amazon wherever the bucket is
	Bucket   string // must exist
	Prefix   string // of every key, without a slash at its ends; "" for none

	// Credentials sign the requests. Without them the environment is asked,
	// then the shared credentials file, then the role of the machine.
	Credentials *Credentials

	// Scratch is a directory for archives on their way to the server. It is
	// made if it is not there, and nothing else may be in it.
	Scratch string

	// Keep changes nothing, here or on the server, when the store is opened, and
	// needs no Scratch: for a look at what another process works with. Nothing
	// can be stored then.
	Keep bool

	// Patience is how long a step of a Put goes on trying while the server does
	// not answer; 0 means two minutes. Whoever reads waits for ten seconds at most,
	// and for thirty in the middle.
	Patience time.Duration

	Log *slog.Logger // nil discards it
}

// Credentials are those of an S3 user. They do not show when they are printed.
type Credentials struct {
	Access, Secret string
	Session        string // "" for none
}

// String hides the credentials.
func (Credentials) String() string { return "S3 credentials" }

// GoString hides the credentials.
func (c Credentials) GoString() string { return c.String() }

// amazon is the endpoint of those who name none.
const amazon = "s3.amazonaws.com"

// maxPrefix leaves room for what follows it: a key has at most 1,024 bytes.
const maxPrefix = 512

var (
	regionPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)
	prefixPattern = regexp.MustCompile(`^[A-Za-z0-9_.=-]+(?:/[A-Za-z0-9_.=-]+)*$`)
	hostPattern   = regexp.MustCompile(`^[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)
)

// ParseURL reads where a store is from a URL of the form
//
//	s3://bucket/prefix?region=eu-central-1&endpoint=https://host:port
//
// Prefix, region and endpoint may be left out; an endpoint without a scheme has
// TLS. What is no such URL is ErrSettings, with a sentence that says what to
// write instead and repeats nothing that could be a secret.
func ParseURL(text string) (Options, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil: // whose text has the URL in it, with whatever was put there
		return Options{}, settings("it is no URL; write s3://BUCKET/PREFIX?region=REGION&endpoint=URL")
	case u.Scheme != "s3":
		return Options{}, settings("its scheme is not s3; write s3://BUCKET/PREFIX")
	case u.User != nil:
		return Options{}, settings("there are credentials in the URL, which ends up in logs and process lists; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead")
	case u.Opaque != "" || u.Host == "":
		return Options{}, settings("there is no bucket in it; write s3://BUCKET/PREFIX")
	case u.Fragment != "" || strings.HasSuffix(text, "#"):
		return Options{}, settings("there is a # in it, which means nothing here; leave out what follows it")
	case u.Port() != "" || strings.Contains(u.Host, ":"):
		return Options{}, settings("the bucket has a port; write the server as s3://BUCKET?endpoint=http://HOST:PORT")
	case s3utils.CheckValidBucketNameStrict(u.Host) != nil:
		return Options{}, settings("%q is no bucket name: those have 3 to 63 lower-case letters, digits, dots and hyphens", u.Host)
	}
	o := Options{Bucket: u.Host, Prefix: strings.Trim(u.Path, "/"), Endpoint: amazon, Secure: true}
	if err := checkPrefix(o.Prefix); err != nil {
		return Options{}, err
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Options{}, settings("what follows the ? is not NAME=VALUE&NAME=VALUE; percent-encode what is special in a value")
	}
	for name, values := range q {
		if len(values) != 1 || values[0] == "" {
			return Options{}, settings("%q must be there once, with a value, or not at all", name)
		}
		switch name {
		case "region":
			o.Region = values[0]
			if !regionPattern.MatchString(o.Region) {
				return Options{}, settings("%q is no region; one is eu-central-1", o.Region)
			}
		case "endpoint":
			if o.Endpoint, o.Secure, err = parseEndpoint(values[0]); err != nil {
				return Options{}, err
			}
		default:
			return Options{}, settings("%q is not known in it; there are region and endpoint", name)
		}
	}
	return o, nil
}

func checkPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	if len(prefix) > maxPrefix || !prefixPattern.MatchString(prefix) {
		return settings("the prefix after the bucket is not plain: up to %d letters, digits, and _ . = - between single slashes", maxPrefix)
	}
	for part := range strings.SplitSeq(prefix, "/") {
		if part == "." || part == ".." {
			return settings("the prefix after the bucket has %q in it, which not every server keeps as it is", part)
		}
	}
	return nil
}

func parseEndpoint(text string) (host string, secure bool, err error) {
	const form = "write it as endpoint=https://HOST:PORT"
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return "", false, settings("the endpoint is no URL; %s", form)
	case u.User != nil:
		return "", false, settings("there are credentials in the endpoint; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead")
	case u.Scheme != "http" && u.Scheme != "https":
		return "", false, settings("the endpoint speaks neither http nor https; %s", form)
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return "", false, settings("the endpoint has more than a host and a port; %s and the bucket before it, as s3://BUCKET", form)
	case net.ParseIP(u.Hostname()) == nil && !hostPattern.MatchString(u.Hostname()):
		return "", false, settings("the endpoint has no host that makes sense; %s", form)
	case strings.HasSuffix(u.Host, ":"):
		return "", false, settings("the endpoint ends with a colon and no port; %s", form)
	}
	return u.Host, u.Scheme == "https", nil
}

// settings is an ErrSettings with a sentence about the URL.
func settings(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrSettings, fmt.Sprintf(format, args...))
}
