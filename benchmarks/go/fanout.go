package main

import (
	"errors"
	"sync"
)

// backlog is how many messages the slowest subscriber may be behind before publishers wait. It keeps every server
// below the point where it has to cut slow subscribers: how fast the load generator reads is not what is measured.
const backlog = 512

// fanOut has many subscribers on one subject, and publishers with a window of calls in flight. Each subscriber gets
// the ids from 1 on without a hole, or the run has failed; the gate sees to it that none lags behind unnoticed.
func fanOut(o options) (result, error) {
	var meter meter
	gate := newGate()
	var readers callers
	for _, streams := range shares(o.subscribers, o.connections) {
		connection, err := subscribe(o, streams, streamCredit, &meter, gate.advanced)
		if err != nil {
			return result{}, err
		}
		defer connection.close()
		gate.connections = append(gate.connections, connection)
	}
	for _, connection := range gate.connections {
		readers.once(connection.read)
	}
	measured, err := publishThrough(gate, o, &meter)
	readers.stopped.Store(true) // from here on, a connection that ends is no failure
	for _, connection := range gate.connections {
		connection.close()
	}
	return measured, errors.Join(readers.stop(), err)
}

func publishThrough(gate *gate, o options, meter *meter) (result, error) {
	c, err := connect(o, min(o.window, o.connections))
	if err != nil {
		return result{}, err
	}
	defer c.close()
	var ids idSet
	var callers callers
	for i := range o.window {
		connection := c.connections[i%len(c.connections)]
		callers.loop(func() error {
			if !gate.enter() {
				return nil
			}
			id, err := publishOne(o, connection, stampedBody(o.bodyBytes))
			if err == nil {
				ids.add(id)
			}
			return err
		})
	}
	measured, err := meter.measure(o)
	callers.stopped.Store(true)
	gate.close()
	return measured, errors.Join(callers.stop(), err, ids.check())
}

// shares divides a total over connections as evenly as it goes, and leaves none without.
func shares(total, connections int) []int {
	connections = min(connections, total)
	each := make([]int, connections)
	for i := range total {
		each[i%connections]++
	}
	return each
}

// gate holds publishers back while the slowest subscriber is a backlog behind.
type gate struct {
	connections []*subscriptions
	mutex       sync.Mutex
	changed     sync.Cond
	published   int64
	closed      bool
}

func newGate() *gate {
	g := &gate{}
	g.changed.L = &g.mutex
	return g
}

// enter waits until one more message may be published; false: the run is over.
func (g *gate) enter() bool {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	for !g.closed && g.published-g.slowest() >= backlog {
		g.changed.Wait()
	}
	g.published++
	return !g.closed
}

func (g *gate) advanced() {
	g.mutex.Lock() // so that nobody is between looking and waiting
	defer g.mutex.Unlock()
	g.changed.Broadcast()
}

func (g *gate) close() {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	g.closed = true
	g.changed.Broadcast()
}

func (g *gate) slowest() int64 {
	slowest := g.connections[0].lowest.Load()
	for _, connection := range g.connections {
		slowest = min(slowest, connection.lowest.Load())
	}
	return slowest
}
