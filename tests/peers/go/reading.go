package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc/codes"

	pb "trio-broker/tests/peers/go/brokerpb"
)

// Reading a log by SubscribeBatch and FetchRange, within the limits that grpc-go has by default.

const (
	small = 1500
	large = 3
)

// fill publishes small messages and then large ones, and returns how many.
func fill(ctx context.Context, c *client, subject string) (int64, error) {
	messages := kept(subject, small)
	if _, err := c.broker.PublishBatch(ctx, &pb.PublishBatchRequest{Messages: messages}); err != nil {
		return 0, err
	}
	for range large {
		if _, err := c.publish(ctx, subject, bytes.Repeat([]byte("x"), 2_500_000), hour); err != nil {
			return 0, err
		}
	}
	return small + large, nil
}

func logInBatches(ctx context.Context, t *trial) error {
	c, err := t.client()
	if err != nil {
		return err
	}
	subject := t.subject()
	count, err := fill(ctx, c, subject)
	if err != nil {
		return err
	}
	request := &pb.SubscribeRequest{
		Subject: subject,
		Start:   &pb.SubscribeRequest_Earliest{Earliest: true},
		Stop:    &pb.SubscribeRequest_UntilId{UntilId: count + 1},
	}
	stream, err := c.broker.SubscribeBatch(ctx, request)
	if err != nil {
		return err
	}
	last, responses := int64(0), 0
	for {
		batch, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("after id %d: %w", last, err)
		}
		responses++
		if len(batch.GetMessages()) == 0 {
			return errors.New("a batch without a message")
		}
		for _, message := range batch.GetMessages() {
			if message.GetId() != last+1 || message.GetSubject() != subject {
				return fmt.Errorf("after id %d came %d of %s", last, message.GetId(), message.GetSubject())
			}
			last = message.GetId()
		}
		if last == count {
			if _, err := c.publish(ctx, subject, []byte("live"), 0); err != nil {
				return err
			}
		}
	}
	if last != count+1 || responses > small/10 {
		return fmt.Errorf("%d of %d messages came in %d responses", last, count+1, responses)
	}
	return nil
}

func logInPages(ctx context.Context, t *trial) error {
	c, err := t.client()
	if err != nil {
		return err
	}
	subject := t.subject()
	count, err := fill(ctx, c, subject)
	if err != nil {
		return err
	}
	last, scanned := int64(0), int64(0)
	for scanned < count {
		page, err := c.broker.FetchRange(ctx, &pb.FetchRangeRequest{Subject: subject, AfterId: scanned})
		if err != nil {
			return err
		}
		for _, message := range page.GetMessages() {
			if message.GetId() != last+1 {
				return fmt.Errorf("after id %d came %d", last, message.GetId())
			}
			last = message.GetId()
		}
		if page.GetLastId() != count || page.GetScannedTo() <= scanned {
			return fmt.Errorf("a page up to %d of %d, after %d", page.GetScannedTo(), page.GetLastId(), scanned)
		}
		scanned = page.GetScannedTo()
	}
	if last != count {
		return fmt.Errorf("the pages end with id %d of %d", last, count)
	}
	_, err = c.broker.FetchRange(ctx, &pb.FetchRangeRequest{Subject: subject, AfterId: count + 1})
	return refused(err, codes.InvalidArgument, "INVALID_ID")
}
