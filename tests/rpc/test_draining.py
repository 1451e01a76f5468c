"""GOAWAY, ours in two steps and the peer's (RFC 9113, section 6.8)."""

from h2_peer import Peer, data, ping

from trio_broker.rpc import frames

DRAINING = ping(b"draining", frames.ACK)


def test_both_steps():
    peer = Peer()
    first = peer.open(1, end=True)
    peer.connection.drain()
    assert peer.told() == ["GOAWAY max NO_ERROR", "PING"]
    second = peer.open(3, end=True)  # it was under way
    assert peer.told(ping(b"somebody", frames.ACK)) == []
    assert peer.told(DRAINING) == ["GOAWAY 3 NO_ERROR"]
    assert not peer.connection.finished
    first.end(b"\x88")
    second.end(b"\x88")
    assert peer.connection.finished
    assert peer.told() == ["HEADERS 1 END_STREAM", "HEADERS 3 END_STREAM"]


def test_an_idle_connection_is_finished_by_the_second_step():
    peer = Peer()
    peer.connection.drain()
    assert not peer.connection.finished
    peer.send(DRAINING)
    assert peer.connection.finished


def test_a_peer_that_does_not_answer_is_not_waited_for():
    peer = Peer()
    peer.open(1)
    peer.connection.drain()
    peer.connection.drain_now()
    assert peer.told() == ["GOAWAY max NO_ERROR", "PING", "GOAWAY 1 NO_ERROR"]


def test_each_step_is_taken_once():
    peer = Peer()
    peer.connection.drain()
    peer.connection.drain()
    assert len(peer.received()) == 2
    assert peer.told(DRAINING * 2) == ["GOAWAY 0 NO_ERROR"]
    peer.connection.drain_now()
    peer.connection.drain()
    assert peer.received() == []


def test_streams_after_the_second_step_are_ignored_and_never_promised():
    """The last stream of a GOAWAY must not grow: the client has sent those above it to another server."""
    peer = Peer()
    stream = peer.open(1)
    peer.connection.drain()
    peer.send(DRAINING)
    fields = [*((":method", "POST"), (":scheme", "http"), (":path", "/")), ("x-new", "entry")]
    assert peer.told(peer.headers(3, fields), data(3, b"x", end=True)) == []
    assert list(peer.streams) == [1]
    peer.connection.drain_now()
    assert peer.told(DRAINING) == []
    assert peer.told(peer.headers(1, [("x-new", "entry")], end=True)) == []  # the tables are still equal
    assert stream.events[-1] == "end"
    assert peer.told(ping(b"")) == ["GOAWAY 1 FRAME_SIZE_ERROR"]


def test_the_ping_means_nothing_without_draining():
    peer = Peer()
    assert peer.told(DRAINING) == []
    peer.open(1)


def test_the_highest_identifier_can_be_drained():
    peer = Peer()
    stream = peer.open(frames.STREAM_ID_MAX, end=True)
    peer.connection.drain()
    peer.send(DRAINING)
    stream.end(b"\x88")
    assert peer.connection.finished


def test_after_the_peers_goaway_its_streams_go_on():
    peer = Peer()
    stream = peer.open(1)
    assert peer.told(frames.goaway(0, frames.NO_ERROR, "bye")) == []
    assert peer.told(data(1, b"x", end=True)) == []
    stream.end(b"\x88")
    assert peer.told() == ["HEADERS 1 END_STREAM"]
    assert not peer.connection.finished


def test_the_end_of_a_lost_connection_ends_every_stream_and_says_nothing():
    peer = Peer()
    streams = [peer.open(stream_id) for stream_id in (1, 3, 5)]
    streams[0].send_headers(b"\x88")
    streams[0].send(bytes(100_000))
    peer.received()
    peer.connection.drop_all()
    assert peer.received() == []
    assert [stream.events[-1] for stream in streams] == ["closed"] * 3
    assert not peer.connection.streams
