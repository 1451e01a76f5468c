package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// The messages of protos/broker.proto, written and read by hand: what is measured is the server.

const (
	publishMethod   = "/broker.Broker/Publish"
	subscribeMethod = "/broker.Broker/Subscribe"
	fetchMethod     = "/broker.Broker/Fetch"
)

func publishRequest(subject string, body []byte, expiration int) []byte {
	request := protowire.AppendTag(nil, 1, protowire.BytesType)
	request = protowire.AppendString(request, subject)
	request = protowire.AppendTag(request, 2, protowire.BytesType)
	request = protowire.AppendBytes(request, body)
	request = protowire.AppendTag(request, 3, protowire.VarintType)
	return protowire.AppendVarint(request, uint64(expiration))
}

func fetchRequest(subject string, id int64) []byte {
	request := protowire.AppendTag(nil, 1, protowire.BytesType)
	request = protowire.AppendString(request, subject)
	request = protowire.AppendTag(request, 2, protowire.VarintType)
	return protowire.AppendVarint(request, uint64(id))
}

func subscribeRequest(subject string) []byte {
	return protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), subject)
}

// stampedBody starts with the time it was made, so that who receives it knows how long it took.
func stampedBody(size int) []byte { return bodyStampedAt(time.Now(), size) }

func bodyStampedAt(t time.Time, size int) []byte {
	body := make([]byte, size)
	binary.BigEndian.PutUint64(body, uint64(t.UnixNano()))
	return body
}

func stampOf(body []byte) (time.Time, error) {
	if len(body) < 8 {
		return time.Time{}, fmt.Errorf("a body of %d bytes, not one of ours", len(body))
	}
	return time.Unix(0, int64(binary.BigEndian.Uint64(body))), nil
}

var errMalformed = errors.New("an answer that is not a message of its type")

// publishedID reads the id of a PublishResponse.
func publishedID(response []byte) (int64, error) {
	id, _, err := scan(response, 1)
	return id, err
}

// deliveredMessage reads the id and the body of a MessageResponse.
func deliveredMessage(response []byte) (int64, []byte, error) {
	return scan(response, 2)
}

// scan returns the varint field idField, and the bytes of field 1.
func scan(message []byte, idField protowire.Number) (id int64, body []byte, err error) {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return 0, nil, errMalformed
		}
		message = message[n:]
		switch {
		case number == idField && kind == protowire.VarintType:
			var value uint64
			value, n = protowire.ConsumeVarint(message)
			id = int64(value)
		case number == 1 && kind == protowire.BytesType:
			body, n = protowire.ConsumeBytes(message)
		default:
			n = protowire.ConsumeFieldValue(number, kind, message)
		}
		if n < 0 {
			return 0, nil, errMalformed
		}
		message = message[n:]
	}
	return id, body, nil
}

// rawCodec lets grpc-go carry messages that are bytes already.
type rawCodec struct{}

func (rawCodec) Marshal(message any) ([]byte, error) { return message.([]byte), nil }

func (rawCodec) Unmarshal(data []byte, message any) error {
	*message.(*[]byte) = data
	return nil
}

func (rawCodec) Name() string { return "proto" }
