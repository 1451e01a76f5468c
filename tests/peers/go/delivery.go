package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	pb "trio-broker/tests/peers/go/brokerpb"
)

// What subscribers get.

func inOrderToThree(ctx context.Context, t *trial) error {
	subject := t.subject()
	var subscribers []*subscription
	for range 3 {
		c, err := t.client()
		if err != nil {
			return err
		}
		s, err := c.subscribe(ctx, subject)
		if err != nil {
			return err
		}
		subscribers = append(subscribers, s)
	}
	c, err := t.client()
	if err != nil {
		return err
	}
	for i := range 50 {
		if id, err := c.publish(ctx, subject, []byte{byte(i)}, 0); err != nil || id != int64(i)+1 {
			return errors.Join(err, fmt.Errorf("publish %d got id %d", i+1, id))
		}
	}
	for _, s := range subscribers {
		for i := range 50 {
			message, err := s.expect(int64(i) + 1)
			if err != nil {
				return err
			}
			if !bytes.Equal(message.GetBody(), []byte{byte(i)}) {
				return fmt.Errorf("id %d has the body %v", i+1, message.GetBody())
			}
		}
	}
	return nil
}

func noCrossDelivery(ctx context.Context, t *trial) error {
	mine, other := t.subject(), t.subject()
	c, err := t.client()
	if err != nil {
		return err
	}
	s, err := c.subscribe(ctx, mine)
	if err != nil {
		return err
	}
	// also names that a careless comparison would take for the same
	for _, subject := range []string{other, mine + ".more", mine[:len(mine)-1], other} {
		if _, err := c.publish(ctx, subject, []byte("not for you"), 0); err != nil {
			return err
		}
	}
	if _, err := c.publish(ctx, mine, []byte("for you"), 0); err != nil {
		return err
	}
	message, err := s.expect(1)
	if err == nil && string(message.GetBody()) != "for you" {
		err = fmt.Errorf("got %q", message.GetBody())
	}
	return err
}

func noHistory(ctx context.Context, t *trial) error {
	subject := t.subject()
	c, err := t.client()
	if err != nil {
		return err
	}
	for range 3 {
		if _, err := c.publish(ctx, subject, []byte("before"), hour); err != nil {
			return err
		}
	}
	s, err := c.subscribe(ctx, subject)
	if err != nil {
		return err
	}
	if _, err := c.publish(ctx, subject, []byte("after"), hour); err != nil {
		return err
	}
	_, err = s.expect(4)
	return err
}

// messagesArriveWhole sends bodies and headers that text would not survive, and compares both ways of getting them.
func messagesArriveWhole(ctx context.Context, t *trial) error {
	subject := t.subject()
	c, err := t.client()
	if err != nil {
		return err
	}
	s, err := c.subscribe(ctx, subject)
	if err != nil {
		return err
	}
	headers := map[string][]byte{"empty": {}, "binary": {0, 255, 10}}
	for i := range 62 {
		headers["h"+strconv.Itoa(i)] = []byte{byte(i)}
	}
	for i, body := range [][]byte{{}, {0}, {0xff, 0xfe, 0}, bytes.Repeat([]byte{7}, 100_000)} {
		id := int64(i) + 1
		request := &pb.PublishRequest{Subject: subject, Body: body, ExpirationSeconds: hour, Headers: headers}
		response, err := c.broker.Publish(ctx, request)
		if err != nil {
			return err
		}
		delivered, err := s.expect(id)
		if err != nil {
			return err
		}
		fetched, err := c.fetch(ctx, subject, id)
		if err != nil {
			return err
		}
		for _, message := range []*pb.MessageResponse{delivered, fetched} {
			whole := bytes.Equal(message.GetBody(), body) && maps.EqualFunc(message.GetHeaders(), headers, bytes.Equal) &&
				message.GetSubject() == subject && message.GetPublishedAt().AsTime().Equal(response.GetPublishedAt().AsTime())
			if !whole {
				return fmt.Errorf("id %d came back changed", id)
			}
		}
	}
	return nil
}

func deadline(ctx context.Context, t *trial) error {
	subject := t.subject()
	c, err := t.client()
	if err != nil {
		return err
	}
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	s, err := c.subscribe(short, subject)
	if err != nil {
		return err
	}
	_, err = s.expect(1)
	if err := refused(err, codes.DeadlineExceeded, ""); err != nil {
		return err
	}
	_, err = c.publish(ctx, subject, nil, 0) // the connection is as good as before
	return err
}

func cancelOne(ctx context.Context, t *trial) error {
	subject := t.subject()
	c, err := t.client()
	if err != nil {
		return err
	}
	staying, err := c.subscribe(ctx, subject)
	if err != nil {
		return err
	}
	for id := range int64(100) {
		leaving, err := c.subscribe(ctx, subject)
		if err != nil {
			return err
		}
		if _, err := c.publish(ctx, subject, nil, 0); err != nil {
			return err
		}
		if _, err := leaving.expect(id + 1); err != nil {
			return err
		}
		leaving.cancel()
		_, err = leaving.stream.Recv()
		if err := refused(err, codes.Canceled, ""); err != nil {
			return err
		}
		if _, err := staying.expect(id + 1); err != nil {
			return err
		}
	}
	return nil
}

// slowSubscriber asks to be cut, and does not read until it must have been. What it got has no hole, and the status says how far it is.
func slowSubscriber(ctx context.Context, t *trial) error {
	const messages, size = 200, 60 << 10 // thrice what a subscriber's buffer and this window hold
	subject := t.subject()
	slowClient, err := t.client(grpc.WithStaticStreamWindowSize(1 << 16))
	if err != nil {
		return err
	}
	quickClient, err := t.client()
	if err != nil {
		return err
	}
	slow, err := slowClient.subscribeAs(ctx, &pb.SubscribeRequest{Subject: subject, Slow: pb.SubscribeRequest_FAIL})
	if err != nil {
		return err
	}
	quick, err := quickClient.subscribe(ctx, subject)
	if err != nil {
		return err
	}
	for id := range int64(messages) {
		if _, err := quickClient.publish(ctx, subject, make([]byte, size), 0); err != nil {
			return err
		}
		if _, err := quick.expect(id + 1); err != nil {
			return err
		}
	}
	got := int64(0)
	for err == nil {
		if _, err = slow.expect(got + 1); err == nil {
			got++
		}
	}
	if err := refused(err, codes.ResourceExhausted, "SLOW_CONSUMER"); err != nil {
		return fmt.Errorf("after %d messages: %w", got, err)
	}
	said := detail[*errdetails.ErrorInfo](err).GetMetadata()["last_delivered_id"]
	if said != strconv.FormatInt(got, 10) {
		return fmt.Errorf("got %d messages, and last_delivered_id is %q", got, said)
	}
	return nil
}
