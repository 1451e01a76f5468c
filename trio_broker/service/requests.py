"""Parse requests of many messages, and no more of one than is accepted.

Owns:      how many messages are taken out of a request.
Not here:  all other requests, which protobuf parses alone; what is checked of a message (trio_broker/validation.py).
Threads:   any: plain data.

protobuf makes an object of some 90 bytes of a message that takes two: of a request of 4 MiB, 190 MiB.
"""

from trio_broker._proto import broker_pb2 as pb
from trio_broker.publishing import BATCH_MESSAGES_MAX
from trio_broker.service.encoding import read_varint

_MESSAGE = 0x0A
"""How each message of either kind of request begins: field 1, and its size follows."""


def batch_request(data: bytes) -> pb.PublishBatchRequest:
    """Parse a PublishBatchRequest, to the first message that is one too many.

    Raises:
        google.protobuf.message.DecodeError: it is none.
    """
    return pb.PublishBatchRequest.FromString(cut(data))


def stream_request(data: bytes) -> pb.PublishStreamRequest:
    """Parse a PublishStreamRequest as `batch_request` does."""
    return pb.PublishStreamRequest.FromString(cut(data))


def cut(data: bytes) -> bytes:
    """Return a request without what follows the first message that is one too many."""
    if data.count(b"\x0a") + data.count(b"\x8a") <= BATCH_MESSAGES_MAX:  # no other byte begins one
        return data
    return _cut(data)


def _cut(data: bytes) -> bytes:
    """Do so field by field. What is not protobuf is left to protobuf, which refuses it."""
    end = len(data)
    place = messages = 0
    try:
        while place < end and messages <= BATCH_MESSAGES_MAX:
            if data[place] == _MESSAGE and (size := data[place + 1]) < 128:  # as most are, or the next
                place += 2 + size
                messages += 1
            elif data[place] == _MESSAGE and (high := data[place + 2]) < 128:
                place += 3 + (size & 127 | high << 7)
                messages += 1
            else:
                field, place = _varint(data, place)
                messages += field >> 3 == 1
                place = _behind(data, place, field & 7)
    except (IndexError, ValueError):
        return data
    return data if place >= end else data[:place]


def _behind(data: bytes, place: int, kind: int) -> int:
    """Return the place behind a field of this kind, of which the value begins at ``place``."""
    match kind:
        case 0:
            return _varint(data, place)[1]
        case 1:
            return place + 8
        case 2:
            size, place = _varint(data, place)
            return place + size
        case 3 | 4:  # a group: what is in it counts, too
            return place
        case 5:
            return place + 4
    raise ValueError(f"no kind of field: {kind}")


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """Return a number, and the place behind it. No number is longer than ten bytes."""
    size = 1
    while data[place + size - 1] > 127:
        size += 1
        if size > 10:
            raise ValueError("a number of more than ten bytes")
    return read_varint(data, place)
