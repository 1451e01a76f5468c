"""A worker, seen from inside: what is around a broker whose clients come through a supervisor.

Owns:      `WorkerFront`; `Door`, through which connections come; where other brokers reach it.
Not here:  the process's beginning and end (trio_broker/cli/worker.py), the supervisor's side (member.py).
Threads:   the trio thread.
"""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
import trio
from prometheus_client import CollectorRegistry

from metrics.workers import pack
from trio_broker.config import Config
from trio_broker.front import Attended
from trio_broker.logs import Started
from trio_broker.notation import TcpAddress, parse_tcp
from trio_broker.tasktree import describe_process
from trio_broker.workers.channel import Channel, stream_on

REPORT_INTERVAL_S = 0.1
"""How often a worker looks whether there is something new to tell of itself."""
REPORTS_QUIET = 10
"""Looks after which it tells it anyway, so that its silence means something."""
GATHER_S = 5.0
"""How long the supervisor may take to read the metrics."""

log = structlog.get_logger()


def peering(config: Config, number: int) -> Config:
    """Give a worker an address of its own for other brokers: the one that is set, so many ports on; 0 stays 0."""

    def moved(address: str) -> str:
        host, port = parse_tcp(address)
        return str(TcpAddress(host, port + number if port else 0))

    advertise = config.advertise and moved(config.advertise)
    return config.model_copy(update={"peer_listen": moved(config.peer_listen), "advertise": advertise})


class Door(socket.socket):
    """Accepts connections that another process has accepted."""

    def __init__(self, descriptor: int, other_end: int) -> None:
        """Take this end, and a copy of the other one, which is kept: the door never looks as if nobody were there."""
        super().__init__(fileno=descriptor)
        self.setblocking(False)
        self._other_end = other_end

    def accept(self) -> tuple[socket.socket, Any]:
        """Return the next connection, and nothing of value.

        Raises:
            OSError: there is none, or this process has too many descriptors to take it: then it is lost.
        """
        _, descriptors, _, _ = socket.recv_fds(self, 1, 1)
        if not descriptors:
            raise OSError(errno.EMFILE, "no descriptor is free for a connection")
        return socket.socket(fileno=descriptors[0]), None


class WorkerFront:
    """What is around one worker: a `trio_broker.front.Front`."""

    def __init__(self, channel: Channel, door: Door) -> None:
        self._channel = channel
        self._door = door
        self._process: Attended | None = None

    async def attend(
        self, process: Attended, *, task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Tell the supervisor how the process is, and do what it asks, until cancelled. It has no address."""
        self._process = process
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report)
            task_status.started(("supervisor", 0))
            while (message := await self._channel.receive()) is not None:
                match message.kind:
                    case "metrics":
                        nursery.start_soon(_send_metrics, stream_on(message.descriptors[0]), process.registry)
                    case "describe":
                        log.warning("process_described", stack=describe_process())
                    case "reload":
                        process.reload()
                    case "stop":
                        process.stop()
            log.warning("supervisor_gone")
            process.stop()

    @contextmanager
    def listening(self) -> Iterator[socket.socket]:
        """Take what comes through the door."""
        with self._door:
            yield self._door

    def announce(self, started: Started) -> None:
        """Tell the supervisor, which says it once for all."""
        self._channel.send("state", self._news())
        self._channel.send(
            "ready",
            {
                "durability": started.durability,
                "shared": started.shared,
                "memory_max_bytes": started.memory_max_bytes,
                "connections_max": started.connections_max,
                "subscribers_max": started.subscribers_max,
            },
        )
        log.info("worker_ready", ready_after_s=round(started.ready_after_s, 3))

    def _news(self) -> dict[str, Any]:
        assert self._process is not None
        return {"readiness": self._process.readiness(), "connections": self._process.connections()}

    async def _report(self) -> None:
        told, looks = None, 0
        while True:
            news = self._news()
            looks += 1
            if (news != told or looks >= REPORTS_QUIET) and self._channel.send("state", news):
                told, looks = news, 0
            await trio.sleep(REPORT_INTERVAL_S)


async def _send_metrics(stream: trio.SocketStream, registry: CollectorRegistry) -> None:
    """Write all metrics, and close. Raises nothing: that would end the broker."""
    async with stream:
        try:
            with trio.move_on_after(GATHER_S):
                await stream.send_all(pack(registry))
        except trio.BrokenResourceError:
            pass  # the supervisor has waited long enough
        except Exception:
            log.exception("metrics_failed")
