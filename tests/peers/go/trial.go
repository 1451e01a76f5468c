package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "trio-broker/tests/peers/go/brokerpb"
)

const hour = 3600

// trial is one run of one case: its connections and its names for subjects.
type trial struct {
	address     string
	name        string
	connections []*grpc.ClientConn
}

func (t *trial) close() {
	for _, connection := range t.connections {
		_ = connection.Close()
	}
}

// subject returns a name that nobody else uses.
func (t *trial) subject() string {
	return fmt.Sprintf("peer.%s.%x", t.name, rand.Uint64())
}

// client opens a connection of its own.
func (t *trial) client(options ...grpc.DialOption) (*client, error) {
	options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))
	connection, err := grpc.NewClient("passthrough:///"+t.address, options...)
	if err != nil {
		return nil, err
	}
	t.connections = append(t.connections, connection)
	return &client{connection, pb.NewBrokerClient(connection)}, nil
}

type client struct {
	connection *grpc.ClientConn
	broker     pb.BrokerClient
}

func (c *client) publish(ctx context.Context, subject string, body []byte, expiration int32) (int64, error) {
	response, err := c.broker.Publish(ctx, &pb.PublishRequest{Subject: subject, Body: body, ExpirationSeconds: expiration})
	if err != nil {
		return 0, err
	}
	if response.GetPublishedAt() == nil {
		return 0, errors.New("a publish response without published_at")
	}
	return response.GetId(), nil
}

// fetch returns a message after checking that it is the one that was asked for.
func (c *client) fetch(ctx context.Context, subject string, id int64) (*pb.MessageResponse, error) {
	message, err := c.broker.Fetch(ctx, &pb.FetchRequest{Subject: subject, Id: id})
	if err == nil && (message.GetId() != id || message.GetSubject() != subject) {
		err = fmt.Errorf("fetch of %d of %s returned %d of %s", id, subject, message.GetId(), message.GetSubject())
	}
	return message, err
}

type subscription struct {
	stream grpc.ServerStreamingClient[pb.MessageResponse]
	cancel context.CancelFunc
}

// subscribe returns when the headers have come: from then on nothing that is acknowledged may be missed.
func (c *client) subscribe(ctx context.Context, subject string) (*subscription, error) {
	return c.subscribeAs(ctx, &pb.SubscribeRequest{Subject: subject})
}

func (c *client) subscribeAs(ctx context.Context, request *pb.SubscribeRequest) (*subscription, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := c.broker.Subscribe(ctx, request)
	if err != nil {
		cancel()
		return nil, err
	}
	if headers, err := stream.Header(); err != nil || headers == nil {
		_, refusal := stream.Recv()
		cancel()
		return nil, errors.Join(err, refusal)
	}
	return &subscription{stream, cancel}, nil
}

// expect receives messages with these ids, and returns the last of them.
func (s *subscription) expect(ids ...int64) (message *pb.MessageResponse, err error) {
	for _, id := range ids {
		if message, err = s.stream.Recv(); err != nil {
			return nil, fmt.Errorf("waiting for id %d: %w", id, err)
		}
		if message.GetId() != id {
			return nil, fmt.Errorf("a subscriber got id %d, not %d", message.GetId(), id)
		}
	}
	return message, nil
}

// refused tells whether an error has the status and, unless it is empty, the ErrorInfo reason.
func refused(err error, code codes.Code, reason string) error {
	if got := status.Code(err); got != code {
		return fmt.Errorf("status %v, not %v: %v", got, code, err)
	}
	if reason == "" {
		return nil
	}
	if info := detail[*errdetails.ErrorInfo](err); info.GetReason() != reason {
		return fmt.Errorf("reason %q, not %q: %v", info.GetReason(), reason, err)
	}
	return nil
}

// refusedField is refused, for a field of the request.
func refusedField(err error, reason, field string) error {
	if err := refused(err, codes.InvalidArgument, reason); err != nil {
		return err
	}
	violations := detail[*errdetails.BadRequest](err).GetFieldViolations()
	named := func(v *errdetails.BadRequest_FieldViolation) bool {
		return v.GetField() == field && v.GetDescription() != ""
	}
	if !slices.ContainsFunc(violations, named) {
		return fmt.Errorf("no violation of field %q in %v", field, violations)
	}
	return nil
}

// detail returns the detail of its type in an error's status, or nothing.
func detail[T any](err error) (found T) {
	for _, any := range status.Convert(err).Details() {
		if typed, ok := any.(T); ok {
			found = typed
		}
	}
	return found
}
