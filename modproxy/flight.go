package modproxy

import (
	"context"
	"os"
	"sync"
)

// flights lets requests that want the same file share one fetch of it.
type flights struct {
	mu  sync.Mutex
	now map[string]*flight
}

// A flight is one fetch and those who want its file.
type flight struct {
	cancel context.CancelFunc
	users  int
	done   chan struct{} // closed when file and err are set
	file   *os.File
	err    error
}

// do returns the file that fetch makes, or has made for somebody else since
// the call began to run. It is shared: read it with ReadAt only, and call
// release, once, instead of closing it. fetch goes on while anybody wants its
// file; the last one to go cancels it and waits for it to return.
func (s *flights) do(ctx context.Context, name string, fetch func(context.Context) (*os.File, error)) (file *os.File, release func(), err error) {
	f := s.join(ctx, name, fetch)
	release = func() { s.leave(name, f) }
	select {
	case <-f.done:
		err = f.err
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		release()
		return nil, nil, err
	}
	return f.file, release, nil
}

func (s *flights) join(ctx context.Context, name string, fetch func(context.Context) (*os.File, error)) *flight {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.now[name]; f != nil {
		f.users++
		return f
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f := &flight{cancel: cancel, users: 1, done: make(chan struct{})}
	if s.now == nil {
		s.now = map[string]*flight{}
	}
	s.now[name] = f
	go func() {
		defer close(f.done)
		f.file, f.err = fetch(ctx)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.forget(name, f)
	}()
	return f
}

func (s *flights) leave(name string, f *flight) {
	s.mu.Lock()
	f.users--
	last := f.users == 0
	if last {
		s.forget(name, f)
	}
	s.mu.Unlock()
	if !last {
		return
	}
	f.cancel()
	<-f.done
	if f.file != nil {
		f.file.Close()
	}
}

func (s *flights) forget(name string, f *flight) {
	if s.now[name] == f {
		delete(s.now, name)
	}
}
