"""The beginning of a connection, and every frame type in every state of a stream (RFC 9113)."""

import pytest
from h2_peer import REQUEST, SETTINGS_ACK, Peer, data, ping, settings
from hyperframe.frame import SettingsFrame

from trio_broker.rpc import frames
from trio_broker.rpc.limits import Limits

PRIORITY = b"\0\0\0\0\x10"


# the preface (section 3.4)


def test_the_server_speaks_first():
    first, second = Peer(connect=False).received()
    assert isinstance(first, SettingsFrame)
    assert first.settings == {
        SettingsFrame.HEADER_TABLE_SIZE: 4096,
        SettingsFrame.MAX_CONCURRENT_STREAMS: 1000,
        SettingsFrame.INITIAL_WINDOW_SIZE: 1024 * 1024,
        SettingsFrame.MAX_HEADER_LIST_SIZE: 16 * 1024,
    }
    assert second.stream_id == 0
    assert second.window_increment == 4 * 1024 * 1024 - 65_535


def test_a_connection_window_as_small_as_the_initial_one_is_not_announced():
    assert len(Peer(Limits(connection_window_bytes=frames.WINDOW_INITIAL), connect=False).received()) == 1


def test_a_connection_window_below_the_initial_one_cannot_be_had():
    with pytest.raises(ValueError, match="connection_window_bytes must be at least 65535, not 65534"):
        Limits(connection_window_bytes=frames.WINDOW_INITIAL - 1)


def test_settings_are_acknowledged():
    peer = Peer(connect=False)
    peer.received()
    assert peer.told(frames.PREFACE, settings()) == ["SETTINGS ACK"]


@pytest.mark.parametrize(
    "begin",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rx",
        b"\0" * 9,
    ],
    ids=["HTTP/1", "TLS", "wrong at its end", "zeros"],
)
def test_another_protocol_is_refused(begin):
    peer = Peer(connect=False)
    peer.received()
    assert peer.told(begin) == ["GOAWAY 0 PROTOCOL_ERROR"]
    assert peer.connection.finished
    assert peer.told(begin) == []


def test_a_beginning_of_the_preface_is_waited_with():
    peer = Peer(connect=False)
    peer.received()
    assert peer.told(frames.PREFACE[:23]) == []
    assert peer.told(frames.PREFACE[23:] + settings()) == ["SETTINGS ACK"]


@pytest.mark.parametrize(
    "first", [ping(), SETTINGS_ACK, frames.window_update(0, 1), data(1)], ids=["PING", "ACK", "WINDOW_UPDATE", "DATA"]
)
def test_the_first_frame_must_be_settings(first):
    peer = Peer(connect=False)
    peer.received()
    assert peer.told(frames.PREFACE, first) == ["GOAWAY 0 PROTOCOL_ERROR"]


# every frame in every state (section 5.1)


def idle(peer):
    peer.open(3, end=True)
    return 5


def open_(peer):
    peer.open(1)
    return 1


def half_closed_remote(peer):
    peer.open(1, end=True)
    return 1


def half_closed_local(peer):
    """The response's end waits for a window: the nearest that a server here comes to it (`Connection.ended`)."""
    peer.send(settings({frames.INITIAL_WINDOW_SIZE: 0}))
    stream = peer.open(1)
    stream.send_headers(b"\x88")
    stream.send(b"x")
    stream.end(b"")
    peer.received()
    return 1


def closed_by_both(peer):
    stream = peer.open(1, end=True)
    stream.end(b"\x88")
    peer.received()
    return 1


def closed_by_our_reset(peer):
    peer.open(1).reset(frames.CANCEL)
    peer.received()
    return 1


def closed_by_our_early_end(peer):
    peer.open(1).end(b"\x88")
    peer.received()
    return 1


def closed_by_the_peers_reset(peer):
    peer.open(1)
    peer.send(frames.reset(1, frames.CANCEL))
    return 1


STATES = [
    idle,
    open_,
    half_closed_remote,
    half_closed_local,
    closed_by_both,
    closed_by_our_reset,
    closed_by_our_early_end,
    closed_by_the_peers_reset,
]

OK = []
PROTOCOL_ERROR = ["GOAWAY 1 PROTOCOL_ERROR"]
IDLE_PROTOCOL_ERROR = ["GOAWAY 3 PROTOCOL_ERROR"]
STREAM_CLOSED = ["RST_STREAM 1 STREAM_CLOSED"]
CONNECTION_STREAM_CLOSED = ["GOAWAY 1 STREAM_CLOSED"]
NEVER_ON_A_STREAM = [IDLE_PROTOCOL_ERROR, *[PROTOCOL_ERROR] * 7]
IGNORED = [OK] * 8

REACTIONS = {
    #               idle, open, half-closed remote, half-closed local; closed by: both, our reset, our end, peer's reset
    "DATA": [IDLE_PROTOCOL_ERROR, OK, STREAM_CLOSED, OK, STREAM_CLOSED, OK, OK, STREAM_CLOSED],
    "HEADERS": [OK, OK, STREAM_CLOSED, OK, CONNECTION_STREAM_CLOSED, OK, OK, CONNECTION_STREAM_CLOSED],
    "PRIORITY": IGNORED,
    "RST_STREAM": [IDLE_PROTOCOL_ERROR, *[OK] * 7],
    "SETTINGS": NEVER_ON_A_STREAM,
    "PUSH_PROMISE": NEVER_ON_A_STREAM,
    "PING": NEVER_ON_A_STREAM,
    "GOAWAY": NEVER_ON_A_STREAM,
    "WINDOW_UPDATE": [IDLE_PROTOCOL_ERROR, OK, OK, ["DATA 1 b'x' END_STREAM", "RST_STREAM 1 NO_ERROR"], *[OK] * 4],
    "CONTINUATION": NEVER_ON_A_STREAM,
    "unknown": IGNORED,
}


def make(peer, kind, stream_id):
    match kind:
        case "DATA":
            return data(stream_id, b"x")
        case "HEADERS":
            fields = REQUEST if stream_id == 5 else [("x", "y")]
            return peer.headers(stream_id, fields, end=True)
        case "PRIORITY":
            return frames.frame(frames.PRIORITY, 0, stream_id, PRIORITY)
        case "RST_STREAM":
            return frames.reset(stream_id, frames.CANCEL)
        case "SETTINGS" | "PUSH_PROMISE" | "CONTINUATION":
            return frames.frame(getattr(frames, kind), 0, stream_id)
        case "PING" | "GOAWAY":
            return frames.frame(getattr(frames, kind), 0, stream_id, b"12345678")
        case "WINDOW_UPDATE":
            return frames.window_update(stream_id, 1)
        case _:
            return frames.frame(0xBE, 0xFF, stream_id, b"whatever")


@pytest.mark.parametrize("kind", REACTIONS)
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_a_frame_in_a_state(state, kind):
    peer = Peer()
    stream_id = state(peer)
    told = peer.told(make(peer, kind, stream_id))
    assert told == REACTIONS[kind][STATES.index(state)]
    assert peer.connection.failed == any("GOAWAY" in each for each in told)
    for stream in peer.streams.values():
        assert stream.events.count("closed") == (stream.id not in peer.connection.streams)


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_headers_are_decoded_in_every_state_that_survives_them(state):
    """Section 4.3: whatever becomes of a stream, both ends' dynamic tables must stay the same."""
    peer = Peer()
    stream_id = state(peer)
    peer.send(peer.headers(stream_id, [("x-new", "an entry of the table")], end=True))
    if not peer.connection.failed:
        head = peer.encoder.encode([*REQUEST, ("x-new", "an entry of the table")])
        assert peer.told(frames.frame(frames.HEADERS, frames.END_HEADERS, 7, head)) == []
        assert 7 in peer.connection.streams


def test_data_for_a_stream_that_we_reset_still_counts_for_the_connection():
    peer = Peer()
    closed_by_our_reset(peer)
    half = Limits().connection_window_bytes // 2
    frame = data(1, bytes(16_384))
    told = peer.told(frame * (half // 16_384))
    assert told == [f"WINDOW_UPDATE 0 {half}"]


def test_after_the_end_of_its_late_frames_a_stream_that_we_reset_is_closed_for_good():
    peer = Peer()
    closed_by_our_reset(peer)
    assert peer.told(data(1, b"x"), data(1, end=True)) == []
    assert peer.told(data(1, b"x")) == STREAM_CLOSED


def test_only_so_many_resets_are_remembered():
    peer = Peer(Limits(remembered_resets_max=2))
    for stream in [peer.open(stream_id) for stream_id in (1, 3, 5)]:
        stream.reset(frames.CANCEL)
    peer.received()
    assert peer.told(data(5, b"x"), data(3, b"x")) == []
    assert peer.told(data(1, b"x")) == ["RST_STREAM 1 STREAM_CLOSED"]


def test_the_trailers_of_a_request_end_it():
    peer = Peer()
    stream = peer.open(1)
    assert peer.told(data(1, b"body"), peer.headers(1, [("x-md5", "y"), ("1", "y")], end=True)) == []
    assert stream.events == ["headers", b"body", "end"]


@pytest.mark.parametrize(
    ("fields", "end"),
    [([("x", "y")], False), ([(":path", "/")], True), ([("X", "y")], True)],
    ids=["without END_STREAM", "pseudo-header", "upper case"],
)
def test_malformed_trailers(fields, end):
    peer = Peer()
    stream = peer.open(1)
    assert peer.told(peer.headers(1, fields, end=end)) == ["RST_STREAM 1 PROTOCOL_ERROR"]
    assert stream.events == ["headers", "closed"]


# stream identifiers (section 5.1.1)


@pytest.mark.parametrize("stream_id", [0, 2])
def test_a_client_has_odd_stream_identifiers(stream_id):
    peer = Peer()
    assert peer.told(peer.headers(stream_id)) == ["GOAWAY 0 PROTOCOL_ERROR"]


def test_a_lower_identifier_is_a_closed_stream():
    peer = Peer()
    peer.open(5)
    assert peer.told(peer.headers(3)) == ["GOAWAY 5 STREAM_CLOSED"]


def test_the_highest_identifier():
    peer = Peer()
    peer.open(frames.STREAM_ID_MAX)


def test_the_reserved_bit_of_an_identifier_is_ignored():
    peer = Peer()
    peer.open(1)
    assert peer.told(frames.frame(frames.DATA, frames.END_STREAM, 0x8000_0001, b"x")) == []
    assert peer.streams[1].events == ["headers", b"x", "end"]


@pytest.mark.parametrize("stream_id", [0, 2, 5])
@pytest.mark.parametrize("kind", ["DATA", "RST_STREAM", "WINDOW_UPDATE"])
def test_frames_of_streams_that_cannot_be(kind, stream_id):
    if (kind, stream_id) == ("WINDOW_UPDATE", 0):
        return  # the connection's
    peer = Peer()
    peer.open(3)
    assert peer.told(make(peer, kind, stream_id)) == IDLE_PROTOCOL_ERROR


def test_too_many_streams_are_refused_and_their_bodies_ignored():
    peer = Peer(Limits(streams_max=2))
    peer.open(1)
    peer.open(3)
    assert peer.told(peer.headers(5), data(5, b"x", end=True)) == ["RST_STREAM 5 REFUSED_STREAM"]
    assert peer.told(frames.reset(1, frames.CANCEL)) == []
    peer.open(7)


# sizes (sections 4.2 and 6)


@pytest.mark.parametrize(
    ("frame", "reaction"),
    [
        (frames.frame(frames.PRIORITY, 0, 1, b"1234"), ["RST_STREAM 1 FRAME_SIZE_ERROR"]),
        (frames.frame(frames.PRIORITY, 0, 0, PRIORITY), PROTOCOL_ERROR),
        (frames.frame(frames.PRIORITY, 0, 1, b"\0\0\0\1\0"), ["RST_STREAM 1 PROTOCOL_ERROR"]),
        (frames.frame(frames.RST_STREAM, 0, 1, b"123"), ["GOAWAY 1 FRAME_SIZE_ERROR"]),
        (frames.frame(frames.SETTINGS, 0, 0, b"12345"), ["GOAWAY 1 FRAME_SIZE_ERROR"]),
        (frames.frame(frames.SETTINGS, frames.ACK, 0, b"123456"), ["GOAWAY 1 FRAME_SIZE_ERROR"]),
        (frames.frame(frames.PING, 0, 0, b"1234567"), ["GOAWAY 1 FRAME_SIZE_ERROR"]),
        (frames.frame(frames.GOAWAY, 0, 0, b"1234567"), ["GOAWAY 1 FRAME_SIZE_ERROR"]),
        (frames.frame(frames.WINDOW_UPDATE, 0, 0, b"12345"), ["GOAWAY 1 FRAME_SIZE_ERROR"]),
        (frames.frame(frames.WINDOW_UPDATE, 0, 1, b"123"), ["GOAWAY 1 FRAME_SIZE_ERROR"]),
        (frames.window_update(0, 0), PROTOCOL_ERROR),
        (frames.window_update(1, 0), ["RST_STREAM 1 PROTOCOL_ERROR"]),
        (frames.frame(frames.DATA, frames.PADDED, 1), PROTOCOL_ERROR),
        (frames.frame(frames.DATA, frames.PADDED, 1, b"\1"), PROTOCOL_ERROR),
        (frames.frame(frames.DATA, 0, 1, bytes(16_385)), ["GOAWAY 1 FRAME_SIZE_ERROR"]),
        (frames.frame(0xBE, 0, 1, bytes(16_385)), ["GOAWAY 1 FRAME_SIZE_ERROR"]),
        (frames.frame(frames.DATA, 0, 1, bytes(16_384)), OK),
        (frames.frame(frames.GOAWAY, 0, 0, bytes(8) + b"farewell"), OK),
        (frames.frame(frames.PING, 0x82, 0, bytes(8)), ["PING ACK"]),
        (frames.frame(frames.PING, frames.ACK, 0, bytes(8)), OK),
        (SETTINGS_ACK, OK),
    ],
)
def test_sizes_and_contents(frame, reaction):
    peer = Peer()
    peer.open(1)
    assert peer.told(frame) == reaction


@pytest.mark.parametrize("stream_id", [2, 3])
def test_a_wrong_priority_of_an_idle_stream_ends_the_connection(stream_id):
    """RST_STREAM may not be sent for such a stream (section 6.4): a client would have to close the connection."""
    peer = Peer()
    peer.open(1)
    assert peer.told(frames.frame(frames.PRIORITY, 0, stream_id, b"1234")) == ["GOAWAY 1 FRAME_SIZE_ERROR"]


def test_a_frame_that_is_too_large_is_refused_by_its_header():
    peer = Peer()
    peer.open(1)
    assert peer.told(data(1, bytes(16_385))[:9]) == ["GOAWAY 1 FRAME_SIZE_ERROR"]


def test_a_failed_connection_hears_and_says_nothing_more():
    peer = Peer()
    stream = peer.open(1)
    assert peer.told(ping(b"1"), ping()) == ["GOAWAY 1 FRAME_SIZE_ERROR"]
    assert peer.told(ping(), peer.headers(3)) == []
    peer.connection.fail(frames.INTERNAL_ERROR, "again")
    assert peer.received() == []
    assert stream.events == ["headers", "closed"]
    stream.send(b"x")
    stream.end(b"")
    stream.reset(frames.CANCEL)
    assert peer.received() == []
