"""Messages and replies as bytes on the wire (protos/broker.proto).

Owns:      the encoding of what is sent once per message.
Not here:  requests, which protobuf parses.
Threads:   any: pure functions.

protobuf's own objects cost more than all else that a reply needs. A message is the concatenation of its
fields in any order (https://protobuf.dev/programming-guides/encoding/), so what many messages share is
encoded once. tests/test_encoding.py compares with protobuf.
"""

from functools import lru_cache

from trio_broker._proto import broker_pb2 as pb
from trio_broker.batch import Batch
from trio_broker.message import Gap, Message
from trio_broker.rpc.call import framed

_BODY, _ID, _SUBJECT, _PUBLISHED_AT = b"\x0a", b"\x10", b"\x1a", b"\x22"  # fields 1, 2, 3, 4 of MessageResponse
_REPLY_ID, _REPLY_PUBLISHED_AT = b"\x08", b"\x12"  # fields 1, 2 of PublishResponse
_REPLY_DUPLICATE = b"\x18\x01"  # field 3, true


def publish_response(id_: int, published_us: int) -> bytes:
    """Encode a PublishResponse."""
    return _REPLY_ID + varint(id_) + _REPLY_PUBLISHED_AT + _timestamp(published_us)


def duplicate_response(id_: int, published_us: int) -> bytes:
    """Encode the PublishResponse of a message that was appended before."""
    return publish_response(id_, published_us) + _REPLY_DUPLICATE


def publish_result(id_: int, published_us: int, *, duplicate: bool) -> bytes:
    """Encode a PublishResult of a message that was appended, as an element of PublishBatchResponse.results."""
    id_wire = varint(id_)
    rest = _published_at(published_us)
    if duplicate:
        rest += _REPLY_DUPLICATE
    size = 1 + len(id_wire) + len(rest)  # far below 126
    return b"\x0a%c\x0a%c\x08%b%b" % (size + 2, size, id_wire, rest)


def failed_result(failure: bytes) -> bytes:
    """Encode a PublishResult with a Failure, as an element of PublishBatchResponse.results."""
    inner = b"\x12" + varint(len(failure)) + failure
    return b"\x0a" + varint(len(inner)) + inner


def ack(count: int, first_id: int, published_us: int, *, duplicate: bool) -> bytes:
    """Encode an Ack of messages that were appended, as an element of PublishStreamResponse.acks."""
    inner = b"\x08" + varint(count) + b"\x10" + varint(first_id) + b"\x1a" + _timestamp(published_us)
    if duplicate:
        inner += b"\x20\x01"
    return b"\x0a%c%b" % (len(inner), inner)


def failed_ack(count: int, failure: bytes) -> bytes:
    """Encode an Ack of messages that failed, as an element of PublishStreamResponse.acks."""
    inner = b"\x08" + varint(count) + b"\x2a" + varint(len(failure)) + failure
    return b"\x0a" + varint(len(inner)) + inner


def message_response(message: Message) -> bytes:
    """Encode a MessageResponse."""
    encoded = b"".join(
        (
            _BODY,
            varint(len(message.body)),
            message.body,
            _ID,
            varint(message.id),
            _subject(message.subject),
            _PUBLISHED_AT,
            _timestamp(message.published_us),
        )
    )
    if message.headers:
        encoded += pb.MessageResponse(headers=message.headers).SerializeToString()
    return encoded


def batch_wire(batch: Batch) -> bytes:
    """Return a batch as framed MessageResponses, ready to be sent; made once for all its subscribers."""
    if batch.wire is None:
        batch.wire = b"".join([framed(_response(item)) for item in batch.items()])
    return batch.wire


def gap_response(gap: Gap) -> bytes:
    """Encode a MessageResponse that stands for messages that are missing. Rare: protobuf does it."""
    told = pb.Gap(to=gap.last_id, reason=gap.reason)
    setattr(told, "from", gap.first_id)  # a keyword in Python
    return pb.MessageResponse(subject=gap.subject, gap=told).SerializeToString()


def _response(item: Message | Gap) -> bytes:
    return gap_response(item) if isinstance(item, Gap) else message_response(item)


def varint(number: int) -> bytes:
    """Encode a number that is not negative."""
    if number < 128:
        return number.to_bytes(1, "big")
    if number < 1 << 14:
        return bytes((number & 127 | 128, number >> 7))
    if number < 1 << 21:
        return bytes((number & 127 | 128, number >> 7 & 127 | 128, number >> 14))
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


@lru_cache(maxsize=1024)
def _subject(subject: str) -> bytes:
    encoded = subject.encode()
    return _SUBJECT + varint(len(encoded)) + encoded


@lru_cache(maxsize=1024)
def _published_at(us: int) -> bytes:
    return _REPLY_PUBLISHED_AT + _timestamp(us)


@lru_cache(maxsize=1024)
def _timestamp(us: int) -> bytes:
    """Encode a google.protobuf.Timestamp with its length; all messages of a flush have the same."""
    stamp = pb.PublishResponse().published_at
    stamp.FromMicroseconds(us)
    encoded = stamp.SerializeToString()
    return varint(len(encoded)) + encoded
