"""gRPC over HTTP/2: message framing, cardinality, compression, what is not gRPC, how answers look."""

import itertools

import pytest
from grpc_peer import GrpcPeer, deframed, window
from h2_peer import REQUEST, data, settings, words
from hypothesis import given
from hypothesis import strategies as st
from purerpc import Status, StatusCode

from trio_broker.rpc import frames
from trio_broker.rpc.call import framed
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
    assert peer.connection.held == 0


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
    assert peer.connection.held == 0
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
    call = peer.call(3, end=False, method=method)
    answer = peer.answer(3, data(3, framed(bytes(101))[:5]))
    assert answer.code == StatusCode.RESOURCE_EXHAUSTED.value
    assert answer.text == "the message has 101 bytes; at most 100 are accepted"
    assert answer.reset == "NO_ERROR"
    assert peer.connection.held == 0
    assert peer.told(data(3, bytes(101), end=True)) == []  # what was under way
    assert 1 in peer.connection.streams
    assert call in peer.app.over_calls


def test_a_message_too_large_after_others():
    peer = GrpcPeer(Limits(message_max_bytes=100))
    call = peer.call(1, b"fine", bytes(101), method="Collect", end=False)
    assert list(call.inbox) == [b"fine"]
    assert call.status.status_code is StatusCode.RESOURCE_EXHAUSTED


def test_all_unfinished_messages_together_are_bounded():
    peer = GrpcPeer(Limits(inbound_max_bytes=1000))
    for stream_id in (1, 3):
        peer.call(stream_id, end=False)
        assert peer.told(data(stream_id, framed(bytes(600))[:500])) == []
    assert peer.connection.held == 1000
    peer.call(5, end=False)
    answer = peer.answer(5, data(5, b"\0"))
    assert answer.code == StatusCode.RESOURCE_EXHAUSTED.value
    assert peer.connection.held == 1000
    assert peer.told(data(1, framed(bytes(600))[500:], end=True)) == []
    assert peer.connection.held == 500
    assert peer.told(frames.reset(3, frames.CANCEL)) == []
    assert peer.connection.held == 0


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
    peer.call(1, end=False, more=[("grpc-encoding", "gzip")])
    answer = peer.answer(1, data(1, b"\1\0\0\0\1x", end=True))
    assert answer.code == StatusCode.UNIMPLEMENTED.value
    assert "gzip" in answer.text
    assert answer.trailers[b"grpc-accept-encoding"] == b"identity"


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


# answers


def test_a_reply_leaves_in_one_piece():
    peer = GrpcPeer()
    peer.call(1, b"x").reply(b"hello")
    assert [words(each).split(" b")[0] for each in peer.received()] == ["HEADERS 1", "DATA 1", "HEADERS 1 END_STREAM"]


@pytest.mark.parametrize("size", [0, 1, 16_384 - 5, 16_384 - 4, 65_535 - 5, 65_535 - 4, 200_000])
def test_a_reply_of_any_size(size):
    peer = GrpcPeer()
    peer.call(1, b"x").reply(bytes(size))
    answer = peer.answer(1)
    while not answer.ended:
        answer = peer.answer(1, frames.window_update(1, 30_000), frames.window_update(0, 40_000))
    assert [len(message) for message in deframed(answer.body)] == [size]
    assert answer.headers == {b":status": b"200", b"content-type": b"application/grpc"}
    assert answer.trailers == {b"grpc-status": b"0"}
    assert not peer.connection.streams


def test_a_reply_at_the_connections_window():
    peer = GrpcPeer()
    window(peer, 2**20)
    peer.connection.send_window = 15
    peer.call(1, b"x").reply(bytes(10))
    assert peer.answer(1).ended
    assert peer.connection.send_window == 0
    peer.call(3, b"x").reply(b"")
    assert not peer.answer(3).ended
    assert peer.answer(3, frames.window_update(0, 5)).ended


def test_metadata_of_both_ends():
    peer = GrpcPeer()
    call = peer.call(1, b"x")
    call.initial_metadata = [("x-first", "1"), ("x-first-bin", b"\0\xff")]
    call.trailing_metadata = [("x-last", "2")]
    call.reply(b"hello")
    answer = peer.answer(1)
    assert answer.headers[b"x-first"] == b"1"
    assert answer.headers[b"x-first-bin"] == b"AP8"
    assert answer.trailers == {b"grpc-status": b"0", b"x-last": b"2"}


def test_trailers_only():
    peer = GrpcPeer()
    call = peer.call(1, b"x")
    call.initial_metadata = [("x-first", "1")]
    call.trailing_metadata = [("x-last", "2")]
    call.finish(Status(StatusCode.NOT_FOUND, "nothing here"))
    answer = peer.answer(1)
    assert answer.headers is None
    assert answer.trailers == {
        b":status": b"200",
        b"content-type": b"application/grpc",
        b"x-first": b"1",
        b"grpc-status": b"5",
        b"grpc-message": b"nothing here",
        b"x-last": b"2",
    }


def test_an_early_end_is_followed_by_a_reset_without_error():
    """RFC 9113, section 8.1: what the client still sends is not needed."""
    peer = GrpcPeer()
    call = peer.call(1, b"x", method="Collect", end=False)
    call.reply(b"enough")
    answer = peer.answer(1)
    assert (answer.code, answer.reset) == (0, "NO_ERROR")
    assert peer.told(data(1, framed(b"more")), data(1, end=True)) == []


def test_a_call_ends_once():
    peer = GrpcPeer()
    call = peer.call(1, b"x")
    call.reply(b"hello")
    call.reply(b"again")
    call.finish(Status(StatusCode.INTERNAL, "no"))
    call.send(framed(b"more"))
    call.send_head()
    assert deframed(peer.answer(1).body) == [b"hello"]
    assert peer.answer(1).code == 0
    assert peer.app.over_calls == [call]


def test_what_was_sent_leaves_before_the_status():
    peer = GrpcPeer()
    window(peer, 8)
    call = peer.call(1, b"x")
    call.send_head()
    call.send(framed(b"hello"))
    call.finish(Status(StatusCode.ABORTED, "late"))
    assert not peer.answer(1).ended
    assert peer.app.over_calls == []
    answer = peer.answer(1, frames.window_update(1, 2))
    assert deframed(answer.body) == [b"hello"]
    assert answer.code == StatusCode.ABORTED.value
    assert peer.app.over_calls == [call]


@pytest.mark.parametrize("how", ["reset", "lost"])
def test_a_call_that_the_peer_ends_has_no_status(how):
    peer = GrpcPeer()
    call = peer.call(1, b"x", method="Collect", end=False)
    peer.send(data(1, framed(b"hello")[:7]))
    if how == "reset":
        peer.send(frames.reset(1, frames.CANCEL))
    else:
        peer.connection.drop_all()
    assert peer.app.over_calls == [call]
    assert call.status is None
    assert call.closed
    assert peer.connection.held == 0
    call.reply(b"to nobody")
    assert peer.received() == []


class Source:
    """Messages for a drained stream."""

    def __init__(self, *messages):
        self.messages = list(messages)
        self.closed = 0

    def fill(self, call, credit):
        while self.messages and call.queued_bytes < credit:
            call.send(framed(self.messages.pop(0)))

    def close(self):
        self.closed += 1


def test_a_source_is_drained_and_closed_once():
    peer = GrpcPeer()
    call = peer.call(1, b"x")
    source = Source(b"one", b"two")
    call.attach(source)
    answer = peer.answer(1)
    assert answer.headers is not None
    assert deframed(answer.body) == [b"one", b"two"]
    source.messages.append(b"three")
    peer.connection.mark(call)
    assert deframed(peer.answer(1).body) == [b"one", b"two", b"three"]
    call.finish(Status(StatusCode.OK))
    assert peer.answer(1).code == 0
    assert source.closed == 1


def test_a_source_of_a_call_that_is_over_is_closed_at_once():
    peer = GrpcPeer()
    call = peer.call(1, b"x")
    peer.send(frames.reset(1, frames.CANCEL))
    source = Source(b"one")
    call.attach(source)
    assert source.closed == 1
    assert peer.received() == []


def test_a_source_that_ends_its_call_in_fill():
    class Last(Source):
        def fill(self, call, credit):
            super().fill(call, credit)
            if not self.messages:
                call.finish(Status(StatusCode.UNAVAILABLE, "no more"))

    peer = GrpcPeer()
    window(peer, 10)
    call = peer.call(1, b"x")
    source = Last(b"hello", b"world")
    call.attach(source)
    answer = peer.answer(1)
    assert (answer.ended, source.messages) == (False, [b"world"])
    answer = peer.answer(1, frames.window_update(1, 100))
    assert deframed(answer.body) == [b"hello", b"world"]
    assert answer.code == StatusCode.UNAVAILABLE.value
    assert source.closed == 1


def test_room_is_told_when_everything_has_left_and_when_the_call_is_over():
    told = []
    peer = GrpcPeer()
    window(peer, 10)
    call = peer.call(1, b"x")
    call.room = lambda: told.append(call.queued_bytes)
    call.send_head()
    call.send(bytes(15))
    peer.received()
    assert told == []
    peer.send(frames.window_update(1, 100))
    assert told == [0]
    peer.send(frames.reset(1, frames.CANCEL))
    assert told == [0, 0]


def test_many_streams_are_answered_in_turn():
    peer = GrpcPeer()
    peer.send(settings({frames.INITIAL_WINDOW_SIZE: 2**20}), frames.window_update(0, 2**24))
    calls = [peer.call(stream_id, b"x") for stream_id in range(1, 41, 2)]
    for call in calls:
        call.send_head()
        call.send(bytes(40_000))
        call.finish(Status(StatusCode.OK))
    turns = [each.stream_id for each in peer.received() if type(each).__name__ == "DataFrame"]
    assert turns == list(range(1, 41, 2)) * 3
