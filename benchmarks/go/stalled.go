package main

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// stalledFill is published first: more than a server keeps for a subscriber that does not read.
const stalledFill = 1500

// wakeCredit lets a server send a subscriber all that it has missed.
const wakeCredit = 1 << 28

// stalled has subscribers that read, and beside them some that read nothing, while messages are published at a fixed
// rate. How long these take to those that read is what counts, from when each was due. In the end the others read, too:
// each has to get every id in order, or the run has failed.
func stalled(o options) (result, error) {
	var counted, late meter
	var readers callers
	var healthy, asleep []*subscriptions
	for _, group := range []struct {
		total  int
		credit uint32
		meter  *meter
		into   *[]*subscriptions
	}{{o.subscribers, streamCredit, &counted, &healthy}, {o.stalled, 0, &late, &asleep}} {
		if group.total == 0 {
			continue
		}
		for _, streams := range shares(group.total, o.connections) {
			connection, err := subscribe(o, streams, group.credit, group.meter, func() {})
			if err != nil {
				return result{}, err
			}
			defer connection.close()
			*group.into = append(*group.into, connection)
		}
	}
	for _, connection := range healthy {
		readers.once(connection.read)
	}
	measured, last, err := publishAtRate(o, &counted)
	if err == nil {
		err = awaitAll(&readers, healthy, last)
	}
	if err == nil {
		for _, connection := range asleep {
			err = errors.Join(err, connection.wake())
			readers.once(connection.read)
		}
		err = errors.Join(err, awaitAll(&readers, asleep, last))
	}
	readers.stopped.Store(true) // from here on, a connection that ends is no failure
	for _, connection := range append(healthy, asleep...) {
		connection.close()
	}
	return measured, errors.Join(err, readers.stop())
}

// publishAtRate fills buffers, then publishes when each message is due; it returns the last id.
func publishAtRate(o options, meter *meter) (result, int64, error) {
	c, err := connect(o, o.connections)
	if err != nil {
		return result{}, 0, err
	}
	defer c.close()
	var ids idSet
	var callers callers
	publish := func(i int, due time.Time) error {
		id, err := publishOne(o, c.connections[i%o.connections], bodyStampedAt(due, o.bodyBytes))
		if err == nil {
			ids.add(id)
		}
		return err
	}
	for i := range stalledFill {
		if err := publish(i, time.Now()); err != nil {
			return result{}, 0, err
		}
	}
	callers.once(func() error {
		runtime.LockOSThread() // as in latency
		begin := time.Now()
		for i := 0; !callers.stopped.Load(); i++ {
			due := begin.Add(time.Duration(i) * time.Second / time.Duration(o.rate))
			wait := unix.NsecToTimespec(max(time.Until(due).Nanoseconds(), 0))
			_ = unix.Nanosleep(&wait, nil)
			callers.once(func() error { return publish(i, due) })
		}
		return nil
	})
	measured, err := meter.measure(o)
	err = errors.Join(callers.stop(), err, ids.check())
	return measured, int64(len(ids.ids)), err
}

// awaitAll waits until every subscriber has all ids up to the last.
func awaitAll(readers *callers, connections []*subscriptions, last int64) error {
	deadline := time.Now().Add(30 * time.Second)
	for _, connection := range connections {
		for connection.lowest.Load() < last {
			if readers.stopped.Load() {
				return errors.New("a subscription failed")
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("a subscriber has not got more than %d of %d messages", connection.lowest.Load(), last)
			}
			time.Sleep(time.Millisecond)
		}
	}
	return nil
}
