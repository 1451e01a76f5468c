"""Where a broker process meets the world: who may call, who asks how it is, and whom it tells that it has started.

Owns:      `Front`, what `serve` asks of it; `Alone`, a process by itself: sockets of its own, and the log.
Not here:  a worker among several (trio_broker/workers/); what is served (trio_broker/serve.py, metrics/).
Threads:   the trio thread.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import trio
from prometheus_client import CollectorRegistry

from metrics import Readiness, WorkersMetrics, serve_http
from trio_broker.config import Config
from trio_broker.logs import Started
from trio_broker.notation import TcpAddress, UnixAddress, parse_listen, parse_tcp
from trio_broker.rpc.listeners import listen_tcp, listen_unix


class Connections(NamedTuple):
    """The gRPC connections of a process."""

    opened: int = 0
    """Accepted so far."""
    open: int = 0
    taking: bool = False
    """More are accepted now."""


class Attended(NamedTuple):
    """What a broker process lets others see, and do."""

    registry: CollectorRegistry
    readiness: Callable[[], Readiness]
    connections: Callable[[], Connections]
    stop: Callable[[], None]
    """Do what the first SIGTERM does; more than once is as once."""
    reload: Callable[[], None]
    """Do what SIGHUP does: read the certificates again, if there are any."""


class Front(Protocol):
    """What is around a broker."""

    async def attend(
        self, process: Attended, *, task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Answer who asks how the process is, until cancelled; started with where that is.

        Raises:
            OSError: the address cannot be listened on; ``strerror`` names it.
        """

    def listening(self) -> AbstractContextManager[socket.socket]:
        """Return what the gRPC server accepts from, for the length of the block.

        Raises:
            OSError: the address cannot be listened on; the text names it and the flag.
        """
        ...

    def announce(self, started: Started) -> None:
        """Say that it is ready."""


class Alone:
    """A broker that is one process."""

    def __init__(self, config: Config) -> None:
        self._config = config

    async def attend(  # noqa: ASYNC128 - `serve_http` calls it
        self, process: Attended, *, task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve /metrics, /healthz and /readyz on ``--metrics-listen``."""
        process.registry.register(WorkersMetrics(1, lambda: int(process.readiness().ready)))
        address = parse_tcp(self._config.metrics_listen)
        await serve_http(*address, process.registry, process.readiness, task_status=task_status)

    def listening(self) -> AbstractContextManager[socket.socket]:
        """Listen on ``--listen``."""
        return listening(self._config.listen)

    def announce(self, started: Started) -> None:
        """Log it."""
        started.announce()


@contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    """Listen where the settings say; remove a unix socket's file afterwards."""
    where = parse_listen(address)
    with telling("--listen"):
        listener = listen_tcp(*where) if isinstance(where, TcpAddress) else listen_unix(where.path)
    with listener:
        try:
            yield listener
        finally:
            if isinstance(where, UnixAddress):
                Path(where.path).unlink(missing_ok=True)


@contextmanager
def telling(flag: str) -> Iterator[None]:
    """Add to an address that cannot be listened on the flag that says it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error} ({flag})") from error
