package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	pb "trio-broker/tests/peers/go/brokerpb"
)

// What has to be refused, each time beside a subscription on the same connection that must not notice.

const bodyMax = 4<<20 - 64<<10

// besideNeighbour tries bad calls on a connection and then sees whether a subscription on it still delivers.
func besideNeighbour(ctx context.Context, t *trial, bad func(c *client) error) error {
	subject := t.subject()
	c, err := t.client()
	if err != nil {
		return err
	}
	neighbour, err := c.subscribe(ctx, subject)
	if err != nil {
		return err
	}
	if err := bad(c); err != nil {
		return err
	}
	if _, err := c.publish(ctx, subject, nil, 0); err != nil {
		return fmt.Errorf("the neighbour's publish: %w", err)
	}
	if _, err := neighbour.expect(1); err != nil {
		return fmt.Errorf("the neighbour: %w", err)
	}
	return nil
}

func unknownMethod(ctx context.Context, t *trial) error {
	return besideNeighbour(ctx, t, func(c *client) error {
		for _, method := range []string{"/broker.Broker/Nothing", "/broker.Nobody/Publish", "/Publish", "/broker.Broker/publish"} {
			err := c.connection.Invoke(ctx, method, &pb.PublishRequest{}, &pb.PublishResponse{})
			if err := refused(err, codes.Unimplemented, ""); err != nil {
				return fmt.Errorf("%s: %w", method, err)
			}
		}
		return nil
	})
}

// bytesCodec sends messages that are bytes already, whatever they are.
type bytesCodec struct{}

func (bytesCodec) Marshal(message any) ([]byte, error)      { return message.([]byte), nil }
func (bytesCodec) Unmarshal(data []byte, message any) error { *message.(*[]byte) = data; return nil }
func (bytesCodec) Name() string                             { return "proto" }

func corruptProtobuf(ctx context.Context, t *trial) error {
	corrupt := map[string][]byte{
		"a length beyond the end":     {0x0a, 0x7f, 'x'},
		"a wire type that is none":    {0x0f, 0x01},
		"an endless varint":           {0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01},
		"a subject that is not UTF-8": {0x0a, 0x02, 0xff, 0xfe},
	}
	return besideNeighbour(ctx, t, func(c *client) error {
		for what, message := range corrupt {
			for _, method := range []string{"Publish", "Fetch", "Subscribe"} {
				var response []byte
				err := c.connection.Invoke(ctx, "/broker.Broker/"+method, message, &response, grpc.ForceCodec(bytesCodec{}))
				if err := refused(err, codes.InvalidArgument, "MALFORMED"); err != nil {
					return fmt.Errorf("%s to %s: %w", what, method, err)
				}
			}
		}
		return nil
	})
}

func oversizeBody(ctx context.Context, t *trial) error {
	return besideNeighbour(ctx, t, func(c *client) error {
		for _, size := range []int{bodyMax + 1, 5 << 20, 40 << 20} {
			_, err := c.publish(ctx, t.subject(), make([]byte, size), hour)
			if err := refused(err, codes.ResourceExhausted, "MESSAGE_TOO_LARGE"); err != nil {
				return fmt.Errorf("%d bytes: %w", size, err)
			}
		}
		// the largest that is taken can be fetched by a client with default limits
		subject := t.subject()
		if _, err := c.publish(ctx, subject, make([]byte, bodyMax), hour); err != nil {
			return err
		}
		message, err := c.fetch(ctx, subject, 1)
		if err == nil && len(message.GetBody()) != bodyMax {
			err = fmt.Errorf("%d bytes came back", len(message.GetBody()))
		}
		return err
	})
}

func badSubjects(ctx context.Context, t *trial) error {
	bad := []string{
		"", ".", "a.", ".a", "a..b", "a b", "a\tb", "a\nb", "a\x00b", "a\x7fb", "a\u0085b", "a\u00a0b", "a\u2028b",
		"*", "a.*", ">", "a.>", strings.Repeat("a", 256), strings.Repeat("ü", 128),
	}
	return besideNeighbour(ctx, t, func(c *client) error {
		for _, subject := range bad {
			_, published := c.publish(ctx, subject, nil, 0)
			_, fetched := c.broker.Fetch(ctx, &pb.FetchRequest{Subject: subject, Id: 1})
			_, subscribed := c.subscribe(ctx, subject)
			for call, err := range map[string]error{"publish": published, "fetch": fetched, "subscribe": subscribed} {
				if err := refusedField(err, "INVALID_SUBJECT", "subject"); err != nil {
					return fmt.Errorf("%s %q: %w", call, subject, err)
				}
			}
		}
		for _, subject := range []string{"a", "ü.ß", strings.Repeat("a", 255), "a-b_c.1", t.subject()} {
			if _, err := c.publish(ctx, subject, nil, 0); err != nil {
				return fmt.Errorf("%q: %w", subject, err)
			}
		}
		return nil
	})
}

func badExpirations(ctx context.Context, t *trial) error {
	return besideNeighbour(ctx, t, func(c *client) error {
		subject := t.subject()
		for _, expiration := range []int32{-1, math.MinInt32} {
			_, err := c.publish(ctx, subject, nil, expiration)
			if err := refusedField(err, "INVALID_EXPIRATION", "expirationSeconds"); err != nil {
				return fmt.Errorf("%d: %w", expiration, err)
			}
		}
		// 68 years: what the store cannot keep is refused; what is taken can be fetched
		id, err := c.publish(ctx, subject, nil, math.MaxInt32)
		if err != nil {
			return refusedField(err, "INVALID_EXPIRATION", "expirationSeconds")
		}
		_, err = c.fetch(ctx, subject, id)
		return err
	})
}

func badHeaders(ctx context.Context, t *trial) error {
	tooMany := map[string][]byte{}
	for i := range 65 {
		tooMany["h"+strconv.Itoa(i)] = nil
	}
	bad := []map[string][]byte{tooMany, {"large": make([]byte, 16<<10)}, {"": []byte("no name")}}
	return besideNeighbour(ctx, t, func(c *client) error {
		for _, headers := range bad {
			_, err := c.broker.Publish(ctx, &pb.PublishRequest{Subject: t.subject(), Headers: headers})
			if err := refusedField(err, "INVALID_HEADERS", "headers"); err != nil {
				return fmt.Errorf("%d headers: %w", len(headers), err)
			}
		}
		return nil
	})
}

// stoppingBroker says "ready" and waits for the broker to be stopped: a subscription ends with the reason, and so does
// whatever is called afterwards, unless the connection is gone already.
func stoppingBroker(ctx context.Context, t *trial) error {
	subject := t.subject()
	c, err := t.client()
	if err != nil {
		return err
	}
	s, err := c.subscribe(ctx, subject)
	if err != nil {
		return err
	}
	if _, err := c.publish(ctx, subject, []byte("last"), 0); err != nil {
		return err
	}
	if _, err := s.expect(1); err != nil {
		return err
	}
	fmt.Println("ready")
	_, err = s.stream.Recv()
	if err := refused(err, codes.Unavailable, "DRAINING"); err != nil {
		return err
	}
	if detail[*errdetails.RetryInfo](err).GetRetryDelay() == nil {
		return errors.New("DRAINING without RetryInfo")
	}
	_, err = c.publish(ctx, subject, nil, 0)
	return refused(err, codes.Unavailable, "")
}
