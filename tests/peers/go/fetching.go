package main

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"

	pb "trio-broker/tests/peers/go/brokerpb"
)

// What can be fetched, and how the rest is refused.

func expiredAndInvalid(ctx context.Context, t *trial) error {
	subject := t.subject()
	c, err := t.client()
	if err != nil {
		return err
	}
	fetchRefused := func(id int64, reason, lastID string) error {
		_, err := c.fetch(ctx, subject, id)
		said := detail[*errdetails.ErrorInfo](err).GetMetadata()["last_id"]
		if err := refused(err, codes.InvalidArgument, reason); err != nil || said != lastID {
			return errors.Join(err, fmt.Errorf("fetch of %d: last_id is %q, not %q", id, said, lastID))
		}
		return nil
	}
	if err := fetchRefused(1, "INVALID_ID", "0"); err != nil { // a subject that nobody has used
		return err
	}
	for _, expiration := range []int32{hour, 0} {
		if _, err := c.publish(ctx, subject, []byte("body"), expiration); err != nil {
			return err
		}
	}
	if _, err := c.fetch(ctx, subject, 1); err != nil {
		return err
	}
	return errors.Join(
		fetchRefused(2, "EXPIRED_ID", "2"), // expiration 0: it got an id and was not kept
		fetchRefused(3, "INVALID_ID", "2"),
		fetchRefused(0, "INVALID_ID", "2"),
		fetchRefused(-1, "INVALID_ID", "2"),
		fetchRefused(1<<63-1, "INVALID_ID", "2"),
	)
}

func keep(ctx context.Context, t *trial) error {
	subject := t.subject()
	c, err := t.client()
	if err != nil {
		return err
	}
	if _, err := c.broker.Publish(ctx, &pb.PublishRequest{Subject: subject, Body: []byte("for good"), Keep: true}); err != nil {
		return err
	}
	message, err := c.fetch(ctx, subject, 1)
	if err != nil || string(message.GetBody()) != "for good" {
		return errors.Join(err, fmt.Errorf("fetched %q", message.GetBody()))
	}
	_, err = c.broker.Publish(ctx, &pb.PublishRequest{Subject: subject, Keep: true, ExpirationSeconds: 1})
	return refusedField(err, "INVALID_EXPIRATION", "expirationSeconds")
}
