package queue

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// The keys of the bucket "workers".
const (
	entryKey  = "entry." // and a name: announces a worker
	drainKey  = "drain." // and a name: whether that worker shall take builds; outlives its entry
	imageKey  = "image"  // digest of the image of the worker that joined last
	secretKey = "secret" // what CheckSecret compares with
)

// A fleet is the bucket "workers": what workers say of themselves, and what
// all processes of a queue have to agree on.
type fleet struct {
	store  *store
	stream jetstream.Stream
	kv     jetstream.KeyValue
}

var (
	errNoFleet = errors.New("no worker has ever joined")
	errBehind  = errors.New("the entry has changed meanwhile")
)

// fleet opens the bucket. If it is not there it is made, or it is errNoFleet.
func (q *Queue) fleet(ctx context.Context, create bool) (*fleet, error) {
	f := &fleet{store: q.store}
	name := q.store.prefix + "workers"
	config := q.store.liveConfig()
	config.Name, config.Subjects = "KV_"+name, []string{f.subject(">")}
	err := q.store.ask(ctx, func(ctx context.Context) (err error) {
		if create {
			f.stream, err = q.store.meetStream(ctx, config)
		} else if f.stream, err = q.store.js.Stream(ctx, config.Name); errors.Is(err, jetstream.ErrStreamNotFound) {
			return errNoFleet
		}
		if err == nil {
			f.kv, err = q.store.js.KeyValue(ctx, name)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open the bucket of the workers: %w", err)
	}
	return f, nil
}

// withFleet does something to the bucket, and again while the queue does not
// answer: do must know its own work again. doing is what it is in an error.
func (q *Queue) withFleet(ctx context.Context, create bool, doing string, do func(context.Context, *fleet) error) error {
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := q.patiently(within, func() error {
		f, err := q.fleet(within, create)
		if err != nil {
			return err
		}
		return do(within, f)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", doing, q.explain(err))
	}
	return nil
}

func (f *fleet) subject(key string) string { return "$KV." + f.store.prefix + "workers." + key }

// get returns ErrNotFound if key is not there.
func (f *fleet) get(ctx context.Context, key string) (*jetstream.RawStreamMsg, error) {
	m, err := f.store.last(ctx, f.stream, f.subject(key), 0)
	if err == nil && gone(m.Header) {
		return nil, ErrNotFound
	}
	return m, err
}

// put writes key if its revision is rev, 0 for none, else it is errBehind.
func (f *fleet) put(ctx context.Context, key string, data []byte, rev uint64) (now uint64, err error) {
	err = f.store.ask(ctx, func(ctx context.Context) (err error) {
		if rev == 0 {
			now, err = f.kv.Create(ctx, key, data)
		} else {
			now, err = f.kv.Update(ctx, key, data, rev)
		}
		return err
	})
	if errors.Is(err, jetstream.ErrKeyExists) || errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		err = errBehind
	}
	return now, err
}

// set writes key whatever is there.
func (f *fleet) set(ctx context.Context, key string, data []byte) error {
	return f.store.ask(ctx, func(ctx context.Context) error {
		_, err := f.kv.Put(ctx, key, data)
		return err
	})
}

// remove takes key away, unless its revision is not rev any more.
func (f *fleet) remove(ctx context.Context, key string, rev uint64) error {
	err := f.store.ask(ctx, func(ctx context.Context) error {
		return f.kv.Purge(ctx, key, jetstream.LastRevision(rev), jetstream.PurgeTTL(markerTTL))
	})
	if errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		return nil
	}
	return err
}
