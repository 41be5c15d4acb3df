package containerd_test

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os/exec"
	"testing"

	"github.com/monochromegane/cargo/executor/containerd"
)

// A shim that was being started when its server was killed is in no list of
// containerd's. Reap knows it by its arguments, and no other's.
func TestReapEndsLostShims(t *testing.T) {
	address := daemon(t)
	const owner = "lost-shims"
	e := open(t, containerd.Options{Address: address, Owner: owner})
	own, ownInput := shim(t, owner)
	other, _ := shim(t, "somebody-else")
	if _, err := e.Reap(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = ownInput.Close() // one that still lives ends by itself now, with a status
	if err := own.Wait(); err == nil || own.ProcessState.ExitCode() != -1 {
		t.Errorf("the lost shim ended with %v, want to be killed", err)
	}
	if err := other.Process.Kill(); err != nil {
		t.Errorf("the shim of another owner is gone: %v", err)
	}
	_ = other.Wait()
}

// shim starts a process with the arguments of a shim of the owner; it waits for
// its input, which ends with the test.
func shim(t *testing.T, owner string) (*exec.Cmd, io.Closer) {
	t.Helper()
	sum := sha256.Sum256([]byte(owner))
	cmd := exec.CommandContext(t.Context(), "/bin/sh")
	cmd.Args = []string{"containerd-shim-runc-v2", "-c", "read x", "-namespace", testNamespace, "-id", hex.EncodeToString(sum[:4]) + "-step-1"}
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, input
}
