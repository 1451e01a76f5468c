"""What costs the peer less than us is bounded (RFC 9113, section 10.5), and a busy honest client never notices."""

import pytest
from grpc_peer import GrpcPeer
from h2_peer import REQUEST, SETTINGS_ACK, Peer, data, ping, settings

from trio_broker.rpc import frames
from trio_broker.rpc.budget import Budgets
from trio_broker.rpc.hpack import literal
from trio_broker.rpc.limits import Limits

BURST = 10
LIMITS = Limits(control_burst=BURST, control_per_s=5, ping_burst=BURST, pings_per_s=5)
CALM_DOWN = "ENHANCE_YOUR_CALM"
HEADERS = b"\x88"
PRIORITY = frames.frame(frames.PRIORITY, 0, 1, b"\0\0\0\0\x10")


def calm_peer(limits=LIMITS):
    """A peer whose budget is untouched: its first SETTINGS was forgiven."""
    peer = Peer(limits)
    peer.send(SETTINGS_ACK)
    peer.connection.forgive(1)
    return peer


def zero_window(peer):
    stream_id = peer.connection.last_stream_id + 2
    peer.open(stream_id)
    return frames.window_update(stream_id, 0)


FLOODS = {
    "PING": lambda _: ping(),
    "SETTINGS": lambda _: settings(),
    "PRIORITY": lambda _: PRIORITY,
    "empty DATA": lambda _: data(3),
    "empty DATA of a stream that we reset": lambda _: data(5),
    "WINDOW_UPDATE by 0": zero_window,
    "WINDOW_UPDATE by 1": lambda _: frames.window_update(3, 1),
    "WINDOW_UPDATE of the connection by 1": lambda _: frames.window_update(0, 1),
    "RST_STREAM of a stream that has ended": lambda _: frames.reset(1, frames.CANCEL),
    "SETTINGS ACK": lambda _: SETTINGS_ACK,
    "PING ACK": lambda _: ping(flags=frames.ACK),
    "GOAWAY": lambda _: frames.goaway(0, frames.NO_ERROR),
    "unknown": lambda _: frames.frame(0xBE, 0, 0),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_so_many_and_no_more(flood):
    peer = calm_peer()
    peer.open(1, end=True).end(HEADERS)
    peer.open(3)
    peer.open(5).reset(frames.CANCEL)
    peer.received()
    for _ in range(BURST):
        peer.send(FLOODS[flood](peer))
        assert not peer.connection.failed
    assert peer.told(FLOODS[flood](peer))[-1].endswith(CALM_DOWN)


def test_the_budget_exactly():
    peer = calm_peer()
    assert peer.told(ping() * BURST) == ["PING ACK"] * BURST
    assert peer.told(ping()) == ["GOAWAY 0 ENHANCE_YOUR_CALM"]


def test_time_forgives_also_when_bytes_come_often():
    peer = calm_peer()
    peer.send(ping() * BURST)
    for _ in range(1000):
        peer.connection.forgive(0.001)
    assert peer.told(ping() * 4) == ["PING ACK"] * 4


def test_time_forgives_no_more_than_the_burst():
    peer = calm_peer()
    peer.connection.forgive(1e9)
    assert peer.told(ping() * (BURST + 1))[-1] == "GOAWAY 0 ENHANCE_YOUR_CALM"


def test_acknowledgements_of_what_we_sent_are_free():
    peer = calm_peer()
    for _ in range(3 * BURST):
        peer.connection.ping()
        assert [each for each in peer.told(ping(flags=frames.ACK)) if each != "PING"] == []
    assert not peer.connection.failed


def test_windows_that_change_for_many_streams_count_for_more():
    """Each costs what touching all the streams does."""
    peer = calm_peer(Limits(control_burst=10, control_per_s=1))
    for stream_id in range(1, 2 * 48, 2):
        peer.open(stream_id)
    sizes = [1000, 2000, 3000]
    told = [peer.told(settings({frames.INITIAL_WINDOW_SIZE: size})) for size in sizes]
    assert told == [["SETTINGS ACK"], ["SETTINGS ACK"], ["GOAWAY 95 ENHANCE_YOUR_CALM"]]


def test_messages_in_crumbs_are_counted():
    peer = GrpcPeer(LIMITS)
    peer.send(SETTINGS_ACK)
    peer.connection.forgive(1)
    peer.send(peer.request(1, end=False), data(1, b"\0\0\1\0\0"), data(1, bytes(63)) * BURST)
    assert not peer.connection.failed
    peer.send(data(1, bytes(64)) * BURST)
    assert not peer.connection.failed, "these are large enough"
    assert peer.told(data(1, bytes(63))) == ["GOAWAY 1 ENHANCE_YOUR_CALM"]


def test_the_beginning_and_the_end_of_a_message_may_be_as_small_as_they_are():
    peer = GrpcPeer(LIMITS)
    peer.send(peer.request(1, method="Chat", end=False))
    for _ in range(3 * BURST):
        peer.send(data(1, b"\0\0\0\0\2"), data(1, b"ab"))
    assert not peer.connection.failed


def test_pings_beyond_the_bound_are_told_in_the_words_that_grpc_libraries_know():
    """With "too_many_pings" they ping half as often from then on (gRFC A8)."""
    peer = calm_peer(Limits(ping_burst=3))
    goaway = peer.send(ping() * 4)[-1]
    assert (goaway.error_code, goaway.additional_data) == (frames.ENHANCE_YOUR_CALM, b"too_many_pings")


def test_keepalive_as_often_as_grpc_libraries_allow_is_no_flood():
    """They ping every ten seconds at most (gRFC A8); here every second, for hours, without a call."""
    peer = Peer()
    for _ in range(10_000):
        peer.connection.forgive(1)
        assert peer.told(ping()) == ["PING ACK"]


def rapid_reset(peer, begin, count, *, answer):
    for stream_id in range(begin, begin + 2 * count, 2):
        stream = peer.open(stream_id, end=True)
        if answer:
            stream.send_headers(HEADERS)
        peer.send(frames.reset(stream_id, frames.CANCEL))
    return begin + 2 * count


def test_rapid_reset_is_cut():
    """CVE-2023-44487: requests that are cancelled before they are answered."""
    peer = calm_peer()
    following = rapid_reset(peer, 1, BURST, answer=False)
    peer.open(following)
    assert peer.told(frames.reset(following, frames.CANCEL)) == [f"GOAWAY {following} ENHANCE_YOUR_CALM"]


def test_a_call_that_its_client_gave_up_after_a_while_is_no_rapid_reset():
    """Clients whose deadlines pass while the server is stuck: they come in numbers, just when it answers nobody."""
    peer = calm_peer(Limits(control_burst=BURST, control_per_s=1, rapid_reset_s=0.02))
    for stream_id in range(1, 20 * BURST, 2):
        peer.open(stream_id, end=True)
        peer.connection.forgive(0.02)
        assert peer.told(frames.reset(stream_id, frames.CANCEL)) == []


def test_a_reset_that_crosses_our_end_is_free():
    peer = calm_peer()
    for stream_id in range(1, 10 * BURST, 2):
        stream = peer.open(stream_id, end=True)
        stream.send_headers(HEADERS)
        peer.received()
        stream.end(HEADERS)
        peer.received()
        assert peer.told(frames.reset(stream_id, frames.CANCEL)) == []


def test_a_ping_for_each_write_of_data_is_free():
    """What grpc-go does with its default options while it receives a stream."""
    peer = calm_peer()
    stream = peer.open(1, end=True)
    for _ in range(20 * BURST):
        stream.send(b"message")
        peer.received()
        assert peer.told(ping(), frames.window_update(1, 7), frames.window_update(0, 7)) == ["PING ACK"]


def test_our_own_resets_are_counted():
    """CVE-2025-8671: frames that make the server reset the stream, so that it does not count as the client's."""
    peer = calm_peer()
    for stream_id in range(1, 2 * BURST, 2):
        peer.open(stream_id)
        assert peer.told(frames.window_update(stream_id, 0)) == [f"RST_STREAM {stream_id} PROTOCOL_ERROR"]
    peer.open(99)
    assert peer.told(frames.window_update(99, 0)) == ["GOAWAY 99 ENHANCE_YOUR_CALM"]


def test_refused_streams_are_counted():
    peer = calm_peer(Limits(control_burst=BURST, streams_max=1))
    peer.open(1)
    told = [each for stream_id in range(3, 99, 2) for each in peer.told(peer.headers(stream_id))]
    assert told[:2] == ["RST_STREAM 3 REFUSED_STREAM", "RST_STREAM 5 REFUSED_STREAM"]
    assert told[-1].endswith(CALM_DOWN)


def test_cancels_of_answered_streams_are_free():
    peer = calm_peer()
    rapid_reset(peer, 1, 1000, answer=True)
    assert not peer.connection.failed


def test_a_thousand_streams_may_be_cancelled_at_once():
    """Whether they were answered or not: a client that stops has done nothing wrong."""
    peer = Peer()
    for stream_id in range(1, 2001, 2):
        stream = peer.open(stream_id, end=True)
        if stream_id % 4 == 1:
            stream.send_headers(HEADERS)
    peer.received()
    assert peer.told(b"".join(frames.reset(stream_id, frames.CANCEL) for stream_id in range(1, 2001, 2))) == []
    assert not peer.connection.streams


def test_the_budget_grows_with_answers():
    """A client that cancels half of its calls for hours: each answer forgives a cancel."""
    peer = calm_peer()
    following = 1
    for _ in range(10 * BURST):
        following = rapid_reset(peer, following, 1, answer=False)
        peer.open(following, end=True).end(HEADERS, HEADERS)
        peer.connection.answered()  # trailers-only: call.py says that it is an answer
        following += 2
        peer.received()
    assert not peer.connection.failed


def test_trailers_of_a_reset_stream_come_once():
    """They cost decoding: a second block is a connection error."""
    peer = calm_peer()
    peer.open(1).reset(frames.CANCEL)
    peer.received()
    assert peer.told(peer.headers(1, [("x", "y")], end=True)) == []
    assert peer.told(peer.headers(1, [("x", "y")], end=True)) == ["GOAWAY 1 STREAM_CLOSED"]


def test_what_is_remembered_of_header_blocks_is_bounded():
    peer = Peer()
    request = b"".join(literal(name.encode(), value.encode()) for name, value in REQUEST)
    peer.send(peer.headers(1, [*REQUEST, ("x-long", "y" * 100)]))  # the newest of the table, which has index 62
    connection = peer.connection
    most = 0
    for stream_id, times in enumerate([0, 1, 2, 50, 3, 4, 60, 20, 20, 20, 100, 0] * 5):
        stream_id = 2 * stream_id + 3
        block = request + literal(b"n", b"%d" % stream_id) + b"\xbe" * times
        assert len(block) < 256
        assert peer.send(frames.headers(0, stream_id, block)) == []
        kept = [head.fields for head in connection._heads.values()]
        size = sum(len(name) + len(value) + 32 for fields in kept for name, value in fields)
        assert size == connection._heads_bytes <= 8 * 1024
        most = max(most, len(kept))
    assert most > 3


def test_what_is_remembered_of_resets_is_bounded():
    peer = Peer(Limits(remembered_resets_max=100))
    for stream_id in range(1, 2001, 2):
        peer.open(stream_id).reset(frames.CANCEL)
    assert list(peer.connection._reset_ids) == list(range(1801, 2001, 2))


@pytest.mark.parametrize("cut", [0, 10_000])
def test_header_blocks_that_do_not_end_are_refused_when_all_together_hold_too_much(cut):
    budgets = Budgets.of(Limits(inbound_total_bytes=20_000))
    budgets.inbound.held_bytes = 10_001 - cut
    peer = GrpcPeer(budgets=budgets)
    assert peer.told(frames.frame(frames.HEADERS, 0, 1, bytes(cut))) == []
    assert peer.told(frames.frame(frames.CONTINUATION, 0, 1, bytes(10_000))) == ["GOAWAY 0 ENHANCE_YOUR_CALM"]
    assert budgets.inbound.held_bytes == 10_001 - cut
