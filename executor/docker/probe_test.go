package docker_test

import (
	"testing"

	"github.com/monochromegane/cargo/executor/executortest"
)

func TestProbeFiles(t *testing.T) {
	requireDocker(t)
	executortest.TestProbeFiles(t, harness)
}
