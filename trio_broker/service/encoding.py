"""Messages and replies as bytes on the wire (protos/broker.proto).

Owns:      the encoding of what is sent once per message.
Not here:  requests, which protobuf parses.
Threads:   any: pure functions.

protobuf's own objects cost more than all else that a reply needs. A message is the concatenation of its
fields in any order (https://protobuf.dev/programming-guides/encoding/), so what many messages share is
encoded once. tests/test_encoding.py compares with protobuf.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final

from trio_broker._proto import broker_pb2 as pb
from trio_broker.batch import Batch, Fields, fields_of
from trio_broker.message import Gap, Message, MessagePage
from trio_broker.rpc.compression import deflated
from trio_broker.rpc.framing import PREFIX_BYTES, frame_prefix, framed

RESPONSE_MAX_BYTES: Final = 4 * 1024 * 1024
"""What a response with many messages stays below: clients take no more by default."""

_BODY, _ID, _SUBJECT, _PUBLISHED_AT = b"\x0a", b"\x10", b"\x1a", b"\x22"  # fields 1, 2, 3, 4 of MessageResponse
_LOW_BITS: Final = 7
_ID_LOW: Final = tuple(bytes((0x10, 0x80 | low)) for low in range(1 << _LOW_BITS))
"""The beginning of an id that has more bits than those."""
_FEW: Final = 2
"""So many messages are not worth looking for what they have in common."""
_MESSAGE: Final = b"\x0a"  # field 1 of MessageBatch and FetchRangeResponse
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
    return _response(*message)


def batch_wire(batch: Batch) -> bytes:
    """Return a batch as framed MessageResponses, ready to be sent; made once for all its subscribers."""
    if batch.wire is None:
        batch.wire = _encoded(batch, frame_prefix)
        if batch.together_wire is not None:
            batch.grow(len(batch.wire))
    return batch.wire


def together_wire(batch: Batch) -> bytes:
    """Return a batch as framed MessageBatches, of which one is enough unless it is very large. Else as `batch_wire`."""
    if batch.together_wire is None:
        messages = _encoded(batch, _element_prefix)
        batch.together_wire = b"".join([framed(piece) for piece in _pieces(messages)])
        if batch.wire is not None:
            batch.grow(len(batch.together_wire))
    return batch.together_wire


def join_together(wires: Sequence[bytes]) -> bytes:
    """Make one framed MessageBatch of several that are small."""
    return wires[0] if len(wires) == 1 else framed(b"".join([wire[PREFIX_BYTES:] for wire in wires]))


def deflated_wire(wire: bytes) -> bytes:
    """Compress framed messages, each by itself."""
    parts = []
    begin = 0
    while begin < len(wire):
        end = begin + PREFIX_BYTES + int.from_bytes(wire[begin + 1 : begin + PREFIX_BYTES], "big")
        parts.append(deflated(wire[begin + PREFIX_BYTES : end]))
        begin = end
    return b"".join(parts)


def page_response(subject: str, page: MessagePage) -> bytes:
    """Encode a FetchRangeResponse."""
    messages = _encoded_alike(subject, fields_of(page.messages), _element_prefix)
    return b"%b\x10%b\x18%b" % (messages, varint(page.scanned_to), varint(page.last_id))


def _encoded(batch: Batch, prefix: Callable[[int], bytes]) -> bytes:
    """Return the items of a batch as MessageResponses, each after ``prefix`` of its size."""
    if not batch.gaps and batch.count > _FEW:
        return _encoded_alike(batch.subject, fields_of(batch.messages), prefix)
    parts: list[bytes] = []
    for item in batch.items():
        response = gap_response(item) if isinstance(item, Gap) else message_response(item)
        parts += (prefix(len(response)), response)
    return b"".join(parts)


def _encoded_alike(subject: str, messages: Iterable[Fields], prefix: Callable[[int], bytes]) -> bytes:
    """Return messages of a subject as MessageResponses, each after ``prefix`` of its size.

    What many have in common is made once: of an id all but the last bits, with what comes behind it, and what comes
    before bodies of one size.
    """
    parts: list[bytes] = []
    high = at_us = -1
    tail = b""
    heads: dict[int, bytes] = {}  # by the size of the body, as long as tails have one size
    for id_, body, headers, us, _ in messages:
        if headers or id_ >> _LOW_BITS == 0:
            response = _response(subject, id_, body, headers, us)
            parts += (prefix(len(response)), response)
            continue
        if id_ >> _LOW_BITS != high or us != at_us:
            high, at_us = id_ >> _LOW_BITS, us
            before, tail = tail, varint(high) + _subject(subject) + _PUBLISHED_AT + _timestamp(us)
            if len(before) != len(tail):
                heads = {}
        head = heads.get(len(body))
        if head is None:
            begin = _BODY + varint(len(body))
            head = heads[len(body)] = prefix(len(begin) + len(body) + len(_ID_LOW[0]) + len(tail)) + begin
        parts += (head, body, _ID_LOW[id_ & 127], tail)
    return b"".join(parts)


def _pieces(elements: bytes) -> Iterator[bytes]:
    """Cut encoded elements so that each piece stays below what a response may have."""
    begin = end = 0
    while len(elements) - begin >= RESPONSE_MAX_BYTES and end < len(elements):
        size, start = read_varint(elements, end + len(_MESSAGE))
        if start + size - begin >= RESPONSE_MAX_BYTES and end > begin:
            yield elements[begin:end]
            begin = end
        end = start + size
    yield elements[begin:]


def _element_prefix(size: int) -> bytes:
    return _MESSAGE + varint(size)


def _response(subject: str, id_: int, body: bytes, headers: Mapping[str, bytes] | None, us: int) -> bytes:
    encoded = b"".join(
        (_BODY, varint(len(body)), body, _ID, varint(id_), _subject(subject), _PUBLISHED_AT, _timestamp(us))
    )
    if headers:
        encoded += pb.MessageResponse(headers=headers).SerializeToString()
    return encoded


def gap_response(gap: Gap) -> bytes:
    """Encode a MessageResponse that stands for messages that are missing. Rare: protobuf does it."""
    told = pb.Gap(to=gap.last_id, reason=gap.reason)
    setattr(told, "from", gap.first_id)  # a keyword in Python
    return pb.MessageResponse(subject=gap.subject, gap=told).SerializeToString()


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


def read_varint(data: bytes, place: int) -> tuple[int, int]:
    """Return the number that is encoded there, and the place behind it."""
    number = shift = 0
    while data[place] > 127:
        number |= (data[place] & 127) << shift
        place, shift = place + 1, shift + 7
    return number | data[place] << shift, place + 1


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
