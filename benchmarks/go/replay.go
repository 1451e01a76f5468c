package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
)

// Reading a log again from its beginning to its end.

const (
	subscribeBatchMethod = "/broker.Broker/SubscribeBatch"
	fillBatch            = 1000
)

// replay fills a subject, and reads all of it, again and again for as long as was asked for, at least once. A "call" is a
// message. What came before the first replay that counts: one that does not.
func replay(o options) (result, error) {
	c, err := connect(o, 1)
	if err != nil {
		return result{}, err
	}
	defer c.close()
	connection := c.connections[0]
	if err := fill(o, connection); err != nil {
		return result{}, err
	}
	if err := replayOnce(o, connection); err != nil {
		return result{}, err
	}
	cpu, err := cpuTime(o.pid)
	if err != nil {
		return result{}, err
	}
	var measured result
	for began := time.Now(); measured.Seconds == 0 || time.Since(began) < o.length; {
		if err := replayOnce(o, connection); err != nil {
			return measured, err
		}
		measured.Calls += int64(o.messages)
		measured.Seconds = time.Since(began).Seconds()
	}
	cpuAfter, err := cpuTime(o.pid)
	measured.ServerCPU = (cpuAfter - cpu).Seconds()
	return measured, err
}

func fill(o options, connection *grpc.ClientConn) error {
	o.batch = fillBatch
	request := manyRequest(o)
	var ids rangeSet
	for filled := 0; filled < o.messages; filled += o.batch {
		response, err := invoke(o, connection, batchMethod, request)
		if err != nil {
			return err
		}
		err = eachMessage(response, func(resultMessage []byte) error {
			published, err := publishedOf(resultMessage)
			if err != nil {
				return err
			}
			id, err := publishedID(published)
			ids.add(id, 1)
			return err
		})
		if err != nil {
			return err
		}
	}
	return ids.check()
}

// replayOnce reads the ids 1, 2, 3 and so on, each once.
func replayOnce(o options, connection *grpc.ClientConn) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	method := subscribeBatchMethod
	if o.singly {
		method = subscribeMethod
	}
	stream, err := connection.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		return err
	}
	if err := errors.Join(stream.SendMsg(replayRequest(o.subject)), stream.CloseSend()); err != nil {
		return err
	}
	last := int64(0)
	check := func(message []byte) error {
		id, body, err := deliveredMessage(message)
		if err == nil && (id != last+1 || len(body) != o.bodyBytes) {
			err = fmt.Errorf("after id %d came %d with %d bytes", last, id, len(body))
		}
		last = id
		return err
	}
	for {
		var response []byte
		err := stream.RecvMsg(&response)
		switch {
		case err == nil && o.singly:
			err = check(response)
		case err == nil:
			err = eachMessage(response, check)
		case errors.Is(err, io.EOF) && last != int64(o.messages):
			return fmt.Errorf("the replay ended after id %d of %d", last, o.messages)
		case errors.Is(err, io.EOF):
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// replayRequest asks for all there is.
func replayRequest(subject string) []byte {
	request := protowire.AppendTag(subscribeRequest(subject), 2, protowire.VarintType)
	request = protowire.AppendVarint(request, 1) // earliest
	request = protowire.AppendTag(request, 7, protowire.VarintType)
	return protowire.AppendVarint(request, 1) // at_end
}
