"""The same bytes in any pieces give the same; and no bytes at all are more than a connection can bear."""

import itertools

import hpack
from grpc_peer import GrpcPeer
from h2_peer import Peer, data, ping, settings
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from trio_broker.rpc import frames
from trio_broker.rpc.framing import framed
from trio_broker.rpc.limits import Limits

untimed = hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def session():
    """The bytes of a client that does a little of everything; nothing in it is wrong but the last frame."""
    client = GrpcPeer()
    big = framed(bytes(3000))
    return b"".join(
        (
            frames.PREFACE,
            settings({frames.INITIAL_WINDOW_SIZE: 100_000}),
            client.request(1, b"hello", more=[("x-new", "entry")]),
            client.request(3, b"hello", b"world", method="Collect", more=[("x-new", "entry")]),
            client.request(5, end=False, more=[("grpc-timeout", "5S")]),
            ping(),
            data(5, big[:1000]),
            client.request(7, b"x", method="Nothing"),
            data(5, big[1000:], end=True),
            frames.frame(frames.PRIORITY, 0, 9, b"\0\0\0\0\x10"),
            frames.window_update(0, 1000),
            client.request(9, end=False),
            frames.reset(9, frames.CANCEL),
            frames.goaway(0, frames.NO_ERROR),
            data(0, b"wrong"),
        )
    )


SESSION = session()


def outcome(pieces):
    """What the server did and said."""
    server = GrpcPeer(connect=False)
    for piece in pieces:
        server.connection.receive(piece)
    calls = [
        (call.id, call.message, list(call.inbox or ()), call.status and call.status.int_value, call.closed)
        for call in server.app.calls
    ]
    return calls, [call.id for call in server.app.ready_calls], server.connection.take()


WHOLE = outcome([SESSION])


def test_the_session_is_worth_it():
    calls, ready, output = WHOLE
    assert [call[0] for call in calls] == [1, 3, 5, 7, 9]
    assert ready == [1, 5]
    assert frames.goaway(9, frames.PROTOCOL_ERROR)[9:17] in output


def test_one_byte_at_a_time():
    assert outcome([SESSION[index : index + 1] for index in range(len(SESSION))]) == WHOLE


@untimed
@given(st.lists(st.integers(0, len(SESSION)), max_size=20))
def test_any_pieces(cuts):
    edges = sorted({0, len(SESSION), *cuts})
    assert outcome([SESSION[begin:end] for begin, end in itertools.pairwise(edges)]) == WHOLE


@untimed
@given(st.lists(st.binary(max_size=200), max_size=10))
def test_any_bytes_after_the_preface(pieces):
    peer = Peer()
    for piece in pieces:
        peer.send(piece)
    peer.connection.drop_all()
    assert not peer.connection.streams


EVERY_KIND = st.builds(
    frames.frame,
    st.integers(0, 11),
    st.integers(0, 255),
    st.sampled_from([0, 1, 1, 1, 3, 5, 2, frames.STREAM_ID_MAX]),
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from([b"", bytes(4), bytes(5), bytes(6), bytes(8), framed(b"x"), framed(bytes(300))]),
        st.just(hpack.Encoder().encode([(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/toy.Toy/Echo")])),
        st.just(GrpcPeer().block()),
    ),
)


@untimed
@given(st.lists(EVERY_KIND, max_size=30))
def test_any_frames(some):
    """No frames make the connection raise, or leave a call that is not over, or forget what it holds."""
    peer = GrpcPeer(Limits(stream_window_bytes=1000, message_max_bytes=250))
    for each in some:
        peer.send(each)
        connection = peer.connection
        assert connection.held == sum(call.held for call in connection.streams.values())
    peer.connection.drop_all()
    assert sorted(peer.app.over_calls, key=id) == sorted(peer.app.calls, key=id)
    assert (peer.connection.held, peer.connection.streams, peer.connection._blocked) == (0, {}, {})
