package buildlog

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/monochromegane/cargo/build"
)

// closePatience is how long Close of a Writer waits for what is left to be
// shipped. Keep goes on with it.
const closePatience = 5 * time.Second

// A shipper copies the file of one log into the stream, one message at a time.
// It holds one batch in memory; how far it lags behind the file does not matter.
type shipper struct {
	live    *live
	id      build.ID
	attempt int
	file    *os.File
	buf     []byte

	placed bool   // what follows is known
	seq    uint64 // of the last message in the stream
	offset int64  // of what comes next

	log    *slog.Logger
	grown  func() <-chan struct{} // is closed when there is more in the file
	stop   chan struct{}          // closed when no more will come
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// start ships what is in the file, and what will be, until finish.
func (p *shipper) start(ctx context.Context) {
	ctx, p.cancel = context.WithCancel(context.WithoutCancel(ctx))
	p.stop = make(chan struct{})
	p.wg.Go(func() { p.run(ctx) })
}

// finish gives it some time for what is left and waits for its end.
func (p *shipper) finish() {
	close(p.stop)
	defer time.AfterFunc(closePatience, p.cancel).Stop()
	p.wg.Wait()
	p.cancel()
}

func (p *shipper) run(ctx context.Context) {
	defer p.file.Close()
	pause := time.Duration(0) // between tries; 0 as long as all goes well
	for {
		grown := p.grown() // before the file is looked at
		last := false
		select {
		case <-p.stop:
			last = true
		default:
		}
		err := p.ship(ctx)
		switch {
		case err == nil && last, ctx.Err() != nil:
			return
		case err == nil:
			if pause > 0 {
				p.log.Info("a build's log is shipped again", "build", p.id)
			}
			pause = 0
			select {
			case <-grown:
			case <-p.stop:
			}
		case passing(err):
			if pause == 0 && !errors.Is(err, errConflict) {
				p.log.Warn("a build's log cannot be shipped: its followers wait", "build", p.id, "err", err)
			}
			pause = min(max(2*pause, minPause), maxPause)
			if !rest(ctx, pause) {
				return
			}
		case errors.Is(err, ErrSuperseded):
			p.log.Info("a build's log is shipped no longer", "build", p.id, "attempt", p.attempt, "err", err)
			return
		default:
			p.log.Error("a build's log is shipped no longer", "build", p.id, "attempt", p.attempt, "err", err)
			return
		}
	}
}

// ship writes all whole lines that are in the file.
func (p *shipper) ship(ctx context.Context) error {
	for {
		if more, err := p.batch(ctx); err != nil || !more {
			return err
		}
	}
}

// batch writes the next message; more is false if there is no whole line left.
func (p *shipper) batch(ctx context.Context) (more bool, err error) {
	if err := p.place(ctx); err != nil {
		return false, err
	}
	if p.buf == nil {
		p.buf = make([]byte, maxBatch)
	}
	buf := p.buf[:p.live.batch()]
	n, err := p.file.ReadAt(buf, p.offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	end := bytes.LastIndexByte(buf[:n], '\n') + 1
	if end == 0 && n == len(buf) {
		end = n // a part of a line that is too long for one message
	}
	if end == 0 {
		return false, nil
	}
	return true, p.put(ctx, message{kind: kindLines, data: buf[:end]})
}

// put writes m at the present place. After any error it is unknown whether it
// was written, and place looks.
func (p *shipper) put(ctx context.Context, m message) error {
	m.attempt, m.offset = p.attempt, p.offset
	seq, err := p.live.put(ctx, p.id, p.seq, m)
	if err != nil {
		p.placed = false
		return err
	}
	p.seq, p.offset = seq, m.end()
	return nil
}

// place finds out where to go on: behind the last message, unless that is of
// somebody who came after this attempt.
func (p *shipper) place(ctx context.Context) error {
	if p.placed {
		return nil
	}
	last, err := p.live.last(ctx, p.id)
	if err != nil {
		return err
	}
	if last.shut(p.attempt) {
		return ErrSuperseded
	}
	p.placed, p.seq, p.offset = true, last.seq, last.end()
	return nil
}
