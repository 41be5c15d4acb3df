package modproxy

import (
	"context"
	"io"
	"sync"
)

// flights let calls that want the same thing share one making of it.
type flights[T io.Closer] struct {
	mu  sync.Mutex
	now map[string]*flight[T]
}

// A flight is one making and those who want what it makes.
type flight[T io.Closer] struct {
	cancel context.CancelFunc
	users  int
	done   chan struct{} // closed when value and err are set
	value  T
	err    error
}

// do returns what fetch makes, or has made for somebody else since the call
// began to run. It is shared, and closed when the last who has it calls
// release, which each does once. fetch goes on while anybody wants its value;
// the last one to go cancels it and waits for it to return.
func (s *flights[T]) do(ctx context.Context, name string, fetch func(context.Context) (T, error)) (value T, release func(), err error) {
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
		return value, nil, err
	}
	return f.value, release, nil
}

func (s *flights[T]) join(ctx context.Context, name string, fetch func(context.Context) (T, error)) *flight[T] {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.now[name]; f != nil {
		f.users++
		return f
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f := &flight[T]{cancel: cancel, users: 1, done: make(chan struct{})}
	if s.now == nil {
		s.now = map[string]*flight[T]{}
	}
	s.now[name] = f
	go func() {
		defer close(f.done)
		f.value, f.err = fetch(ctx)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.forget(name, f)
	}()
	return f
}

func (s *flights[T]) leave(name string, f *flight[T]) {
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
	if f.err == nil {
		f.value.Close()
	}
}

func (s *flights[T]) forget(name string, f *flight[T]) {
	if s.now[name] == f {
		delete(s.now, name)
	}
}
