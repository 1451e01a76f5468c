package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
)

// Many messages at a time: PublishBatch and PublishStream.

const (
	batchMethod  = "/broker.Broker/PublishBatch"
	streamMethod = "/broker.Broker/PublishStream"
)

// manyRequest is a PublishBatchRequest, or a PublishStreamRequest: their messages have the same number.
func manyRequest(o options) []byte {
	message := publishRequest(o.subject, make([]byte, o.bodyBytes), o.expiration)
	var request []byte
	for range o.batch {
		request = protowire.AppendTag(request, 1, protowire.BytesType)
		request = protowire.AppendBytes(request, message)
	}
	return request
}

// publishBatches is the closed loop: each caller sends its next batch when it has the last one's ids.
func publishBatches(o options) (result, error) {
	c, err := connect(o, o.connections)
	if err != nil {
		return result{}, err
	}
	defer c.close()
	request := manyRequest(o)
	var ids rangeSet
	var meter meter
	var callers callers
	for i := range o.connections * o.callers {
		connection := c.connections[i%o.connections]
		callers.loop(func() error {
			began := time.Now()
			response, err := invoke(o, connection, batchMethod, request)
			if err != nil {
				return err
			}
			meter.took(time.Since(began))
			results := 0
			err = eachMessage(response, func(resultMessage []byte) error {
				published, err := publishedOf(resultMessage)
				if err != nil {
					return err
				}
				id, err := publishedID(published)
				results++
				ids.add(id, 1)
				return err
			})
			if err == nil && results != o.batch {
				err = fmt.Errorf("%d results of %d messages", results, o.batch)
			}
			meter.count(int64(results))
			return err
		})
	}
	measured, err := meter.measure(o)
	return measured, errors.Join(callers.stop(), err, ids.check())
}

// publishStreams keeps a window of requests on their way on each stream.
func publishStreams(o options) (result, error) {
	c, err := connect(o, o.connections)
	if err != nil {
		return result{}, err
	}
	defer c.close()
	request := manyRequest(o)
	var ids rangeSet
	var meter meter
	var callers callers
	description := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	for i := range o.connections {
		stream, err := c.connections[i].NewStream(context.Background(), description, streamMethod)
		if err != nil {
			return result{}, err
		}
		sent := make(chan time.Time, o.window)
		callers.once(func() error {
			defer close(sent)
			for !callers.stopped.Load() {
				sent <- time.Now() // waits while the window is full
				if err := stream.SendMsg(request); err != nil {
					return err
				}
			}
			return stream.CloseSend()
		})
		callers.once(func() error {
			left := 0 // messages of the oldest request that are not acknowledged
			var began time.Time
			for {
				if left == 0 {
					var open bool
					if began, open = <-sent; !open {
						return nil
					}
					left = o.batch
				}
				var response []byte
				if err := stream.RecvMsg(&response); err != nil {
					return fmt.Errorf("%d messages of a request are not acknowledged: %w", left, err)
				}
				err := eachMessage(response, func(ack []byte) error {
					count, first, err := ackOf(ack)
					if err != nil {
						return err
					}
					ids.add(first, count)
					meter.count(count)
					for left -= int(count); left <= 0; left += o.batch {
						meter.took(time.Since(began))
						if left == 0 {
							break
						}
						began = <-sent
					}
					return nil
				})
				if err != nil {
					return err
				}
			}
		})
	}
	measured, err := meter.measure(o)
	return measured, errors.Join(callers.stop(), err, ids.check())
}

// eachMessage calls do for each element of a repeated message field with number 1.
func eachMessage(data []byte, do func([]byte) error) error {
	for len(data) > 0 {
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 || number != 1 || kind != protowire.BytesType {
			return errMalformed
		}
		element, m := protowire.ConsumeBytes(data[n:])
		if m < 0 {
			return errMalformed
		}
		data = data[n+m:]
		if err := do(element); err != nil {
			return err
		}
	}
	return nil
}

// publishedOf returns the PublishResponse of a PublishResult.
func publishedOf(message []byte) ([]byte, error) {
	number, _, n := protowire.ConsumeTag(message)
	if n < 0 || number != 1 {
		return nil, fmt.Errorf("a message failed: %q", message)
	}
	published, m := protowire.ConsumeBytes(message[n:])
	if m < 0 {
		return nil, errMalformed
	}
	return published, nil
}

// ackOf reads an Ack of messages that were appended.
func ackOf(ack []byte) (count, first int64, err error) {
	for len(ack) > 0 {
		number, kind, n := protowire.ConsumeTag(ack)
		if n < 0 {
			return 0, 0, errMalformed
		}
		ack = ack[n:]
		switch {
		case number <= 2 && kind == protowire.VarintType:
			var value uint64
			value, n = protowire.ConsumeVarint(ack)
			if number == 1 {
				count = int64(value)
			} else {
				first = int64(value)
			}
		case number == 5:
			return 0, 0, fmt.Errorf("messages failed: %q", ack)
		default:
			n = protowire.ConsumeFieldValue(number, kind, ack)
		}
		if n < 0 {
			return 0, 0, errMalformed
		}
		ack = ack[n:]
	}
	return count, first, nil
}
