"""Compressed messages: each encoding inflated within bounds, whatever a peer sends; replies deflated for who asked."""

import gzip
import io
import itertools
import os
import tracemalloc
import zlib

import purerpc
import pytest
import trio
from google.protobuf.wrappers_pb2 import BytesValue
from grpc_peer import GrpcPeer, deframed
from h2_peer import data
from hypothesis import given
from hypothesis import strategies as st
from purerpc import StatusCode
from toy import SIGNATURES, Toy, connected, serving

from trio_broker.rpc import frames
from trio_broker.rpc.compression import Corrupt, InflatesTooLarge, Inflation, accepts, deflated
from trio_broker.rpc.framing import framed
from trio_broker.rpc.handlers import compressed
from trio_broker.rpc.inflow import AT_ONCE_BYTES
from trio_broker.rpc.limits import Limits

MEBIBYTE = 1024 * 1024
PACK = {"gzip": gzip.compress, "deflate": zlib.compress}
ENCODINGS = pytest.mark.parametrize("encoding", PACK)
METHODS = pytest.mark.parametrize("method", ["Echo", "Collect"])


def packed(message, encoding="gzip"):
    body = PACK[encoding](message)
    return b"\1" + len(body).to_bytes(4) + body


def begin(peer, stream_id=1, method="Echo", encoding="gzip"):
    return peer.call(stream_id, method=method, end=False, more=[("grpc-encoding", encoding)])


# the encodings


@ENCODINGS
@given(message=st.binary(max_size=2000), room=st.integers(1, 500))
def test_a_message_inflates_in_steps_of_any_size(encoding, message, room):
    inflation = Inflation(encoding, PACK[encoding](message), 2000)
    while (found := inflation.run(room)) is None:
        assert inflation.size <= len(message)
    assert found == message


@ENCODINGS
def test_a_message_of_the_largest_size_inflates_and_one_larger_does_not(encoding):
    assert Inflation(encoding, PACK[encoding](bytes(1000)), 1000).run_all() == bytes(1000)
    assert isinstance(Inflation(encoding, PACK[encoding](bytes(1001)), 1000).run_all(), InflatesTooLarge)


@ENCODINGS
@given(message=st.binary(max_size=200), cut=st.integers(1, 300))
def test_a_message_whose_end_is_missing_is_corrupt(encoding, message, cut):
    assert isinstance(Inflation(encoding, PACK[encoding](message)[:-cut], 1000).run_all(), Corrupt)


@ENCODINGS
@given(junk=st.binary(max_size=200))
def test_random_bytes_are_corrupt(encoding, junk):
    assert isinstance(Inflation(encoding, junk, 1000).run_all(), Corrupt)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(b"hello") + b"x"),
        ("gzip", gzip.compress(b"hello") + gzip.compress(b"again")),
        ("deflate", zlib.compress(b"hello") + b"x"),
        ("deflate", zlib.compress(b"hello")[2:-4]),
        ("gzip", zlib.compress(b"hello")),
        ("deflate", gzip.compress(b"hello")),
        ("gzip", gzip.compress(b"hello")[:-8] + bytes(8)),
    ],
    ids=[
        "bytes behind",
        "two gzip members",
        "bytes behind zlib's",
        "bare deflate",
        "zlib for gzip",
        "gzip for zlib",
        "another checksum",
    ],
)
def test_what_is_not_one_message_is_corrupt(encoding, body):
    """RFC 1952 allows several members; gRPC's C core takes one, and so do we."""
    assert isinstance(Inflation(encoding, body, 1000).run_all(), Corrupt)


def test_a_bomb_takes_little_more_memory_than_the_largest_message():
    bomb = gzip.compress(bytes(128 * MEBIBYTE))
    tracemalloc.start()
    try:
        assert isinstance(Inflation("gzip", bomb, 4 * MEBIBYTE).run_all(), InflatesTooLarge)
        assert tracemalloc.get_traced_memory()[1] < 9 * MEBIBYTE  # in blocks, and then in one piece
    finally:
        tracemalloc.stop()


def test_a_message_is_deflated_only_if_that_makes_it_smaller():
    wire = deflated(bytes(5000))
    assert wire[0] == 1
    assert len(wire) == 5 + int.from_bytes(wire[1:5]) < 100
    assert gzip.decompress(wire[5:]) == bytes(5000)
    noise = os.urandom(5000)
    assert deflated(noise) == framed(noise)


@pytest.mark.parametrize(
    ("told", "understood"),
    [
        (None, False),
        ("", False),
        ("identity", False),
        ("gzip", True),
        ("identity, deflate, gzip", True),
        ("gzipx", False),
    ],
)
def test_who_is_sent_gzip(told, understood):
    assert accepts(told) is understood


# requests


@ENCODINGS
@METHODS
@pytest.mark.parametrize("size", [0, 1, AT_ONCE_BYTES - 1, AT_ONCE_BYTES, AT_ONCE_BYTES + 1, 3 * MEBIBYTE])
def test_a_compressed_message(encoding, method, size):
    peer = GrpcPeer()
    call = begin(peer, method=method, encoding=encoding)
    assert peer.told(data(1, packed(bytes(size), encoding), end=True)) == []
    peer.app.run_jobs()
    assert call.request_ended
    if method == "Echo":
        assert call.message == bytes(size)
        assert peer.app.ready_calls == [call]
    else:
        assert list(call.inbox) == [bytes(size)]
        call.taken(call.inbox.popleft())
    assert peer.connection.held == peer.connection.budgets.inbound.held_bytes == 0


@pytest.mark.parametrize("size", [10, 100 * 1024])
def test_a_compressed_message_cut_anywhere(size):
    body = packed(bytes(size))
    for cut in range(len(body) + 1):
        peer = GrpcPeer()
        call = begin(peer)
        peer.send(data(1, body[:cut]), data(1, body[cut:]))
        peer.send(data(1, end=True))
        peer.app.run_jobs()
        assert call.message == bytes(size)
        assert peer.app.ready_calls == [call]
        assert peer.connection.held == 0


@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 50, 70_000]), st.booleans()), max_size=8),
    st.lists(st.integers(0, 600), max_size=10),
    st.booleans(),
)
def test_messages_of_a_stream_come_in_order_whether_compressed_or_not(messages, cuts, at_once):
    """Those of 70,000 bytes have to wait for a thread, and others then wait behind them."""
    parts = [packed(bytes(size)) if compressed else framed(bytes(size)) for size, compressed in messages]
    body = b"".join(parts)
    edges = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    peer = GrpcPeer(Limits(stream_window_bytes=1 << 30, connection_window_bytes=1 << 30))
    call = begin(peer, method="Collect")
    for start, stop in itertools.pairwise(edges):
        for piece in range(start, stop, frames.FRAME_MAX_BYTES):
            peer.send(data(1, body[piece : min(stop, piece + frames.FRAME_MAX_BYTES)]))
            if at_once:
                peer.app.run_jobs()
    assert not call.request_ended
    peer.send(data(1, end=True))
    peer.app.run_jobs()
    assert [len(message) for message in call.inbox] == [size for size, _ in messages]
    assert call.request_ended
    while call.inbox:
        call.taken(call.inbox.popleft())
    assert peer.connection.held == peer.connection.budgets.inbound.held_bytes == 0


@METHODS
@pytest.mark.parametrize("limit", [1000, AT_ONCE_BYTES * 2])
def test_a_bomb_is_refused(method, limit):
    peer = GrpcPeer(Limits(message_max_bytes=limit))
    begin(peer, method=method)
    peer.answer(1, data(1, packed(bytes(limit + 1))))
    peer.app.run_jobs()
    answer = peer.answer(1)
    assert answer.code == StatusCode.RESOURCE_EXHAUSTED.value
    assert answer.text == f"the message inflates to more than {limit} bytes"
    assert answer.reset == "NO_ERROR"
    assert peer.connection.held == peer.connection.budgets.inbound.held_bytes == 0
    call = begin(peer, 3, method)
    peer.send(data(3, packed(bytes(limit)), end=True))
    peer.app.run_jobs()
    assert call.message == bytes(limit) if method == "Echo" else list(call.inbox) == [bytes(limit)]


def test_a_compressed_message_too_large_by_its_prefix_is_not_received():
    peer = GrpcPeer(Limits(message_max_bytes=100))
    begin(peer)
    answer = peer.answer(1, data(1, b"\1" + (101).to_bytes(4)))
    assert answer.code == StatusCode.RESOURCE_EXHAUSTED.value


@METHODS
@pytest.mark.parametrize("size", [10, 100 * 1024])
def test_a_corrupt_message_is_internal(method, size):
    peer = GrpcPeer()
    begin(peer, method=method)
    body = bytearray(packed(bytes(size)))
    body[-6] ^= 1
    peer.answer(1, data(1, bytes(body)))
    peer.app.run_jobs()
    answer = peer.answer(1)
    assert answer.code == StatusCode.INTERNAL.value
    assert answer.text.startswith("a message is not gzip: ")
    assert peer.connection.held == 0


def test_a_second_compressed_message_of_a_unary_call():
    peer = GrpcPeer()
    begin(peer)
    answer = peer.answer(1, data(1, packed(b"one") + packed(b"two")))
    assert answer.code == StatusCode.UNIMPLEMENTED.value
    assert "more than one message" in answer.text


def test_a_request_that_ends_within_a_compressed_message():
    peer = GrpcPeer()
    begin(peer, method="Collect")
    answer = peer.answer(1, data(1, packed(b"one") + packed(b"two")[:-1], end=True))
    assert answer.code == StatusCode.INTERNAL.value
    assert answer.text == "the request ends within a message"


# what is held of them


def test_what_waits_for_a_thread_is_held_and_given_back():
    peer = GrpcPeer()
    call = begin(peer)
    large = packed(os.urandom(MEBIBYTE // 2))
    for start in range(0, len(large), frames.FRAME_MAX_BYTES):
        peer.send(data(1, large[start : start + frames.FRAME_MAX_BYTES]))
    assert peer.connection.held > len(large)
    job = peer.app.jobs.popleft()
    work = job.begin()
    assert peer.connection.held > len(large) + peer.connection.limits.message_max_bytes
    job.done(work())
    assert len(call.message) <= peer.connection.held < MEBIBYTE
    peer.send(data(1, end=True))
    assert peer.connection.held == peer.connection.budgets.inbound.held_bytes == 0


@pytest.mark.parametrize("bound", ["inbound_max_bytes", "inbound_total_bytes"])
@METHODS
def test_a_message_that_may_become_more_than_there_is_room_for_is_refused(bound, method):
    peer = GrpcPeer(Limits(message_max_bytes=MEBIBYTE, **{bound: MEBIBYTE}))
    begin(peer, method=method)
    peer.answer(1, data(1, packed(bytes(200 * 1024))))
    peer.app.run_jobs()
    answer = peer.answer(1)
    assert answer.code == StatusCode.RESOURCE_EXHAUSTED.value
    assert "held" in answer.text
    assert peer.connection.held == peer.connection.budgets.inbound.held_bytes == 0


@pytest.mark.parametrize("running", [False, True])
def test_a_call_that_ends_while_its_message_waits_for_a_thread(running):
    peer = GrpcPeer()
    call = begin(peer)
    peer.send(data(1, packed(bytes(MEBIBYTE)), end=True))
    job = peer.app.jobs.popleft()
    work = job.begin() if running else None
    peer.send(frames.reset(1, frames.CANCEL))
    assert peer.connection.held == 0
    if running:
        job.done(work())
    else:
        assert job.begin() is None
    assert peer.app.ready_calls == []
    assert peer.app.over_calls == [call]
    assert peer.connection.held == peer.connection.budgets.inbound.held_bytes == 0


def test_credit_is_that_of_the_bytes_on_the_wire():
    wire = packed(bytes(5000))
    limits = Limits(stream_window_bytes=2 * len(wire))
    peer = GrpcPeer(limits)
    call = begin(peer, method="Collect")
    assert peer.told(data(1, wire)) == []
    call.taken(call.inbox.popleft())
    assert peer.told() == [f"WINDOW_UPDATE 1 {len(wire)}"]


def test_a_stream_is_inflated_no_faster_than_it_is_taken():
    """A window of compressed bytes may become a thousand times as many: they wait as they are."""
    wire = packed(bytes(50_000))
    limits = Limits(stream_window_bytes=60_000)
    peer = GrpcPeer(limits)
    call = begin(peer, method="Collect")
    peer.send(data(1, wire * 10, end=True))
    peer.app.run_jobs()
    assert len(call.inbox) == 2
    assert peer.connection.held < 3 * 50_000
    taken = 0
    while call.inbox:
        call.taken(call.inbox.popleft())
        taken += 1
        peer.app.run_jobs()
        assert len(call.inbox) <= 2
    assert taken == 10
    assert call.request_ended
    assert peer.connection.held == 0


# replies


def deflating_call(peer, **how):
    call = peer.call(1, b"", more=[("grpc-accept-encoding", "identity,gzip")], **how)
    call.compresses = True
    return call


def test_a_reply_is_compressed_and_a_small_one_is_not():
    for reply in (bytes(1023), bytes(1024)):
        peer = GrpcPeer()
        deflating_call(peer).reply(reply)
        answer = peer.answer(1)
        assert answer.body[0] == (len(reply) == 1024)
        assert (gzip.decompress(answer.body[5:]) if answer.body[0] else answer.body[5:]) == reply
        assert (answer.headers or {}).get(b"grpc-encoding") == (b"gzip" if answer.body[0] else None)
        assert answer.code == 0


def test_a_large_reply_is_compressed_in_a_thread_and_counted_meanwhile():
    peer = GrpcPeer()
    call = deflating_call(peer)
    outbound = peer.connection.budgets.outbound
    call.reply(bytes(MEBIBYTE))
    call.reply(b"again")  # does nothing
    assert outbound.held_bytes == MEBIBYTE
    assert call.status.status_code is StatusCode.OK
    peer.app.run_jobs()
    answer = peer.answer(1)
    assert gzip.decompress(answer.body[5:]) == bytes(MEBIBYTE)
    assert answer.code == 0
    assert outbound.held_bytes == 0


@pytest.mark.parametrize("running", [False, True])
def test_a_call_that_ends_while_its_reply_is_compressed(running):
    peer = GrpcPeer()
    call = deflating_call(peer)
    call.reply(bytes(MEBIBYTE))
    job = peer.app.jobs.popleft()
    work = job.begin() if running else None
    peer.send(frames.reset(1, frames.CANCEL))
    if running:
        job.done(work())
    else:
        assert job.begin() is None
    assert peer.connection.budgets.outbound.held_bytes == 0
    assert peer.app.over_calls == [call]


def test_a_compressed_request_is_told_what_else_it_may_be():
    peer = GrpcPeer()
    call = begin(peer)
    peer.send(data(1, packed(b"hello"), end=True))
    call.reply(b"hello")
    answer = peer.answer(1)
    assert answer.headers[b"grpc-accept-encoding"] == b"identity,deflate,gzip"
    assert deframed(answer.body) == [b"hello"]


def test_messages_of_a_stream_are_compressed_one_by_one():
    peer = GrpcPeer()
    call = deflating_call(peer, method="Collect")
    call.send_head()
    call.send_message(bytes(2000))
    call.compresses = False
    call.send_message(bytes(2000))
    answer = peer.answer(1)
    assert answer.headers[b"grpc-encoding"] == b"gzip"
    body = io.BytesIO(answer.body)
    flags = []
    while prefix := body.read(5):
        flags.append(prefix[0])
        message = body.read(int.from_bytes(prefix[1:]))
        assert (gzip.decompress(message) if prefix[0] else message) == bytes(2000)
    assert flags == [1, 0]


# on sockets


ACCEPTS = ("grpc-accept-encoding", "identity,deflate,gzip")


@pytest.mark.parametrize("method", ["Echo", "Group"])
@pytest.mark.parametrize("size", [100, 50_000, 500_000])
async def test_a_unary_reply_is_compressed_if_server_and_client_want_it(method, size):
    echoed = BytesValue(value=bytes(size)).SerializeToString()
    for server_wants, client_accepts in itertools.product((False, True), repeat=2):
        async with serving(Toy(), compresses=server_wants) as server, connected(server) as wire:
            await wire.write(frames.window_update(0, MEBIBYTE))
            order = packed(echoed)
            more = [("grpc-encoding", "gzip"), *([ACCEPTS] if client_accepts else [])]
            await wire.write(wire.request(1, method=method, end=False, more=more), data(1, order, end=True))
            await wire.write(frames.window_update(1, MEBIBYTE))
            answer = await wire.answered(1)
            compressed = server_wants and client_accepts and size >= 1024
            assert answer.code == 0
            assert answer.body[0] == compressed
            assert (gzip.decompress(answer.body[5:]) if compressed else answer.body[5:]) == echoed
            assert answer.headers[b"grpc-accept-encoding"] == b"identity,deflate,gzip"


async def test_a_marked_handler_compresses_by_itself_and_message_by_message():
    @compressed
    async def repeat(message, request):
        for size, wanted in ((2000, True), (200_000, True), (2000, False)):
            request.call.compresses = wanted
            yield BytesValue(value=bytes(size))

    service = purerpc.Service("toy.Zip")
    service.add_method("Repeat", repeat, SIGNATURES["Repeat"])
    async with serving(Toy(), service) as server, connected(server) as wire:
        await wire.write(wire.order(1, "/toy.Zip/Repeat", b"", more=[ACCEPTS]))
        answer = await wire.answered(1)
    body = io.BytesIO(answer.body)
    sizes = []
    while prefix := body.read(5):
        message = body.read(int.from_bytes(prefix[1:]))
        message = gzip.decompress(message) if prefix[0] else message
        sizes.append((prefix[0], len(BytesValue.FromString(message).value)))
    assert sizes == [(1, 2000), (1, 200_000), (0, 2000)]


async def test_a_flood_of_bombs_is_answered_and_neighbours_meanwhile():
    bomb = packed(bytes(64 * MEBIBYTE))
    begin = [("grpc-encoding", "gzip")]
    async with serving(Toy()) as server, connected(server) as wire, connected(server) as neighbour:
        for stream_id in range(1, 81, 2):
            body = [data(stream_id, bomb[at : at + 16384]) for at in range(0, len(bomb), 16384)]
            await wire.write(wire.request(stream_id, end=False, more=begin), *body)
        await neighbour.write(neighbour.order(1, "Echo", b"hello"))
        assert (await neighbour.answered(1)).code == 0
        for stream_id in range(1, 81, 2):
            answer = await wire.answered(stream_id)
            assert answer.code == StatusCode.RESOURCE_EXHAUSTED.value
        assert server.budgets.inbound.held_bytes == 0


async def test_a_connection_that_is_lost_while_a_thread_inflates_holds_nothing():
    async with serving(Toy()) as server:
        async with connected(server) as wire:
            large = packed(bytes(3 * MEBIBYTE))
            begin = wire.request(1, end=False, more=[("grpc-encoding", "gzip")])
            await wire.write(begin, data(1, large))
        while server.connections:
            await trio.lowlevel.checkpoint()
        assert server.budgets.inbound.held_bytes == 0
