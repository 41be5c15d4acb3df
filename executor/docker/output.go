package docker

import (
	"fmt"
	"io"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"
)

// drainTimeout is how long the daemon may take to hand over what it holds of
// the output of a command that has ended, a few MB at most.
const drainTimeout = time.Minute

// An output copies what a container writes, until that ends or close is called.
type output struct {
	stream         client.ContainerAttachResult
	stdout, stderr sink
	done           chan struct{}
	err            error // valid once done is closed
}

func copyOutput(stream client.ContainerAttachResult, stdout, stderr io.Writer) *output {
	o := &output{stream: stream, stdout: sink{w: stdout}, stderr: sink{w: stderr}, done: make(chan struct{})}
	go func() {
		defer close(o.done)
		_, o.err = stdcopy.StdCopy(&o.stdout, &o.stderr, stream.Reader)
	}()
	return o
}

// drain waits for the end of the output of a container that has ended.
func (o *output) drain() error {
	timer := time.NewTimer(drainTimeout)
	defer timer.Stop()
	select {
	case <-o.done:
		return o.err
	case <-timer.C:
		return fmt.Errorf("no end of it %v after the command has ended", drainTimeout)
	}
}

func (o *output) close() {
	o.stream.Close()
	<-o.done
}

// A sink writes to w until that fails, and drops the rest: a command whose
// output nobody takes would hang. The error is the business of whoever owns w.
type sink struct{ w io.Writer }

func (s *sink) Write(p []byte) (int, error) {
	if s.w != nil {
		if _, err := s.w.Write(p); err != nil {
			s.w = nil
		}
	}
	return len(p), nil
}
