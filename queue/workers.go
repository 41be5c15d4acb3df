package queue

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Errors about workers, wrapped.
var (
	ErrNameTaken = errors.New("another worker has this name")
	ErrNoWorker  = errors.New("no such worker")
)

const (
	// vanish is how long a worker that says nothing is still listed.
	vanish = 10 * time.Minute

	maxWorkerText = 512 // bytes of what else a worker says of itself
)

// A Worker is what a worker says of itself, and what the queue knows of it.
type Worker struct {
	Name        string            `json:"name"` // letters, digits, dots, dashes and underscores; nobody else's
	Host        string            `json:"host,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`   // as ParseLabels allows
	Executor    string            `json:"executor,omitempty"` // containerd or docker
	Version     string            `json:"version,omitempty"`
	Concurrency int               `json:"concurrency"`
	Running     int               `json:"running"`
	Image       string            `json:"image,omitempty"` // as it was asked for
	ImageDigest string            `json:"image_digest,omitempty"`
	Started     time.Time         `json:"started"`

	Draining bool `json:"-"` // it takes no more builds, as Drain has it

	// Silent is how long ago it was heard of, by the clock of the server that
	// keeps the queue, which notes when it has got something. An observer that
	// has just come has nothing else to go by. Where that clock jumps, or
	// another server of a cluster takes over with another clock, it is wrong
	// until the worker is heard again. It is for people to look at; what takes builds
	// from a silent worker is their lease.
	Silent time.Duration `json:"-"`
}

// check says what about w cannot be announced.
func (w Worker) check() error {
	if !plain(w.Name, maxName) {
		return fmt.Errorf("the name %.150q is not plain: it is up to %d letters, digits, dots, dashes and underscores", w.Name, maxName)
	}
	for what, s := range map[string]string{"host": w.Host, "executor": w.Executor, "version": w.Version, "image": w.Image, "image digest": w.ImageDigest} {
		if len(s) > maxWorkerText {
			return fmt.Errorf("its %s has %d bytes; it may have %d", what, len(s), maxWorkerText)
		}
	}
	return checkLabels(w.Labels)
}

// An announcement is what is stored of a worker.
type announcement struct {
	Form int `json:"v"`
	Worker
	Instance string        `json:"instance"` // of Join; another process with the same name has another
	Process  process       `json:"process"`
	Every    time.Duration `json:"every"` // between renewals, in nanoseconds
}

// A drain is the answer to whether a worker shall take no more builds. It is
// not removed when that is over: of two answers the one with the higher
// revision counts, whichever is heard first.
type drain struct {
	On bool `json:"on"`
}

// Workers are those that have been heard of in the last ten minutes, by name.
func (q *Queue) Workers(ctx context.Context) (all []Worker, err error) {
	err = q.withFleet(ctx, false, "list the workers", func(ctx context.Context, f *fleet) error {
		entries, drained, now, err := f.list(ctx)
		all = q.listed(entries, drained, now)
		return err
	})
	if errors.Is(err, errNoFleet) {
		return nil, nil
	}
	return all, err
}

func (q *Queue) listed(entries []found, drained map[string]bool, now time.Time) (all []Worker) {
	for _, e := range entries {
		w, err := e.worker(now)
		if err != nil {
			q.log.Warn("unreadable entry of a worker", "key", e.key, "err", err)
			continue
		}
		w.Draining = drained[w.Name]
		if w.Silent < vanish {
			all = append(all, w)
		}
	}
	slices.SortFunc(all, func(a, b Worker) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// A found entry is one as it stands in the bucket.
type found struct {
	key  string
	data []byte
	rev  uint64
	at   time.Time // when the server got it
}

func (e found) worker(now time.Time) (Worker, error) {
	var parsed announcement
	if err := json.Unmarshal(e.data, &parsed); err != nil {
		return Worker{}, err
	}
	if err := parsed.check(); err != nil {
		return Worker{}, err
	}
	w := parsed.Worker
	w.Silent = max(0, now.Sub(e.at))
	return w, nil
}

// list reads all entries, who is to be drained, and the server's clock.
func (f *fleet) list(ctx context.Context) (entries []found, drained map[string]bool, now time.Time, err error) {
	info, err := f.store.info(ctx, f.stream, jetstream.WithSubjectFilter(f.subject(">")))
	if err != nil {
		return nil, nil, time.Time{}, err
	}
	drained = map[string]bool{}
	for subject := range info.State.Subjects {
		key := strings.TrimPrefix(subject, f.subject(""))
		name, isDrain := strings.CutPrefix(key, drainKey)
		if !isDrain && !strings.HasPrefix(key, entryKey) {
			continue
		}
		m, err := f.get(ctx, key)
		if errors.Is(err, ErrNotFound) {
			continue // it has just left
		}
		if err != nil {
			return nil, nil, time.Time{}, err
		}
		if isDrain {
			var d drain
			drained[name] = json.Unmarshal(m.Data, &d) == nil && d.On
			continue
		}
		entries = append(entries, found{key: key, data: m.Data, rev: m.Sequence, at: m.Time})
	}
	return entries, drained, info.TimeStamp, nil
}

// forget removes the entries of workers that are not listed any more.
func (f *fleet) forget(ctx context.Context, silent time.Duration) error {
	entries, _, now, err := f.list(ctx)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if now.Sub(e.at) < silent {
			continue
		}
		if err := f.remove(ctx, e.key, e.rev); err != nil {
			return err
		}
	}
	return nil
}

// Drain lets the worker of that name finish what it has and take no more
// builds; or, if on is false, take builds again. It also holds for the worker
// after it was started anew. ErrNoWorker if there is none of that name.
func (q *Queue) Drain(ctx context.Context, name string, on bool) error {
	doing := fmt.Sprintf("drain worker %.150q", name)
	if !plain(name, maxName) {
		return fmt.Errorf("%s: %w: that is not the name of one", doing, ErrNoWorker)
	}
	err := q.withFleet(ctx, false, doing, func(ctx context.Context, f *fleet) error {
		_, err := f.get(ctx, entryKey+name)
		if errors.Is(err, ErrNotFound) {
			_, err = f.get(ctx, drainKey+name) // it is away, and was here before
		}
		if err != nil {
			return err
		}
		data, err := json.Marshal(drain{On: on})
		if err != nil {
			return err
		}
		return f.set(ctx, drainKey+name, data)
	})
	if errors.Is(err, ErrNotFound) || errors.Is(err, errNoFleet) {
		return fmt.Errorf("%s: %w; `cargo queue status` lists them", doing, ErrNoWorker)
	}
	return err
}

// Image is the digest of the builder image of the worker that joined last,
// also when all are gone, or "" if none has ever joined.
func (q *Queue) Image(ctx context.Context) (digest string, err error) {
	err = q.withFleet(ctx, false, "read which image the workers use", func(ctx context.Context, f *fleet) error {
		m, err := f.get(ctx, imageKey)
		if err == nil {
			digest = string(m.Data)
		}
		return err
	})
	if errors.Is(err, ErrNotFound) || errors.Is(err, errNoFleet) {
		return "", nil
	}
	return digest, err
}
