package main

import (
	"bytes"
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
		"S3":          {[]string{"--concurrency", "0", "--queue", "nats://127.0.0.1:1", "--storage", "s3://bucket?endpoint=http://127.0.0.1:1"}, exitFailed, "artifact store"},
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
