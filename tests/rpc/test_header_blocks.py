"""Header blocks: padding, priority, CONTINUATION, and the limits (RFC 9113, sections 4.3, 6.2, 6.10, 8, 10.5.1)."""

import itertools

import pytest
from h2_peer import REQUEST, Peer, data, ping, settings

from trio_broker.rpc import frames
from trio_broker.rpc.hpack import literal
from trio_broker.rpc.limits import Limits

PLAIN = b"".join(literal(name.encode(), value.encode()) for name, value in REQUEST)
"""A request that depends on no dynamic table."""


def headers(flags, payload, stream_id=1):
    return frames.frame(frames.HEADERS, flags, stream_id, payload)


def continuation(payload=b"", *, end=False, stream_id=1):
    return frames.frame(frames.CONTINUATION, frames.END_HEADERS if end else 0, stream_id, payload)


ALL = frames.END_HEADERS | frames.END_STREAM


@pytest.mark.parametrize(
    ("flags", "payload"),
    [
        (ALL, PLAIN),
        (ALL | frames.PADDED, b"\0" + PLAIN),
        (ALL | frames.PADDED, b"\xff" + PLAIN + bytes(255)),
        (ALL | frames.HAS_PRIORITY, b"\0\0\0\3\xff" + PLAIN),
        (ALL | frames.HAS_PRIORITY, b"\x80\0\0\3\xff" + PLAIN),
        (ALL | frames.HAS_PRIORITY | frames.PADDED, b"\2" + b"\0\0\0\0\x10" + PLAIN + b"\0\0"),
        (0xFF, b"\2" + b"\0\0\0\0\x10" + PLAIN + b"\0\0"),
    ],
    ids=["plain", "no padding", "most padding", "priority", "exclusive", "both", "unknown flags"],
)
def test_ways_to_send_a_request(flags, payload):
    peer = Peer()
    assert peer.told(headers(flags, payload)) == []
    assert peer.streams[1].events == ["headers", "end"]


@pytest.mark.parametrize(
    ("flags", "payload", "reaction"),
    [
        (ALL | frames.PADDED, b"", "GOAWAY 0 PROTOCOL_ERROR"),
        (ALL | frames.PADDED, b"\1", "GOAWAY 0 PROTOCOL_ERROR"),
        (ALL | frames.PADDED, bytes([len(PLAIN) + 1]) + PLAIN, "GOAWAY 0 PROTOCOL_ERROR"),
        (ALL | frames.HAS_PRIORITY, b"\0\0\0\3", "GOAWAY 0 FRAME_SIZE_ERROR"),
        (ALL | frames.HAS_PRIORITY, b"\0\0\0\1\xff" + PLAIN, "RST_STREAM 1 PROTOCOL_ERROR"),
        (ALL, b"\xff", "GOAWAY 0 COMPRESSION_ERROR"),
        (ALL, PLAIN + b"\x80", "GOAWAY 0 COMPRESSION_ERROR"),
    ],
    ids=["no length of padding", "too much padding", "all padding", "short priority", "on itself", "cut", "index 0"],
)
def test_ways_not_to(flags, payload, reaction):
    peer = Peer()
    assert peer.told(headers(flags, payload)) == [reaction]
    assert not peer.streams


def test_a_block_that_does_not_decode_closes_the_connection_also_on_a_closed_stream():
    peer = Peer()
    peer.open(1).reset(frames.CANCEL)
    peer.received()
    assert peer.told(headers(ALL, b"\xff")) == ["GOAWAY 1 COMPRESSION_ERROR"]


@pytest.mark.parametrize("cuts", [(0,), (1,), (len(PLAIN),), (10, 20, 20, 30)])
def test_a_block_in_pieces(cuts):
    edges = [0, *cuts, len(PLAIN)]
    first, *rest = [PLAIN[begin:end] for begin, end in itertools.pairwise(edges)]
    peer = Peer()
    pieces = [continuation(piece) for piece in rest[:-1]]
    assert peer.told(headers(frames.END_STREAM, first), *pieces) == []
    assert not peer.streams
    assert peer.told(continuation(rest[-1], end=True)) == []
    assert peer.streams[1].events == ["headers", "end"]


@pytest.mark.parametrize(
    "between",
    [
        data(1),
        headers(ALL, PLAIN, 3),
        headers(ALL, PLAIN),
        frames.frame(frames.PRIORITY, 0, 3, b"\0\0\0\0\1"),
        frames.reset(1, frames.CANCEL),
        settings(),
        ping(),
        frames.goaway(0, frames.NO_ERROR),
        frames.window_update(0, 1),
        continuation(stream_id=3),
        frames.frame(0xBE, 0, 0),
    ],
    ids=[
        "DATA",
        "HEADERS",
        "HEADERS of the same stream",
        "PRIORITY",
        "RST_STREAM",
        "SETTINGS",
        "PING",
        "GOAWAY",
        "WINDOW_UPDATE",
        "CONTINUATION of another stream",
        "unknown",
    ],
)
def test_nothing_comes_between_the_pieces(between):
    peer = Peer()
    assert peer.told(headers(0, PLAIN[:10]), between) == ["GOAWAY 0 PROTOCOL_ERROR"]


def test_a_block_ends_once():
    peer = Peer()
    assert peer.told(headers(0, PLAIN), continuation(end=True), continuation(end=True)) == ["GOAWAY 1 PROTOCOL_ERROR"]


def test_as_many_continuations_as_allowed():
    peer = Peer(Limits(continuations_max=3))
    begin = headers(ALL & ~frames.END_HEADERS, PLAIN)
    assert peer.told(begin, continuation() * 2, continuation(end=True)) == []
    assert peer.told(headers(0, PLAIN, 3), continuation(stream_id=3) * 3) == []
    assert peer.told(continuation(stream_id=3, end=True)) == ["GOAWAY 1 ENHANCE_YOUR_CALM"]


def test_a_block_of_the_largest_size():
    limits = Limits(header_list_max_bytes=1024)
    peer = Peer(limits)
    assert peer.told(headers(0, bytes(4096)), continuation()) == []
    assert peer.told(continuation(b"\0")) == ["GOAWAY 0 ENHANCE_YOUR_CALM"]


def sized(size):
    """A request whose header list has this size, as section 6.5.2 counts."""
    used = sum(len(name) + len(value) + 32 for name, value in REQUEST) + len("x-big") + 32
    return PLAIN + literal(b"x-big", b"y" * (size - used))


def test_a_header_list_at_the_limit():
    peer = Peer(Limits(header_list_max_bytes=1000))
    assert peer.told(headers(ALL, sized(1000))) == []
    assert peer.told(headers(ALL, sized(1001), 3)) == ["RST_STREAM 3 ENHANCE_YOUR_CALM"]
    assert peer.told(headers(ALL, sized(1000), 5)) == []
    assert sorted(peer.connection.streams) == [1, 5]


def test_trailers_above_the_limit_end_their_stream_only():
    peer = Peer(Limits(header_list_max_bytes=1000))
    peer.open(1)
    peer.open(3)
    assert peer.told(headers(ALL, sized(1001))) == ["RST_STREAM 1 PROTOCOL_ERROR"]
    assert list(peer.connection.streams) == [3]


def test_a_header_list_too_large_leaves_the_tables_equal():
    peer = Peer(Limits(header_list_max_bytes=1000))
    fields = [*REQUEST, ("x-new", "entry"), ("x-big", "y" * 1000)]
    assert peer.told(peer.headers(1, fields, end=True)) == ["RST_STREAM 1 ENHANCE_YOUR_CALM"]
    assert peer.told(peer.headers(3, [*REQUEST, ("x-new", "entry")], end=True)) == []


def test_equal_blocks_are_equal_requests_until_the_table_changes():
    """The connection remembers what equal bytes meant; an entry added in between gives them another meaning."""
    peer = Peer()
    seen = []
    peer.connection._parse_head = lambda fields: seen.append(fields) or Head()
    newest = PLAIN + b"\xbe"  # index 62: the newest entry of the dynamic table

    def adding(name):
        return PLAIN + b"\x40" + literal(name, b"y")[1:]

    for stream_id, block in enumerate((adding(b"one"), newest, newest, adding(b"two"), newest)):
        assert peer.told(headers(ALL, block, 2 * stream_id + 1)) == []
    assert [fields[-1][0] for fields in seen] == [b"one", b"one", b"two", b"two"]


class Head:
    content_length = None


def test_promised_lengths():
    """Section 8.1.1: content-length and the DATA frames agree, or the request is malformed."""
    peer = Peer()
    fields = [*REQUEST, ("content-length", "5")]
    for stream_id in (1, 3, 5, 7, 9):
        assert peer.told(peer.headers(stream_id, fields)) == []
    assert peer.told(data(1, b"hello", end=True)) == []
    assert peer.told(data(3, b"hel"), data(3, b"lo"), data(3, end=True)) == []
    assert peer.told(data(5, b"hello!")) == ["RST_STREAM 5 PROTOCOL_ERROR"]
    assert peer.told(data(7, b"hell", end=True)) == ["RST_STREAM 7 PROTOCOL_ERROR"]
    assert peer.told(data(9, b"hell"), peer.headers(9, [("x", "y")], end=True)) == ["RST_STREAM 9 PROTOCOL_ERROR"]
    assert peer.told(peer.headers(11, fields, end=True)) == ["RST_STREAM 11 PROTOCOL_ERROR"]
    padded = frames.frame(frames.DATA, frames.PADDED | frames.END_STREAM, 13, b"\3hello\0\0\0")
    assert peer.told(peer.headers(13, fields), padded) == []
    assert peer.streams[13].events == ["headers", b"hello", "end"]
    assert peer.told(peer.headers(15, [*REQUEST, ("content-length", "0")], end=True)) == []


@pytest.mark.parametrize("size", [16_384, 16_385, 40_000])
@pytest.mark.parametrize("which", ["headers", "trailers", "alone"])
def test_a_large_block_of_ours_leaves_in_pieces(which, size):
    """Section 4.2: no frame is larger than the peer's SETTINGS_MAX_FRAME_SIZE."""
    peer = Peer()
    stream = peer.open(1, end=True)
    block = bytes(range(256)) * (size // 256) + bytes(size % 256)
    if which == "headers":
        stream.send_headers(block)
    else:
        if which == "trailers":
            stream.send_headers(b"\x88")
        stream.end(block, block)
    first, *rest = peer.received()[1 if which == "trailers" else 0 :]
    assert b"".join(each.data for each in (first, *rest)) == block
    assert ("END_STREAM" in first.flags) == (which != "headers")
    assert ["END_HEADERS" in each.flags for each in (first, *rest)] == [False] * len(rest) + [True]
    assert all(each.stream_id == 1 and len(each.data) <= 16_384 for each in (first, *rest))
