package s3store_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/monochromegane/cargo/artifact/s3store"
)

func TestParseURL(t *testing.T) {
	for _, tc := range []struct {
		url  string
		want s3store.Options
	}{
		{"s3://bucket", s3store.Options{Bucket: "bucket", Endpoint: "s3.amazonaws.com", Secure: true}},
		{"s3://bucket/", s3store.Options{Bucket: "bucket", Endpoint: "s3.amazonaws.com", Secure: true}},
		{"s3://my.bucket-1/a/b_c.d=e/?region=eu-central-1", s3store.Options{Bucket: "my.bucket-1", Prefix: "a/b_c.d=e", Region: "eu-central-1", Endpoint: "s3.amazonaws.com", Secure: true}},
		{"s3://bucket?endpoint=http://127.0.0.1:9000", s3store.Options{Bucket: "bucket", Endpoint: "127.0.0.1:9000"}},
		{"s3://bucket?endpoint=https://[::1]:9000/", s3store.Options{Bucket: "bucket", Endpoint: "[::1]:9000", Secure: true}},
		{"s3://bucket?endpoint=minio.local", s3store.Options{Bucket: "bucket", Endpoint: "minio.local", Secure: true}},
		{"s3://bucket?endpoint=minio.local:9000&region=here", s3store.Options{Bucket: "bucket", Region: "here", Endpoint: "minio.local:9000", Secure: true}},
		{"s3://bucket?endpoint=http%3A%2F%2Fminio.local", s3store.Options{Bucket: "bucket", Endpoint: "minio.local"}},
	} {
		got, err := s3store.ParseURL(tc.url)
		if err != nil {
			t.Errorf("ParseURL(%q) = %v", tc.url, err)
		}
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("ParseURL(%q) (-want +got):\n%s", tc.url, d)
		}
	}
}

// Each mistake has a sentence that says what to write instead, and no sentence
// has a password in it.
func TestParseURLRefuses(t *testing.T) {
	for url, sentence := range map[string]string{
		"":                          "scheme",
		"/var/lib/cargo":            "scheme",
		"https://bucket":            "scheme is not s3",
		"s3:bucket":                 "no bucket",
		"s3://":                     "no bucket",
		"s3:///prefix":              "no bucket",
		"s3://key:hunter2@bucket":   "AWS_SECRET_ACCESS_KEY",
		"s3://key:hunter2@bucket/%": "it is no URL",
		"s3://bucket:9000/prefix":   "endpoint=http://HOST:PORT",
		"s3://Bucket":               "bucket name",
		"s3://b":                    "bucket name",
		"s3://bucket_1":             "bucket name",
		"s3://bucket/a//b":          "prefix",
		"s3://bucket/a/../b":        "prefix",
		"s3://bucket/a b":           "prefix",
		"s3://bucket/ü":             "prefix",
		"s3://bucket/" + strings.Repeat("a", 513):           "prefix",
		"s3://bucket#frag":                                  "#",
		"s3://bucket?region=":                               "with a value",
		"s3://bucket?region=a&region=b":                     "once",
		"s3://bucket?region=EU West":                        "no region",
		"s3://bucket?secret=hunter2":                        "there are region and endpoint",
		"s3://bucket?a;b=hunter2":                           "NAME=VALUE",
		"s3://bucket?endpoint=ftp://host":                   "neither http nor https",
		"s3://bucket?endpoint=http://key:hunter2@host":      "credentials in the endpoint",
		"s3://bucket?endpoint=http://key:hunter2@host:port": "endpoint is no URL",
		"s3://bucket?endpoint=http://host/bucket":           "more than a host",
		"s3://bucket?endpoint=http://host?x=1":              "more than a host",
		"s3://bucket?endpoint=http://":                      "no host",
		"s3://bucket?endpoint=http://ho_st":                 "no host",
		"s3://bucket?endpoint=http://host:":                 "colon",
	} {
		o, err := s3store.ParseURL(url)
		if !errors.Is(err, s3store.ErrSettings) || !strings.Contains(err.Error(), sentence) || o != (s3store.Options{}) {
			t.Errorf("ParseURL(%q) = %+v, %v, want a sentence with %q", url, o, err, sentence)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("ParseURL(%q) repeats the password: %v", url, err)
		}
	}
}

func TestCredentialsDoNotShow(t *testing.T) {
	o := s3store.Options{Credentials: &s3store.Credentials{Access: "access", Secret: "hunter2", Session: "hunter2"}}
	if text := fmt.Sprintf("%v %+v %#v %s %v %#v", o, o, o, *o.Credentials, *o.Credentials, *o.Credentials); strings.Contains(text, "hunter2") {
		t.Error(text)
	}
}

func FuzzParseURL(f *testing.F) {
	for _, s := range []string{
		"s3://bucket/prefix?region=eu-central-1&endpoint=http://127.0.0.1:9000", "s3://k:s@b", "s3://bucket?endpoint=%zz", "s3://[::1]/", "s3://bucket/%2e%2e/x",
		"s3://bucket?endpoint=http://[fe80::1%25eth0]:1", "s3://bucket#",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		o, err := s3store.ParseURL(text)
		if err != nil {
			if !errors.Is(err, s3store.ErrSettings) {
				t.Errorf("ParseURL(%q) = %v", text, err)
			}
			return
		}
		// What was read can be written again, and means the same.
		scheme := map[bool]string{true: "https", false: "http"}[o.Secure]
		again := "s3://" + o.Bucket + "/" + o.Prefix + "?endpoint=" + strings.ReplaceAll(scheme+"://"+o.Endpoint, "%", "%25")
		if o.Region != "" {
			again += "&region=" + o.Region
		}
		if got, err := s3store.ParseURL(again); err != nil || got != o {
			t.Errorf("ParseURL(%q) = %+v, but of %q it is %+v, %v", text, o, again, got, err)
		}
		if strings.ContainsAny(o.Prefix+o.Bucket+o.Region+o.Endpoint, " \n\x00@?#") || strings.HasPrefix(o.Prefix, "/") {
			t.Errorf("ParseURL(%q) = %+v", text, o)
		}
	})
}
