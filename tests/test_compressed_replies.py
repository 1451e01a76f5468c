"""What the broker compresses: pages of SubscribeBatch, once for all subscribers; large replies; for who wants it."""

import gzip
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from served_broker import serving

from persistence import NO_HEADERS, Appended, NewMessage
from trio_broker._proto import broker_pb2 as pb
from trio_broker.batch import Batch
from trio_broker.config import Config
from trio_broker.fanout import Fanout
from trio_broker.rpc.application import Job
from trio_broker.service.deflating import DeflatedSource
from trio_broker.service.subscribing import TOGETHER


def read_frames(wire: bytes) -> Iterator[tuple[bool, bytes]]:
    """Yield for each framed message whether it is compressed, and the message."""
    while wire:
        end = 5 + int.from_bytes(wire[1:5])
        yield bool(wire[0]), gzip.decompress(wire[5:end]) if wire[0] else wire[5:end]
        wire = wire[end:]


class Stream:
    """The part of a call that a source uses."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.jobs: list[Job] = []
        self.marks = 0
        self.local_closed = False
        self.send_window = 2**20
        self.connection = SimpleNamespace(send_window=2**20, mark=self._mark)
        self.app = SimpleNamespace(aside=self.jobs.append)

    def _mark(self, _: object) -> None:
        self.marks += 1

    def send(self, data: bytes) -> None:
        self.sent.append(data)


class Scene:
    """Subscribers of one subject, each with a stream."""

    def __init__(self, count: int = 2) -> None:
        self.hub = Fanout(Config())
        self.subscriptions = [self.hub.subscribe("a") for _ in range(count)]
        self.streams = [Stream() for _ in range(count)]
        self.sources = [
            DeflatedSource(cast("Any", stream), subscription, TOGETHER)
            for stream, subscription in zip(self.streams, self.subscriptions, strict=True)
        ]

    def publish(self, id_: int, size: int) -> None:
        self.hub.deliver([(NewMessage("a", bytes(size), 0, NO_HEADERS), Appended(id_, 0))])

    def take(self, which: int = 0, credit: int = 16384) -> list[tuple[bool, list[int]]]:
        """Return for each response that leaves now whether it is compressed, and the ids in it."""
        stream = self.streams[which]
        taken = self.sources[which].take(cast("Any", stream), credit)
        sent, stream.sent = b"".join(stream.sent), []
        return [
            (compressed, [message.id for message in pb.MessageBatch.FromString(wire).messages])
            for compressed, wire in read_frames(sent + taken)
        ]

    def run(self, which: int = 0) -> None:
        job = self.streams[which].jobs.pop(0)
        work = job.begin()
        if work is not None:
            job.done(work())


def test_small_batches_leave_as_one_response_and_as_they_are() -> None:
    scene = Scene()
    for id_ in (1, 2, 3):
        scene.publish(id_, 10)
    assert scene.take() == [(False, [1, 2, 3])]
    assert scene.take() == []


def test_a_page_is_compressed_once_for_all_subscribers() -> None:
    scene = Scene()
    scene.publish(1, 10)
    scene.publish(2, 5000)
    scene.publish(3, 10)
    assert scene.take(0) == scene.take(1) == [(False, [1]), (True, [2]), (False, [3])]


def test_a_large_page_is_compressed_in_a_thread_and_nothing_overtakes_it() -> None:
    scene = Scene()
    scene.publish(1, 10)
    scene.publish(2, 100_000)
    scene.publish(3, 10)
    assert scene.take(0) == [(False, [1])]
    assert scene.take(0) == []
    assert scene.subscriptions[0].sending is not None
    assert scene.take(1) == [(False, [1])]
    scene.run(0)
    batch = cast("Batch", scene.subscriptions[0].sending)
    made = batch.deflated_wire
    assert scene.streams[0].marks == 1
    assert scene.take(0) == [(True, [2]), (False, [3])]
    scene.run(1)  # it is there already
    assert batch.deflated_wire is made
    assert scene.take(1) == [(True, [2]), (False, [3])]


def test_a_subscriber_that_leaves_meanwhile_is_told_nothing() -> None:
    scene = Scene(1)
    scene.publish(1, 100_000)
    assert scene.take() == []
    scene.sources[0].close()
    scene.streams[0].local_closed = True
    scene.run()
    assert scene.streams[0].marks == 0


def test_what_is_compressed_beside_a_batch_is_counted() -> None:
    scene = Scene(1)
    scene.publish(1, 5000)
    before = scene.hub.backlog.bytes
    scene.take()
    assert before < scene.hub.backlog.bytes < before + 200


def use(address: str, accepts: str) -> tuple[list[int], bytes, list[int]]:
    """Publish, fetch and subscribe by grpcio, which tells by its metadata whether replies may be compressed."""
    options = [("grpc.compression_enabled_algorithms_bitset", 0b1 if accepts == "identity" else 0b111)]
    with grpc.insecure_channel(address, options) as channel:
        broker = {
            name: getattr(channel, kind)(
                f"/broker.Broker/{name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=answer.FromString,
            )
            for name, kind, answer in (
                ("Publish", "unary_unary", pb.PublishResponse),
                ("Fetch", "unary_unary", pb.MessageResponse),
                ("SubscribeBatch", "unary_stream", pb.MessageBatch),
            )
        }
        ids = []
        for size in (10, 5000, 300_000):
            message = pb.PublishRequest(subject="a", body=bytes(size), keep=True)
            ids.append(broker["Publish"](message, compression=grpc.Compression.Gzip, timeout=60).id)
        body = broker["Fetch"](pb.FetchRequest(subject="a", id=3), timeout=60).body
        request = pb.SubscribeRequest(subject="a", earliest=True, at_end=True)
        pages = broker["SubscribeBatch"](request, timeout=60)
        return ids, body, [len(message.body) for page in pages for message in page.messages]


@pytest.mark.parametrize("accepts", ["identity", "gzip"])
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_grpcio_compresses_or_does_not_and_so_does_the_broker(accepts: str, compression: str) -> None:
    with serving("--compression", compression) as address:
        ids, body, sizes = use(address, accepts)
    assert ids == [1, 2, 3]
    assert body == bytes(300_000)
    assert sizes == [10, 5000, 300_000]
