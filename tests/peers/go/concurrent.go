package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// Eight clients that publish, subscribe and fetch all at once.

const (
	clients           = 8
	publishesEach     = 1000
	inFlightEach      = 25 // well below a subscriber's buffer: nobody is cut for being slow
	publishesTogether = clients * publishesEach
)

func concurrentOnOne(ctx context.Context, t *trial) error {
	return concurrent(ctx, t, []string{t.subject()})
}

func concurrentOnMany(ctx context.Context, t *trial) error {
	var subjects []string
	for range clients {
		subjects = append(subjects, t.subject())
	}
	return concurrent(ctx, t, subjects)
}

// bodies are what was acknowledged in one subject, by id.
type bodies struct {
	mutex sync.Mutex
	byID  map[int64][]byte
}

func (b *bodies) add(id int64, body []byte) error {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	if other, taken := b.byID[id]; taken {
		return fmt.Errorf("id %d was given to %q and to %q", id, other, body)
	}
	b.byID[id] = body
	return nil
}

// concurrent lets every client publish to all subjects in turn, fetch what it has published, and follow one subject.
func concurrent(ctx context.Context, t *trial, subjects []string) error {
	acknowledged := make([]bodies, len(subjects))
	for i := range acknowledged {
		acknowledged[i].byID = map[int64][]byte{}
	}
	work := newWork(ctx)
	publishers := make([]*client, clients)
	delivered := make([][][]byte, clients)
	for number := range clients { // all listen before the first publishes: nobody misses anything
		c, err := t.client()
		if err != nil {
			return err
		}
		s, err := c.subscribe(work.ctx, subjects[number%len(subjects)])
		if err != nil {
			return err
		}
		publishers[number] = c
		work.do(func() (err error) {
			delivered[number], err = receive(s, publishesTogether/len(subjects))
			return err
		})
	}
	for number, c := range publishers {
		publishFrom(work, c, number, subjects, acknowledged)
	}
	if err := work.wait(); err != nil {
		return err
	}
	for number, got := range delivered {
		for i, body := range got {
			if want := acknowledged[number%len(subjects)].byID[int64(i)+1]; !bytes.Equal(body, want) {
				return fmt.Errorf("id %d was delivered as %q and acknowledged for %q", i+1, body, want)
			}
		}
	}
	return nil
}

// receive returns the bodies of the messages 1 to count.
func receive(s *subscription, count int) (bodies [][]byte, err error) {
	for id := range int64(count) {
		message, err := s.expect(id + 1)
		if err != nil {
			return nil, err
		}
		bodies = append(bodies, message.GetBody())
	}
	return bodies, nil
}

// publishFrom publishes a client's share, with several calls in flight, and fetches each message as soon as it has an id.
func publishFrom(work *work, c *client, number int, subjects []string, acknowledged []bodies) {
	var next atomic.Int64
	for range inFlightEach {
		work.do(func() error {
			for i := next.Add(1) - 1; i < publishesEach; i = next.Add(1) - 1 {
				place := (int(i) + number) % len(subjects)
				body := fmt.Appendf(nil, "%d of client %d", i, number)
				id, err := c.publish(work.ctx, subjects[place], body, hour)
				if err != nil {
					return err
				}
				message, err := c.fetch(work.ctx, subjects[place], id)
				if err != nil || !bytes.Equal(message.GetBody(), body) {
					return errors.Join(err, fmt.Errorf("id %d is %q, and was fetched as %q", id, body, message.GetBody()))
				}
				if err := acknowledged[place].add(id, body); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

// work is goroutines of which the first failure cancels all.
type work struct {
	ctx     context.Context
	cancel  context.CancelCauseFunc
	running sync.WaitGroup
}

func newWork(ctx context.Context) *work {
	ctx, cancel := context.WithCancelCause(ctx)
	return &work{ctx: ctx, cancel: cancel}
}

func (w *work) do(task func() error) {
	w.running.Go(func() {
		if err := task(); err != nil {
			w.cancel(err) // only the first call counts
		}
	})
}

// wait returns the first failure when all have ended.
func (w *work) wait() error {
	w.running.Wait()
	return context.Cause(w.ctx)
}
