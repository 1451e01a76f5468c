"""The stand-in for brokerload where Go is missing: its modes publish and fanout, in grpcio.aio.

Owns:      callers, subscribers that check their ids, the measured window.
Not here:  the rest of brokerload. Python makes load at a fraction of Go's rate: ratios of calls per second
           shrink towards one, while the CPU that a server needs per call is still measured.
Threads:   asyncio's only.

``python -m benchmarks.grpcio_load MODE -address=HOST:PORT ...`` takes brokerload's flags and prints its JSON;
whatever is wrong ends it with a traceback.
"""

import argparse
import asyncio
import json
import math
import struct
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import asdict

import grpc

from benchmarks.loads import BODY_BYTES, EXPIRATION_S, Measured
from benchmarks.servers import Server
from trio_broker._proto import broker_pb2 as pb

BACKLOG = 512
"""How far the slowest subscriber may be behind before callers wait, as in brokerload."""
STAMP = struct.Struct(">Q")


class Meter:
    """The measured window: what ends while it is open counts."""

    def __init__(self) -> None:
        self._open = False
        self._durations_ms: list[float] = []

    def ended(self, body: bytes) -> None:
        """Note one call or delivery of a body that is stamped with the time it was made."""
        if self._open:
            self._durations_ms.append((time.time_ns() - STAMP.unpack_from(body)[0]) / 1e6)

    async def measure(self, server: Server, warm_up_s: float, length_s: float) -> Measured:
        """Wait for the warm-up and the window."""
        await asyncio.sleep(warm_up_s)
        cpu_s, began = server.cpu_s(), time.perf_counter()
        self._open = True
        await asyncio.sleep(length_s)
        self._open = False
        durations_ms = sorted(self._durations_ms)
        return Measured(
            calls=len(durations_ms),
            seconds=time.perf_counter() - began,
            server_cpu_s=server.cpu_s() - cpu_s,
            p50_ms=quantile(durations_ms, 0.5),
            p99_ms=quantile(durations_ms, 0.99),
        )


def quantile(ordered: list[float], share: float) -> float:
    """The value that ``share`` of all do not exceed."""
    return ordered[math.ceil(share * len(ordered)) - 1]


class Run:
    """One subject, its callers and its subscribers."""

    def __init__(self, subject: str, subscribers: int) -> None:
        self.meter = Meter()
        self.over = False
        self._subject = subject
        self._ids: list[int] = []
        self._received = [0] * subscribers
        self._advanced = asyncio.Event()
        self._published = 0

    async def call(self, channel: grpc.aio.Channel, timeout_s: float | None) -> None:
        """Be one caller: publish the next message when the last one has its id."""
        publish = channel.unary_unary(
            "/broker.Broker/Publish", pb.PublishRequest.SerializeToString, pb.PublishResponse.FromString
        )
        while await self._may_publish():
            body = STAMP.pack(time.time_ns()).ljust(BODY_BYTES, b"\0")
            request = pb.PublishRequest(subject=self._subject, body=body, expirationSeconds=EXPIRATION_S)
            self._ids.append((await publish(request, timeout=timeout_s)).id)
            if not self._received:
                self.meter.ended(body)

    async def _may_publish(self) -> bool:
        """Wait while the slowest subscriber is the backlog behind; say whether the run still goes on."""
        while not self.over and self._received and self._published - min(self._received) >= BACKLOG:
            self._advanced.clear()
            await self._advanced.wait()
        self._published += 1
        return not self.over

    async def read(self, place: int, messages: AsyncIterator[pb.MessageResponse]) -> None:
        """Be one subscriber: the ids have to come from 1 on without a hole."""
        async for message in messages:
            if message.id != self._received[place] + 1:
                raise RuntimeError(f"a subscriber got id {message.id} after {self._received[place]}")
            self._received[place] = message.id
            self._advanced.set()
            self.meter.ended(message.body)

    def stop(self) -> None:
        """Let callers end after the call they are in."""
        self.over = True
        self._advanced.set()

    def check(self) -> None:
        """Publishes have to have got the ids from 1 on, each once."""
        if sorted(self._ids) != list(range(1, len(self._ids) + 1)):
            raise RuntimeError(f"ids are not 1 to {len(self._ids)}, each once")


async def drive(options: argparse.Namespace) -> Measured:
    """Run callers and, for fanout, subscribers; deliveries are counted where there are subscribers."""
    fan_out = options.mode == "fanout"
    callers = options.window if fan_out else options.connections * options.callers
    run = Run(options.subject, options.subscribers if fan_out else 0)
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        channels = [
            # without options of its own, a channel shares its connection with all others to the same address
            await stack.enter_async_context(
                grpc.aio.insecure_channel(options.address, [("grpc.use_local_subchannel_pool", 1)])
            )
            for _ in range(options.connections)
        ]
        readers = []
        for place in range(options.subscribers if fan_out else 0):
            subscribe = channels[place % len(channels)].unary_stream(
                "/broker.Broker/Subscribe", pb.SubscribeRequest.SerializeToString, pb.MessageResponse.FromString
            )
            stream = subscribe(pb.SubscribeRequest(subject=options.subject))
            await stream.initial_metadata()
            readers.append(tasks.create_task(run.read(place, stream)))
        calls = [
            tasks.create_task(run.call(channels[place % len(channels)], options.deadline)) for place in range(callers)
        ]
        measured = await run.meter.measure(Server(options.address, options.pid), options.warm_up, options.length)
        run.stop()
        await asyncio.wait(calls)
        for reader in readers:
            reader.cancel()
    run.check()
    return measured


def seconds(text: str) -> float:
    """Read a duration as Go writes it, such as ``1.5s``."""
    return float(text.removesuffix("s"))


def parse() -> argparse.Namespace:
    """Read brokerload's flags, as far as they matter here."""
    parser = argparse.ArgumentParser(prog="grpcio_load")
    parser.add_argument("mode", choices=["publish", "fanout"])
    parser.add_argument("-address", required=True)
    parser.add_argument("-pid", type=int, required=True)
    parser.add_argument("-subject", required=True)
    parser.add_argument("-connections", type=int, default=4)
    parser.add_argument("-callers", type=int, default=25)
    parser.add_argument("-subscribers", type=int, default=100)
    parser.add_argument("-window", type=int, default=256)
    parser.add_argument("-deadline", type=seconds)
    parser.add_argument("-warm-up", type=seconds, default=0.3)
    parser.add_argument("-length", type=seconds, default=1.5)
    return parser.parse_args()


if __name__ == "__main__":
    json.dump(asdict(asyncio.run(drive(parse()))), sys.stdout)
