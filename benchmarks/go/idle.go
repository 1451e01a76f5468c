package main

import (
	"time"
)

// idle opens subscriptions that nobody publishes to and measures by how much the server has grown.
func idle(o options) (result, error) {
	first, err := subscribe(o, 1, streamCredit, &meter{}, func() {}) // what a server loads or makes for its first stream is not counted
	if err != nil {
		return result{}, err
	}
	defer first.close()
	before, err := residentBytes(o.pid)
	if err != nil {
		return result{}, err
	}
	began := time.Now()
	for _, streams := range shares(o.subscribers, o.connections) {
		connection, subscribeErr := subscribe(o, streams, streamCredit, &meter{}, func() {})
		if subscribeErr != nil {
			return result{}, subscribeErr
		}
		defer connection.close()
	}
	after, err := residentBytes(o.pid)
	return result{
		Calls: int64(o.subscribers), Seconds: time.Since(began).Seconds(),
		BytesPerStream: float64(after-before) / float64(o.subscribers),
	}, err
}
