package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is away when a program starts may come back: it ends with a status after
// which a service manager starts it again. With wrong settings it does not.
func TestStartWithoutNeighbours(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "access")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
	none := filepath.Join(t.TempDir(), "none.sock")
	taken := t.TempDir()
	lock, err := lockData(taken)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lock.Close() })
	for name, tc := range map[string]struct {
		args []string
		code int
		says string
	}{
		"NATS":        {[]string{"--concurrency", "0", "--queue", "nats://127.0.0.1:1"}, exitFailed, "127.0.0.1:1"},
		"NATS's name": {[]string{"--concurrency", "0", "--queue", "nats://nats.invalid:4222"}, exitFailed, "nats.invalid"},
		"S3":          {[]string{"--concurrency", "0", "--queue", "nats://127.0.0.1:1", "--storage", "s3://bucket?endpoint=http://127.0.0.1:1"}, exitFailed, "see that the S3 server runs"},
		"containerd":  {[]string{"--containerd-address", none}, exitFailed, "none.sock"},
		"docker":      {[]string{"--executor", "docker", "--docker-host", "unix://" + none}, exitFailed, "none.sock"},
		"a directory": {[]string{"--data-dir", taken}, exitFailed, "another process uses"},
		"a setting":   {[]string{"--concurrency", "0", "--queue", "nats://127.0.0.1:1", "--storage", "s3://No_Bucket"}, exitUsage, "bucket"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var said bytes.Buffer
			code := run(t.Context(), append([]string{"cargo", "serve", "--listen", "127.0.0.1:0", "--data-dir", t.TempDir()}, tc.args...), &said, &said)
			if code != tc.code || !strings.Contains(said.String(), tc.says) {
				t.Errorf("exit status %d, want %d, and a word of %s:\n%s", code, tc.code, tc.says, said.String())
			}
		})
	}
}

// Whoever has another secret than those who came before is told so, and also
// where there was none at the path that was named.
func TestAnotherSecret(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	address := natsAlone(t, dir, "nats", "")
	path := func(name string) string { return filepath.Join(dir, name) }
	writeSecret(t, path("ours"), strings.Repeat("5e", secretBytes))
	writeSecret(t, path("other"), strings.Repeat("07", secretBytes))
	serve := func(ctx context.Context, secret string, said io.Writer) int {
		return run(ctx, []string{"cargo", "serve", "--listen", "127.0.0.1:0", "--concurrency", "0", "--queue", address, "--queue-replicas", "1",
			"--data-dir", t.TempDir(), "--secret-file", path(secret)}, said, said)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	if code := serve(ctx, "ours", onWord{"msg=ready", stop}); code != exitOK {
		t.Fatalf("exit status %d of the first", code)
	}
	for secret, want := range map[string]string{"other": "another secret is in use", "none": "there is no such file"} {
		var said bytes.Buffer
		code := serve(t.Context(), secret, &said)
		if code != exitUsage || !strings.Contains(said.String(), "cargo: --secret-file "+path(secret)) || !strings.Contains(said.String(), want) {
			t.Errorf("%s: exit status %d, want %d and %q:\n%s", secret, code, exitUsage, want, said.String())
		}
	}
	if _, err := os.Stat(path("none")); err == nil {
		t.Error("a secret that is of no use is kept")
	}
}

// onWord calls then whenever word is written to it.
type onWord struct {
	word string
	then func()
}

func (o onWord) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(o.word)) {
		o.then()
	}
	return len(p), nil
}
