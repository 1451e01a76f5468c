"""Answers of a call: replies, streams, trailers, sources, turns (gRPC over HTTP/2, "Responses")."""

import pytest
from grpc_peer import GrpcPeer, deframed, window
from h2_peer import data, settings, words
from purerpc import Status, StatusCode

from trio_broker.rpc import frames
from trio_broker.rpc.budget import Budgets
from trio_broker.rpc.framing import framed
from trio_broker.rpc.limits import Limits


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
    in_parts = {b"grpc-accept-encoding": b"identity,deflate,gzip"} if size > 16_384 - 5 else {}
    assert answer.headers == {b":status": b"200", b"content-type": b"application/grpc", **in_parts}
    assert answer.trailers == {b"grpc-status": b"0"}
    assert not peer.connection.streams


def test_replies_that_wait_for_windows_are_bounded_together():
    peer = GrpcPeer(Limits(outbound_max_bytes=1_000_000))
    calls = [peer.call(stream_id, b"x") for stream_id in (1, 3, 5, 7)]
    for call in calls[:3]:
        call.reply(bytes(400_000))
    refused = peer.answer(5)
    assert refused.code == StatusCode.RESOURCE_EXHAUSTED.value
    assert "wait for this connection's windows" in refused.text
    peer.told(frames.reset(1, frames.CANCEL))
    calls[3].reply(bytes(400_000))
    assert not peer.answer(7).ended, "there was room again"
    assert peer.connection.queued_bytes == sum(stream.queued_bytes for stream in peer.connection.streams.values())


def test_replies_of_all_connections_are_bounded_together():
    limits = Limits(outbound_total_bytes=1_000_000)
    budgets = Budgets.of(limits)
    refusals = []
    budgets.outbound.on_refused = lambda: refusals.append(budgets.outbound.held_bytes)
    peers = [GrpcPeer(limits, budgets) for _ in range(3)]
    for peer in peers:
        peer.call(1, b"x").reply(bytes(400_000))
    held = sum(peer.connection.queued_bytes for peer in peers)
    assert budgets.outbound.held_bytes == held
    assert refusals == [held]
    assert "clients that do not read" in peers[2].answer(1).text
    peers[0].connection.drop_all()
    peers[2].call(3, b"x").reply(bytes(400_000))
    assert not peers[2].answer(3).ended, "there was room again"
    for peer in peers:
        peer.connection.drop_all()
    assert budgets.outbound.held_bytes == 0


def test_a_reply_to_a_socket_that_takes_no_more_waits_where_it_is_counted():
    peer = GrpcPeer()
    window(peer, 2**20)
    peer.connection.stalled = True
    peer.call(1, b"x").reply(bytes(10))
    assert peer.connection.queued_bytes == peer.connection.budgets.outbound.held_bytes == 15
    assert peer.answer(1).ended
    assert peer.connection.budgets.outbound.held_bytes == 0


def test_one_reply_may_be_larger_than_all_may_be_together():
    peer = GrpcPeer(Limits(outbound_max_bytes=1))
    peer.call(1, b"x").reply(bytes(200_000))
    assert not peer.answer(1).ended


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
        b"x-request-id": b"test-1",
    }


TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("metadata", "echoed"),
    [
        ([], {}),
        ([("x-request-id", "order-17"), ("x-other", "1")], {b"x-request-id": b"order-17"}),
        ([("traceparent", TRACEPARENT)], {b"traceparent": TRACEPARENT.encode()}),
        ([("x-request-id", "!" * 128)], {b"x-request-id": b"!" * 128}),
        ([("x-request-id", "!" * 129)], {}),
        ([("x-request-id", "two words")], {}),
        ([("x-request-id", "\x1b[31m")], {}),
        ([("x-request-id", "")], {}),
        ([("x-request-id", "1"), ("x-request-id", "2")], {}),
        ([("traceparent", TRACEPARENT.upper())], {}),
        ([("traceparent", TRACEPARENT.replace("00f067aa0ba902b7", "0" * 16))], {}),
        ([("traceparent", TRACEPARENT + "-1")], {}),
    ],
)
def test_what_identifies_a_call_comes_back_if_it_is_well_formed(metadata, echoed):
    peer = GrpcPeer()
    peer.call(1, b"x", more=metadata).reply(b"y")
    answer = peer.answer(1)
    assert (answer.body, answer.trailers) == (framed(b"y"), {b"grpc-status": b"0", **echoed})


@pytest.mark.parametrize(("metadata", "told"), [([], b"test-1"), ([("x-request-id", "mine")], b"mine")])
def test_a_failure_always_has_a_request_id(metadata, told):
    peer = GrpcPeer()
    call = peer.call(1, b"x", more=metadata)
    call.finish(Status(StatusCode.NOT_FOUND, "nothing here"))
    assert peer.answer(1).trailers[b"x-request-id"] == call.request_id().encode() == told


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

    def take(self, call, credit):
        taken = b""
        while self.messages and len(taken) < credit:
            taken += framed(self.messages.pop(0))
        return taken

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
    assert peer.app.began_calls == [call]


def test_an_answer_begins_with_the_first_message_of_its_source():
    peer = GrpcPeer()
    call = peer.call(1, b"x")
    source = Source()
    call.attach(source)
    assert peer.answer(1).headers is not None
    assert peer.app.began_calls == []
    source.messages.append(b"first")
    peer.connection.mark(call)
    assert deframed(peer.answer(1).body) == [b"first"]
    assert peer.app.began_calls == [call]


def test_a_source_of_a_call_that_is_over_is_closed_at_once():
    peer = GrpcPeer()
    call = peer.call(1, b"x")
    peer.send(frames.reset(1, frames.CANCEL))
    source = Source(b"one")
    call.attach(source)
    assert source.closed == 1
    assert peer.received() == []


def test_a_source_that_ends_its_call():
    class Last(Source):
        def take(self, call, credit):
            taken = super().take(call, credit)
            if self.messages:
                return taken
            call.send(taken)
            call.finish(Status(StatusCode.UNAVAILABLE, "no more"))
            return b""

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
