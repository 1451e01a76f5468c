"""Flow control both ways, exactly at the windows (RFC 9113, sections 5.2 and 6.9)."""

import struct

import pytest
from h2_peer import Peer, data, settings, words
from hyperframe.frame import DataFrame, HeadersFrame

from trio_broker.rpc import frames
from trio_broker.rpc.limits import Limits

HEADERS = b"\x88"
KIB = 1024
FRAME = 16 * KIB


def fill(stream_id, size):
    """DATA frames of a body of so many bytes."""
    whole, rest = divmod(size, FRAME)
    return data(stream_id, bytes(FRAME)) * whole + (data(stream_id, bytes(rest)) if rest else b"")


def sizes(received):
    """The streams and sizes of DATA frames; HEADERS apart, there are no others."""
    received = [each for each in received if not isinstance(each, HeadersFrame)]
    assert all(isinstance(each, DataFrame) for each in received), [words(each) for each in received]
    return [(each.stream_id, len(each.data)) for each in received]


# towards the server


def test_a_stream_may_send_its_window_and_no_more():
    peer = Peer(Limits(stream_window_bytes=100 * KIB), hold=True)
    peer.open(1)
    peer.open(3)
    assert peer.told(fill(1, 100 * KIB)) == []
    assert peer.told(data(1, b"x")) == ["RST_STREAM 1 FLOW_CONTROL_ERROR"]
    assert peer.told(data(3, b"x")) == []


def test_an_empty_frame_needs_no_window():
    peer = Peer(Limits(stream_window_bytes=FRAME), hold=True)
    peer.open(1)
    assert peer.told(fill(1, FRAME), data(1, end=True)) == []
    assert peer.streams[1].events[-1] == "end"


def test_all_streams_together_may_send_the_connections_window_and_no_more():
    peer = Peer(Limits(stream_window_bytes=200 * KIB, connection_window_bytes=100 * KIB), hold=True)
    stream = peer.open(1)
    assert peer.told(fill(1, 50 * KIB - 1)) == []
    assert peer.told(data(1, bytes(FRAME))) == [f"WINDOW_UPDATE 0 {50 * KIB - 1 + FRAME}"]
    # What is received is credited at once, so that only a peer who ignores the window can exceed it: pretend.
    peer.connection._receive_window = FRAME
    assert peer.told(data(1, bytes(FRAME))) == []
    assert peer.told(data(1, b"x")) == ["GOAWAY 1 FLOW_CONTROL_ERROR"]
    assert stream.events[-1] == "closed"


def test_credit_comes_back_in_halves_of_the_window():
    peer = Peer(Limits(stream_window_bytes=100 * KIB), hold=True)
    stream = peer.open(1)
    peer.send(fill(1, 100 * KIB))
    stream.take(50 * KIB - 1)
    assert peer.received() == []
    stream.take(1)
    assert peer.told() == [f"WINDOW_UPDATE 1 {50 * KIB}"]
    assert peer.told(fill(1, 50 * KIB)) == []
    assert peer.told(data(1, b"x")) == ["RST_STREAM 1 FLOW_CONTROL_ERROR"]


@pytest.mark.parametrize("over", ["end", "reset"])
def test_a_request_that_is_over_gets_no_more_credit(over):
    peer = Peer(Limits(stream_window_bytes=FRAME), hold=True)
    stream = peer.open(1)
    peer.send(fill(1, FRAME), data(1, end=True) if over == "end" else frames.reset(1, frames.CANCEL))
    stream.take(FRAME)
    assert peer.received() == []


def test_padding_counts_and_is_given_back():
    peer = Peer(Limits(stream_window_bytes=1000), hold=True)
    stream = peer.open(1)
    padded = frames.frame(frames.DATA, frames.PADDED, 1, bytes([199]) + bytes(300 + 199))
    assert peer.told(padded) == []
    stream.take(299)
    assert peer.received() == []
    stream.take(1)
    assert peer.told() == ["WINDOW_UPDATE 1 500"]


# towards the peer


def responding(peer, stream_id, *parts):
    stream = peer.open(stream_id, end=True)
    stream.send_headers(HEADERS)
    for part in parts:
        stream.send(part)
    return stream


def window(peer, size):
    """Give new streams this window, and the connection the largest."""
    peer.send(settings({frames.INITIAL_WINDOW_SIZE: size}))
    peer.send(frames.window_update(0, frames.WINDOW_MAX - peer.connection.send_window))


def test_a_body_of_exactly_the_window():
    peer = Peer()
    window(peer, 100)
    stream = responding(peer, 1, bytes(100))
    stream.end(b"")
    assert sizes(peer.received()) == [(1, 100)]
    assert not peer.connection.streams


def test_one_byte_more_than_the_window():
    peer = Peer()
    window(peer, 100)
    stream = responding(peer, 1, bytes(60), bytes(41))
    stream.end(b"")
    assert sizes(peer.received()) == [(1, 100)]
    assert peer.told(frames.window_update(1, 1)) == ["DATA 1 b'\\x00' END_STREAM"]
    assert not peer.connection.streams


def test_trailers_need_no_window():
    peer = Peer()
    window(peer, 100)
    stream = responding(peer, 1, bytes(100))
    assert sizes(peer.received()) == [(1, 100)]
    stream.end(HEADERS)
    assert peer.told() == ["HEADERS 1 END_STREAM"]


def test_the_connections_window_bounds_all_streams():
    peer = Peer()
    responding(peer, 1, bytes(40_000))
    responding(peer, 3, bytes(40_000))
    assert sizes(peer.received()) == [(1, FRAME), (3, FRAME), (1, FRAME), (3, FRAME - 1)]
    assert not peer.connection.sendable
    assert sizes(peer.send(frames.window_update(0, 20_000))) == [(1, 40_000 - 2 * FRAME), (3, 40_000 - 2 * FRAME + 1)]


def test_the_peers_frame_size_is_used_up_to_ours():
    peer = Peer(Limits(frame_max_bytes=20_000))
    window(peer, 200_000)
    responding(peer, 1, bytes(50_000))
    assert sizes(peer.received()) == [(1, 16_384)] * 3 + [(1, 848)]
    peer.send(settings({frames.MAX_FRAME_SIZE: 2**24 - 1}))
    peer.streams[1].send(bytes(50_000))
    assert sizes(peer.received()) == [(1, 20_000), (1, 20_000), (1, 10_000)]


def test_a_write_gathers_only_so_much():
    peer = Peer(Limits(write_max_bytes=30_000))
    window(peer, 200_000)
    responding(peer, 1)
    peer.received()
    peer.streams[1].send(bytes(100_000))
    assert len(peer.connection.take()) == 2 * (FRAME + 9)
    assert peer.connection.sendable


def test_small_messages_share_a_frame():
    peer = Peer()
    responding(peer, 1, *[b"%d" % number for number in range(10)])
    assert peer.told() == ["HEADERS 1", "DATA 1 b'0123456789'"]


def test_streams_take_turns():
    peer = Peer()
    window(peer, 200_000)
    for stream_id in (1, 3, 5):
        responding(peer, stream_id, bytes(40_000))
    turns = [stream_id for stream_id, _ in sizes(peer.received())]
    assert turns == [1, 3, 5] * 3


def test_a_blocked_stream_does_not_hold_up_the_others():
    peer = Peer()
    window(peer, 10)
    responding(peer, 1, bytes(11))
    responding(peer, 3, bytes(10))
    assert sizes(peer.received()) == [(1, 10), (3, 10)]
    responding(peer, 5, bytes(3))
    assert sizes(peer.received()) == [(5, 3)]
    assert sizes(peer.send(frames.window_update(1, 5))) == [(1, 1)]


def test_a_window_may_become_negative():
    """Section 6.9.2: a smaller initial window also takes from the streams that are open."""
    peer = Peer()
    window(peer, 100)
    stream = responding(peer, 1, bytes(200))
    assert sizes(peer.received()) == [(1, 100)]
    assert peer.told(settings({frames.INITIAL_WINDOW_SIZE: 10})) == ["SETTINGS ACK"]
    assert stream.send_window == -90
    assert peer.told(frames.window_update(1, 90)) == []
    assert sizes(peer.send(frames.window_update(1, 1))) == [(1, 1)]
    ack, rest = peer.send(settings({frames.INITIAL_WINDOW_SIZE: 1000}))
    assert words(ack) == "SETTINGS ACK"
    assert sizes([rest]) == [(1, 99)]


def test_a_window_that_opens_in_settings_moves_blocked_streams():
    peer = Peer()
    window(peer, 0)
    responding(peer, 1, b"a")
    responding(peer, 3, b"b")
    assert sizes(peer.received()) == []
    assert peer.told(settings({frames.INITIAL_WINDOW_SIZE: 1})) == ["SETTINGS ACK", "DATA 1 b'a'", "DATA 3 b'b'"]


def test_settings_may_change_twice_in_a_frame():
    peer = Peer()
    window(peer, 100)
    stream = responding(peer, 1)
    peer.received()
    stream.send(bytes(30))
    change = frames.frame(
        frames.SETTINGS, 0, 0, b"".join(settings({frames.INITIAL_WINDOW_SIZE: size})[9:] for size in (0, 20))
    )
    ack, part = peer.send(change)
    assert words(ack) == "SETTINGS ACK"
    assert sizes([part]) == [(1, 20)]


def test_windows_at_and_over_their_maximum():
    peer = Peer()
    peer.open(1)
    most = frames.WINDOW_MAX - frames.WINDOW_INITIAL
    assert peer.told(frames.window_update(1, most), frames.window_update(0, most)) == []
    assert peer.told(frames.window_update(1, 1)) == ["RST_STREAM 1 FLOW_CONTROL_ERROR"]
    assert peer.told(frames.window_update(0, 1)) == ["GOAWAY 1 FLOW_CONTROL_ERROR"]


@pytest.mark.parametrize(
    ("name", "value", "reaction"),
    [
        (frames.INITIAL_WINDOW_SIZE, 2**31 - 1, "SETTINGS ACK"),
        (frames.INITIAL_WINDOW_SIZE, 2**31, "GOAWAY 0 FLOW_CONTROL_ERROR"),
        (frames.MAX_FRAME_SIZE, 16_384, "SETTINGS ACK"),
        (frames.MAX_FRAME_SIZE, 16_383, "GOAWAY 0 PROTOCOL_ERROR"),
        (frames.MAX_FRAME_SIZE, 2**24 - 1, "SETTINGS ACK"),
        (frames.MAX_FRAME_SIZE, 2**24, "GOAWAY 0 PROTOCOL_ERROR"),
        (frames.ENABLE_PUSH, 1, "SETTINGS ACK"),
        (frames.ENABLE_PUSH, 2, "GOAWAY 0 PROTOCOL_ERROR"),
        (frames.HEADER_TABLE_SIZE, 2**32 - 1, "SETTINGS ACK"),
        (frames.MAX_CONCURRENT_STREAMS, 0, "SETTINGS ACK"),
        (0xFFFF, 2**32 - 1, "SETTINGS ACK"),
    ],
)
def test_settings_at_their_limits(name, value, reaction):
    assert Peer().told(settings({name: value})) == [reaction]


def test_settings_that_push_an_open_stream_over_the_maximum():
    peer = Peer()
    peer.open(1)
    peer.send(frames.window_update(1, frames.WINDOW_MAX - frames.WINDOW_INITIAL))
    change = settings({frames.INITIAL_WINDOW_SIZE: frames.WINDOW_INITIAL + 1})
    assert peer.told(change) == ["GOAWAY 1 FLOW_CONTROL_ERROR"]


def test_what_a_dropped_stream_had_queued_is_not_sent():
    peer = Peer()
    window(peer, 10)
    stream = responding(peer, 1, bytes(20))
    assert sizes(peer.received()) == [(1, 10)]
    assert peer.told(frames.reset(1, frames.CANCEL)) == []
    assert stream.queued_bytes == 0
    assert peer.told(settings({frames.INITIAL_WINDOW_SIZE: 1000})) == ["SETTINGS ACK"]


def test_cancelled_streams_are_not_kept_until_the_connections_window_opens():
    """A peer that never opens it could open and cancel streams for ever."""
    peer = Peer()
    responding(peer, 1, bytes(100_000))
    responding(peer, 3, bytes(100_000))
    peer.received()
    for stream_id in range(5, 1005, 2):
        responding(peer, stream_id, b"x")
        peer.send(frames.reset(stream_id, frames.CANCEL))
    assert {stream.id for stream in peer.connection._dirty} == {1, 3}
    assert sum(size for _, size in sizes(peer.send(frames.window_update(0, 1000)))) == 1000


def test_a_source_is_asked_when_there_is_room_and_only_then():
    peer = Peer()
    window(peer, 10)
    stream = responding(peer, 1)
    stream.source = [b"aaaa", b"bbbb", b"cccc", b"dddd"]
    peer.connection.mark(stream)
    assert peer.told() == ["HEADERS 1", "DATA 1 b'aaaabbbbcc'"]
    assert stream.source == [b"dddd"]
    assert peer.told(frames.window_update(1, 3)) == ["DATA 1 b'ccd'"]
    assert peer.told(frames.window_update(1, 100)) == ["DATA 1 b'ddd'"]
    stream.source = [b"eeee"]
    assert peer.received() == []  # nobody said that there is more
    peer.connection.mark(stream)
    assert peer.told() == ["DATA 1 b'eeee'"]


def test_output_is_announced_once_until_it_is_taken():
    peer = Peer()
    stream = peer.open(1, end=True)
    before = peer.announced
    stream.send_headers(HEADERS)
    stream.send(b"x")
    stream.end(b"")
    assert peer.announced == before + 1
    peer.received()
    peer.open(3, end=True).send_headers(HEADERS)
    assert peer.announced == before + 2


def test_a_frame_of_many_windows_touches_each_stream_once():
    """Each entry would otherwise cost as much as there are streams: 2,730 entries fit in a frame."""
    peer = Peer()
    streams = [peer.open(stream_id) for stream_id in (1, 3)]
    changes = []
    for stream in streams:
        stream.send(bytes(70_000))
    peer.received()
    peer.connection._change_peer_window, change = changes.append, peer.connection._change_peer_window
    entries = b"".join(struct.pack(">HI", frames.INITIAL_WINDOW_SIZE, size) for size in range(1, 2731))
    peer.send(frames.frame(frames.SETTINGS, 0, 0, entries))
    assert changes == [2730]
    change(2730)
    assert peer.connection.peer_window == 2730


def test_what_waits_for_a_window_is_never_copied():
    """Many streams may share it."""
    peer = Peer()
    peer.send(settings({frames.INITIAL_WINDOW_SIZE: 0}))
    small, shared = b"small", bytes(100 * KIB)
    streams = [peer.open(stream_id, end=True) for stream_id in (1, 3)]
    for stream in streams:
        stream.send(small)
        stream.send(shared)
    sent = []
    for increment in (3, 2, 10, FRAME):
        sent += sizes(peer.send(*[frames.window_update(stream.id, increment) for stream in streams]))
        assert all(getattr(piece, "obj", piece) in (small, shared) for stream in streams for piece in stream.queue)
        assert all(getattr(stream.queue[-1], "obj", stream.queue[-1]) is shared for stream in streams)
    assert sent == [(stream_id, size) for size in (3, 2, 10, FRAME) for stream_id in (1, 3)]
    assert streams[0].queued_bytes == len(small) + len(shared) - 3 - 2 - 10 - FRAME
