"""gRPC over HTTP/2: message framing, cardinality, compression, what is not gRPC."""

import itertools

import pytest
from grpc_peer import GrpcPeer, window
from h2_peer import REQUEST, data
from hypothesis import given
from hypothesis import strategies as st
from purerpc import StatusCode

from trio_broker.rpc import frames
from trio_broker.rpc.framing import framed
from trio_broker.rpc.limits import Limits


def changed(**values):
    """The usual request with other values; None leaves a field out."""
    values = {name.replace("_", "-"): value for name, value in values.items()}
    pseudo = {f":{name}": value for name, value in values.items() if f":{name}" in dict(REQUEST)}
    merged = {**dict(REQUEST), **pseudo, **{n: v for n, v in values.items() if f":{n}" not in dict(REQUEST)}}
    return [(name, value) for name, value in merged.items() if value is not None]


# messages in


def test_one_message():
    peer = GrpcPeer()
    call = peer.call(1, b"hello")
    assert call.message == b"hello"
    assert peer.app.ready_calls == [call]


def test_an_empty_message_is_a_message():
    peer = GrpcPeer()
    assert peer.call(1, b"").message == b""
    assert len(peer.app.ready_calls) == 1


@pytest.mark.parametrize("end_apart", [False, True])
@pytest.mark.parametrize("size", [0, 1, 100])
def test_a_message_cut_anywhere(size, end_apart):
    body = framed(bytes(range(size)))
    for cut in range(len(body) + 1):
        peer = GrpcPeer()
        call = peer.call(1, end=False)
        end = [data(1, end=True)] if end_apart else []
        assert peer.told(data(1, body[:cut]), data(1, body[cut:], end=not end_apart), *end) == []
        assert call.message == bytes(range(size))
        assert peer.app.ready_calls == [call]
        assert peer.connection.held == 0


@given(
    st.lists(st.binary(max_size=40), max_size=8),
    st.lists(st.integers(0, 300), max_size=10),
)
def test_any_messages_in_any_frames(messages, cuts):
    body = b"".join(framed(message) for message in messages)
    edges = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    peer = GrpcPeer()
    call = peer.call(1, method="Collect", end=False)
    told = peer.told(*[data(1, body[begin:end]) for begin, end in itertools.pairwise(edges)], data(1, end=True))
    assert told == []
    assert list(call.inbox) == messages
    assert call.request_ended
    assert peer.connection.held >= sum(map(len, messages))
    for message in messages:
        call.taken(message)
    assert peer.connection.held == peer.connection.budgets.inbound.held_bytes == 0


def test_credit_returns_when_messages_are_taken():
    limits = Limits(stream_window_bytes=100)
    peer = GrpcPeer(limits)
    call = peer.call(1, bytes(45), bytes(45), method="Collect", end=False)
    assert peer.received() == []
    call.taken(call.inbox.popleft())
    assert peer.told() == ["WINDOW_UPDATE 1 50"]
    assert peer.told(data(1, framed(bytes(45)))) == []
    assert peer.told(data(1, b"x")) == ["RST_STREAM 1 FLOW_CONTROL_ERROR"]


def test_a_message_larger_than_the_window_arrives():
    """Its parts are credited as they come; the whole is then held against the stream until it is taken."""
    limits = Limits(stream_window_bytes=1000, message_max_bytes=10_000)
    peer = GrpcPeer(limits)
    call = peer.call(1, method="Collect", end=False)
    body = framed(bytes(10_000))
    granted = limits.stream_window_bytes
    sent = 0
    while sent < len(body):
        part = body[sent : sent + min(granted, 600)]
        assert part, "the window is shut in the middle of a message"
        sent += len(part)
        granted += sum(each.window_increment for each in peer.send(data(1, part))) - len(part)
    assert [len(message) for message in call.inbox] == [10_000]
    filled = 0
    while granted > 0:
        part = framed(bytes(min(granted, 600) - 5))
        filled += len(part)
        granted += sum(each.window_increment for each in peer.send(data(1, part))) - len(part)
    assert filled <= limits.stream_window_bytes
    while call.inbox:
        call.taken(call.inbox.popleft())
    assert sum(each.window_increment for each in peer.received()) >= limits.stream_window_bytes // 2


@pytest.mark.parametrize("method", ["Echo", "Collect"])
def test_a_message_of_the_largest_size_and_one_larger(method):
    peer = GrpcPeer(Limits(message_max_bytes=100))
    call = peer.call(1, bytes(100), method=method)
    assert call.message == bytes(100) if method == "Echo" else list(call.inbox) == [bytes(100)]
    held = peer.connection.held
    call = peer.call(3, end=False, method=method)
    answer = peer.answer(3, data(3, framed(bytes(101))[:5]))
    assert answer.code == StatusCode.RESOURCE_EXHAUSTED.value
    assert answer.text == "the message has 101 bytes; at most 100 are accepted"
    assert answer.reset == "NO_ERROR"
    assert peer.connection.held == held
    assert peer.told(data(3, bytes(101), end=True)) == []  # what was under way
    assert 1 in peer.connection.streams
    assert call in peer.app.over_calls


def test_a_message_too_large_after_others():
    peer = GrpcPeer(Limits(message_max_bytes=100))
    call = peer.call(1, b"fine", bytes(101), method="Collect", end=False)
    assert list(call.inbox) == [b"fine"]
    assert call.status.status_code is StatusCode.RESOURCE_EXHAUSTED


BOUNDS = pytest.mark.parametrize("bound", ["inbound_max_bytes", "inbound_total_bytes"])


@BOUNDS
def test_all_unfinished_messages_together_are_bounded_by_their_announced_sizes(bound):
    peer = GrpcPeer(Limits(**{bound: 1000}))
    inbound = peer.connection.budgets.inbound
    peer.call(1, end=False)
    assert peer.told(data(1, framed(bytes(600))[:5])) == []
    assert peer.connection.held == inbound.held_bytes == 605
    peer.call(3, end=False)
    assert peer.answer(3, data(3, framed(bytes(391))[:50])).code == StatusCode.RESOURCE_EXHAUSTED.value
    peer.call(5, end=False)
    assert peer.told(data(5, framed(bytes(390))[:50])) == []
    assert peer.connection.held == inbound.held_bytes == 1000
    assert peer.told(data(1, framed(bytes(600))[5:], end=True)) == []
    assert len(peer.app.ready_calls) == 1
    assert peer.connection.held == inbound.held_bytes == 395
    assert peer.told(frames.reset(5, frames.CANCEL)) == []
    assert peer.connection.held == inbound.held_bytes == 0


@BOUNDS
def test_calls_that_are_refused_for_want_of_room_hold_nothing_while_their_answers_wait(bound):
    """A client that gives no windows keeps them open; others are not to be refused for their sake."""
    peer = GrpcPeer(Limits(**{bound: 1000}))
    peer.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
    for stream_id in (1, 3, 5):
        call = peer.call(stream_id, method="Collect", end=False)
        call.send_head()
        call.send(framed(b"waits"))
        peer.send(data(stream_id, framed(bytes(600))[:50]))
    assert [(call.closed, call.local_closed) for call in peer.app.calls] == [(False, False), *[(False, True)] * 2]
    assert peer.connection.held == peer.connection.budgets.inbound.held_bytes == 605


@BOUNDS
@pytest.mark.parametrize("cut", [0, 500])
def test_whole_messages_of_requests_that_do_not_end_are_bounded_too(bound, cut):
    peer = GrpcPeer(Limits(**{bound: 1000}))
    whole = framed(bytes(600))
    peer.call(1, end=False)
    assert peer.told(*[data(1, part) for part in (whole[:cut], whole[cut:]) if part]) == []
    assert peer.connection.held == 605
    peer.call(3, end=False)
    assert peer.answer(3, data(3, whole)).code == StatusCode.RESOURCE_EXHAUSTED.value
    assert peer.told(data(1, b"", end=True)) == []
    assert len(peer.app.ready_calls) == 1
    assert peer.connection.held == 0


@BOUNDS
def test_messages_that_nobody_takes_are_bounded_too(bound):
    peer = GrpcPeer(Limits(**{bound: 1000}))
    call = peer.call(1, bytes(400), bytes(400), method="Collect", end=False)
    answer = peer.answer(1, data(1, framed(bytes(100))))
    assert answer.code == StatusCode.RESOURCE_EXHAUSTED.value
    assert peer.connection.held == 0
    call.taken(call.inbox.popleft())
    assert peer.connection.held == 0


def test_pieces_of_frames_and_of_header_blocks_are_counted():
    peer = GrpcPeer()
    inbound = peer.connection.budgets.inbound
    peer.send(data(1, bytes(100))[:50])
    assert inbound.held_bytes == peer.connection.inbound_bytes == 50
    peer.connection.release()
    assert inbound.held_bytes == peer.connection.inbound_bytes == 0
    peer = GrpcPeer()
    inbound = peer.connection.budgets.inbound
    peer.send(frames.frame(frames.HEADERS, 0, 1, bytes(30)))
    peer.send(frames.frame(frames.CONTINUATION, 0, 1, bytes(30)))
    assert inbound.held_bytes == peer.connection.inbound_bytes == 60
    peer.connection.release()
    assert inbound.held_bytes == peer.connection.inbound_bytes == 0


@pytest.mark.parametrize("method", ["Echo", "Collect"])
@pytest.mark.parametrize("cut", [1, 4, 5, 7])
def test_a_request_that_ends_within_a_message(method, cut):
    peer = GrpcPeer()
    peer.call(1, method=method, end=False)
    answer = peer.answer(1, data(1, framed(b"hello")[:cut], end=True))
    assert answer.code == StatusCode.INTERNAL.value
    assert answer.reset is None


@pytest.mark.parametrize(("messages", "found"), [([], "no message"), ([b"one", b"two"], "more than one message")])
def test_a_unary_call_takes_one_message(messages, found):
    """doc/statuscodes.md: "Request cardinality violation"."""
    peer = GrpcPeer()
    peer.call(1, *messages)
    answer = peer.answer(1)
    assert answer.code == StatusCode.UNIMPLEMENTED.value
    assert found in answer.text
    assert peer.app.ready_calls == []


def test_a_second_message_in_another_frame():
    peer = GrpcPeer()
    peer.call(1, b"one", end=False)
    assert peer.answer(1, data(1, framed(b"two"))).code == StatusCode.UNIMPLEMENTED.value


@pytest.mark.parametrize("encoding", [None, "identity"])
def test_a_compressed_message_without_an_encoding(encoding):
    """doc/compression.md."""
    peer = GrpcPeer()
    peer.call(1, end=False, more=[("grpc-encoding", encoding)] if encoding else [])
    assert peer.answer(1, data(1, b"\1\0\0\0\1x", end=True)).code == StatusCode.INTERNAL.value


def test_a_compressed_message_with_an_encoding_that_we_lack():
    peer = GrpcPeer()
    peer.call(1, end=False, more=[("grpc-encoding", "snappy")])
    answer = peer.answer(1, data(1, b"\1\0\0\0\1x", end=True))
    assert answer.code == StatusCode.UNIMPLEMENTED.value
    assert "snappy" in answer.text
    assert answer.trailers[b"grpc-accept-encoding"] == b"identity,deflate,gzip"


def test_an_encoding_that_is_named_but_not_used():
    peer = GrpcPeer()
    assert peer.call(1, b"plain", more=[("grpc-encoding", "gzip")]).message == b"plain"


def test_an_unknown_method():
    peer = GrpcPeer()
    call = peer.call(1, b"hello", method="Nothing", end=False)
    answer = peer.answer(1)
    assert answer.code == StatusCode.UNIMPLEMENTED.value
    assert answer.text == "unknown method /toy.Toy/Nothing"
    assert answer.reset == "NO_ERROR"
    assert peer.app.over_calls == [call]


@pytest.mark.parametrize("name", ["path", "grpc_encoding", "grpc_timeout"])
@pytest.mark.parametrize("value", [b"/\xff", b"/\x01", b"%/", b"xyz"])
def test_little_of_what_a_peer_sent_goes_back_to_it(name, value):
    """It may repeat a header of the largest size for a byte."""
    peer = GrpcPeer()
    fields = changed(**{name: value * 2000})
    answers = peer.send(peer.headers(1, fields), data(1, b"\1\0\0\0\1x", end=True))
    assert peer.app.over_calls or name == "grpc_timeout"
    assert sum(len(frame.serialize()) for frame in answers) < 512


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (changed(method="GET"), b"405"),
        (changed(content_type=None), b"415"),
        (changed(content_type="application/json"), b"415"),
        (changed(content_type="application/grpc-web"), b"415"),
        (changed(grpc_timeout="5"), b"400"),
    ],
    ids=["GET", "no content-type", "json", "grpc-web", "timeout"],
)
def test_what_is_not_grpc_is_answered_as_http(fields, status):
    peer = GrpcPeer()
    answer = peer.answer(1, peer.headers(1, fields), data(1, b"anything", end=True))
    assert answer.headers[b":status"] == status
    assert answer.headers[b"content-length"] == b"%d" % len(answer.body)
    assert answer.body.endswith(b"\n")
    assert answer.ended
    assert answer.trailers is None
    assert peer.app.calls == []
    assert not peer.connection.streams


def test_what_is_not_grpc_is_not_answered_before_its_end():
    peer = GrpcPeer()
    assert peer.told(peer.headers(1, changed(method="GET")), data(1, bytes(1000))) == []
    assert peer.told(data(1, end=True))[0] == "HEADERS 1"


def test_an_answer_that_is_not_grpc_waits_for_the_window():
    peer = GrpcPeer()
    window(peer, 0)
    assert peer.told(peer.headers(1, changed(method="GET"), end=True)) == ["HEADERS 1"]
    assert peer.told(frames.window_update(1, 3)) == ["DATA 1 b'a g'"]
    assert peer.told(frames.window_update(1, 99)) == ["DATA 1 b'RPC call is a POST\\n' END_STREAM"]
