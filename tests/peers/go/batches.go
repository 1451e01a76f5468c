package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc/codes"

	pb "trio-broker/tests/peers/go/brokerpb"
)

// kept makes messages that are kept for an hour.
func kept(subject string, count int) (messages []*pb.PublishRequest) {
	for i := range count {
		messages = append(messages, &pb.PublishRequest{Subject: subject, Body: fmt.Appendf(nil, "%d", i), ExpirationSeconds: hour})
	}
	return messages
}

func batchOfMany(ctx context.Context, t *trial) error {
	c, err := t.client()
	if err != nil {
		return err
	}
	subject := t.subject()
	messages := append(kept(subject, 500), &pb.PublishRequest{Subject: "not a subject"})
	response, err := c.broker.PublishBatch(ctx, &pb.PublishBatchRequest{Messages: append(messages, kept(subject, 1)...)})
	if err != nil {
		return err
	}
	for i, result := range response.GetResults() {
		switch {
		case i == 500:
			if failed := result.GetFailed(); failed.GetReason() != "INVALID_SUBJECT" || codes.Code(failed.GetCode()) != codes.InvalidArgument {
				return fmt.Errorf("result %d is %v", i, result)
			}
		case result.GetPublished().GetId() != int64(min(i, 500)+1):
			return fmt.Errorf("result %d is %v", i, result)
		}
	}
	if got := len(response.GetResults()); got != 502 {
		return fmt.Errorf("%d results of 502 messages", got)
	}
	message, err := c.fetch(ctx, subject, 500)
	if err == nil && string(message.GetBody()) != "499" {
		err = fmt.Errorf("message 500 is %q", message.GetBody())
	}
	return err
}

func atomicBatch(ctx context.Context, t *trial) error {
	c, err := t.client()
	if err != nil {
		return err
	}
	first, second := t.subject(), t.subject()
	messages := append(kept(first, 3), kept(second, 2)...)
	wrong := int64(9)
	messages[1].ExpectedLastId = &wrong
	response, err := c.broker.PublishBatch(ctx, &pb.PublishBatchRequest{Messages: messages, Atomic: true})
	if err != nil {
		return err
	}
	var reasons []string
	for _, result := range response.GetResults() {
		reasons = append(reasons, result.GetFailed().GetReason())
	}
	if got := fmt.Sprint(reasons); got != "[ABORTED CONFLICT ABORTED  ]" {
		return fmt.Errorf("reasons %s", got)
	}
	if id, err := c.publish(ctx, first, nil, 0); err != nil || id != 1 {
		return fmt.Errorf("the first id is %d: %v", id, err)
	}
	return nil
}

func streamOfMany(ctx context.Context, t *trial) error {
	const requests, each = 200, 100
	c, err := t.client()
	if err != nil {
		return err
	}
	subject := t.subject()
	stream, err := c.broker.PublishStream(ctx)
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		for range requests {
			if err := stream.Send(&pb.PublishStreamRequest{Messages: kept(subject, each)}); err != nil {
				sent <- err
				return
			}
		}
		sent <- stream.CloseSend()
	}()
	next := int64(1)
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		for _, ack := range response.GetAcks() {
			if ack.GetFailed() != nil || ack.GetFirstId() != next || ack.GetPublishedAt() == nil {
				return fmt.Errorf("after id %d came %v", next-1, ack)
			}
			next += ack.GetCount()
		}
	}
	if next != requests*each+1 {
		return fmt.Errorf("%d messages are acknowledged", next-1)
	}
	return <-sent
}
