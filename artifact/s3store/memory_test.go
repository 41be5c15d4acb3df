package s3store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/artifact/s3store"
	"github.com/monochromegane/cargo/artifact/s3store/s3test"
	"github.com/monochromegane/cargo/build"
)

// memoryEnv tells a re-executed test binary to measure what a Put takes with the
// server, bucket, access key and secret key, and scratch directory in it.
const memoryEnv = "CARGO_TEST_S3_MEMORY"

func TestMain(m *testing.M) {
	if settings := os.Getenv(memoryEnv); settings != "" {
		if err := measure(strings.Split(settings, " ")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// measure prints by how much the memory of this process grew at most while it
// put 100 MB, after it had put a little.
func measure(settings []string) error {
	const large = 100_000_000
	ctx := context.Background()
	s, err := s3store.Open(ctx, s3store.Options{
		Endpoint: settings[0], Bucket: settings[1], Credentials: &s3store.Credentials{Access: settings[2], Secret: settings[3]}, Scratch: settings[4],
	})
	if err != nil {
		return err
	}
	store := func(version string, size int64) error {
		_, err := s.Put(ctx, meta(version, build.NewID(), 1), artifact.PutOptions{}, func(w io.Writer) error {
			_, err := io.CopyN(w, rand.NewChaCha8([32]byte{1}), size)
			return err
		})
		return err
	}
	if err := store("little", 1000); err != nil {
		return err
	}
	before, err := memory("VmRSS:")
	if err != nil {
		return err
	}
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0o600); err != nil { // the peak starts here
		return err
	}
	if err := store("large", large); err != nil {
		return err
	}
	peak, err := memory("VmHWM:")
	fmt.Println(peak - before)
	return err
}

func memory(field string) (int64, error) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), field); ok {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n << 10, err
		}
	}
	return 0, errors.New("no " + field)
}

func TestPutMemory(t *testing.T) {
	server := s3test.Start(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), memoryEnv+"="+strings.Join([]string{server.Endpoint, server.Bucket, server.Access, server.Secret, t.TempDir()}, " "))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	added, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("putting 100 MB added %d KiB", added>>10)
	if added > 64<<20 {
		t.Errorf("putting 100 MB added %d MiB, want at most 64", added>>20)
	}
}
