package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Unary calls, by grpc-go.

type client struct {
	connections []*grpc.ClientConn
}

func connect(o options, connections int) (*client, error) {
	c := &client{}
	for range connections {
		connection, err := grpc.NewClient("passthrough:///"+o.address,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})))
		if err != nil {
			return nil, err
		}
		c.connections = append(c.connections, connection)
	}
	return c, nil
}

func (c *client) close() {
	for _, connection := range c.connections {
		_ = connection.Close()
	}
}

func invoke(o options, connection *grpc.ClientConn, method string, request []byte) ([]byte, error) {
	ctx := context.Background()
	if o.deadline > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.deadline)
		defer cancel()
	}
	var response []byte
	err := connection.Invoke(ctx, method, request, &response)
	return response, err
}

func publishOne(o options, connection *grpc.ClientConn, body []byte) (int64, error) {
	response, err := invoke(o, connection, publishMethod, publishRequest(o.subject, body, o.expiration))
	if err != nil {
		return 0, err
	}
	return publishedID(response)
}

// callers run calls until they are stopped or one call fails.
type callers struct {
	stopped atomic.Bool
	running sync.WaitGroup
	mutex   sync.Mutex
	failed  error
}

// loop calls over and over, one call after another.
func (c *callers) loop(call func() error) {
	c.running.Go(func() {
		for !c.stopped.Load() {
			c.note(call())
		}
	})
}

// once calls once, beside everything else.
func (c *callers) once(call func() error) {
	c.running.Go(func() { c.note(call()) })
}

// note keeps the first failure, which stops all.
func (c *callers) note(err error) {
	if err == nil {
		return
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if !c.stopped.Swap(true) {
		c.failed = err
	}
}

// stop lets the calls in flight end and returns the first failure.
func (c *callers) stop() error {
	c.stopped.Store(true)
	c.running.Wait()
	return c.failed
}

// publish is the closed loop: each caller sends the next message when it has the last one's id.
func publish(o options) (result, error) {
	c, err := connect(o, o.connections)
	if err != nil {
		return result{}, err
	}
	defer c.close()
	var ids idSet
	var meter meter
	var callers callers
	for i := range o.connections * o.callers {
		connection := c.connections[i%o.connections]
		callers.loop(func() error {
			began := time.Now()
			id, err := publishOne(o, connection, stampedBody(o.bodyBytes))
			if err == nil {
				ids.add(id)
				meter.took(time.Since(began))
				meter.count(1)
			}
			return err
		})
	}
	measured, err := meter.measure(o)
	return measured, errors.Join(callers.stop(), err, ids.check())
}

// fetch publishes some messages, then lets each caller fetch random ones of them.
func fetch(o options) (result, error) {
	const messages = 2000
	c, err := connect(o, o.connections)
	if err != nil {
		return result{}, err
	}
	defer c.close()
	bodies := make([][]byte, messages+1)
	for id := int64(1); id <= messages; id++ {
		bodies[id] = stampedBody(o.bodyBytes)
		if got, err := publishOne(o, c.connections[0], bodies[id]); err != nil || got != id {
			return result{}, errors.Join(err, fmt.Errorf("message %d got id %d", id, got))
		}
	}
	var meter meter
	var callers callers
	for i := range o.connections * o.callers {
		connection := c.connections[i%o.connections]
		callers.loop(func() error {
			id := rand.Int64N(messages) + 1
			began := time.Now()
			response, err := invoke(o, connection, fetchMethod, fetchRequest(o.subject, id))
			if err != nil {
				return err
			}
			meter.took(time.Since(began))
			meter.count(1)
			got, body, err := deliveredMessage(response)
			if err == nil && (got != id || !bytes.Equal(body, bodies[id])) {
				err = fmt.Errorf("fetch of %d returned %d, or another body", id, got)
			}
			return err
		})
	}
	measured, err := meter.measure(o)
	return measured, errors.Join(callers.stop(), err)
}

// latency is the open loop: calls begin when they are due, whether or not earlier ones have ended, and their time
// counts from when they were due.
func latency(o options) (result, error) {
	c, err := connect(o, o.connections)
	if err != nil {
		return result{}, err
	}
	defer c.close()
	var ids idSet
	var meter meter
	var callers callers
	callers.once(func() error {
		runtime.LockOSThread() // Go's own timers are up to a millisecond late in an idle program
		begin := time.Now()
		for i := 0; !callers.stopped.Load(); i++ {
			due := begin.Add(time.Duration(i) * time.Second / time.Duration(o.rate))
			wait := unix.NsecToTimespec(max(time.Until(due).Nanoseconds(), 0))
			_ = unix.Nanosleep(&wait, nil) // a signal may cut it short: then this call is early
			callers.once(func() error {
				id, err := publishOne(o, c.connections[i%o.connections], stampedBody(o.bodyBytes))
				if err == nil {
					ids.add(id)
					meter.took(time.Since(due))
					meter.count(1)
				}
				return err
			})
		}
		return nil
	})
	measured, err := meter.measure(o)
	return measured, errors.Join(callers.stop(), err, ids.check())
}

// idSet collects the ids of one subject.
type idSet struct {
	mutex sync.Mutex
	ids   []int64
}

func (s *idSet) add(id int64) {
	s.mutex.Lock()
	s.ids = append(s.ids, id)
	s.mutex.Unlock()
}

// check tells whether the ids are 1, 2, 3 and so on, each once.
func (s *idSet) check() error {
	slices.Sort(s.ids)
	for i, id := range s.ids {
		if id != int64(i)+1 {
			return fmt.Errorf("ids are not 1 to %d, each once: %d stands at place %d", len(s.ids), id, i+1)
		}
	}
	return nil
}

// idRange is ids one after the other.
type idRange struct{ first, count int64 }

// rangeSet collects the ids of one subject.
type rangeSet struct {
	mutex  sync.Mutex
	ranges []idRange
}

func (s *rangeSet) add(first, count int64) {
	s.mutex.Lock()
	s.ranges = append(s.ranges, idRange{first, count})
	s.mutex.Unlock()
}

// check tells whether the ids are 1, 2, 3 and so on, each once.
func (s *rangeSet) check() error {
	slices.SortFunc(s.ranges, func(a, b idRange) int { return int(a.first - b.first) })
	next := int64(1)
	for _, r := range s.ranges {
		if r.first != next {
			return fmt.Errorf("id %d follows %d", r.first, next-1)
		}
		next += r.count
	}
	return nil
}
