"""A worker, seen from the supervisor: its process, what it has told, and what it is told.

Owns:      starting and ending the process, handing over settings and connections, asking for metrics.
Not here:  when a worker is started, stopped, or given a connection (supervisor.py, doorman.py).
Threads:   the trio thread.

Settings go through the channel: a command line can be read by everybody on the machine.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import structlog
import trio

from metrics import Readiness
from persistence import Durability
from trio_broker.front import Connections
from trio_broker.workers.channel import Channel, close_all, stream_on

SILENT_S = 5.0
"""A worker that has said nothing for so long is stuck."""
GATHER_S = 2.0
"""How long a worker may take to tell its metrics."""
KILLED_S = 1.0
"""How long to wait for the end of a process that was killed."""

COMMAND = [sys.executable, "-P", "-m", "trio_broker.cli.worker"]

log = structlog.get_logger()


class WorkerFailed(Exception):
    """A worker cannot do its work as it was asked to; the text is all that the user is told."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class Told(NamedTuple):
    """What a worker has told when it was ready."""

    durability: Durability
    shared: bool
    memory_max_bytes: int
    connections_max: int
    subscribers_max: int


class Member:
    """One worker process. It runs, or has ended, when this is made (`start`)."""

    def __init__(self, number: int, process: trio.Process, channel: Channel, door: socket.socket) -> None:
        self.number = number
        self.told: Told | None = None
        """None: it has not been ready yet."""
        self.failure: WorkerFailed | None = None
        """Why it has given up, if it said so."""
        self._process = process
        self._channel = channel
        self._door = door
        self._handed_over = 0
        self._readiness = Readiness(ready=False, detail="starting")
        self._connections = Connections()
        self._heard_at = trio.current_time()

    @classmethod
    async def start(cls, number: int, settings: dict[str, Any]) -> "Member":
        """Start a process; ``settings``: of its `Config`. A checkpoint.

        Raises:
            OSError: the machine has no room for it.
        """
        channel, theirs = Channel.open()
        door, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        door.setblocking(False)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with theirs, inner, ExitStack() as undo:
            undo.callback(channel.close)
            undo.callback(door.close)
            try:
                # in a session of its own: Ctrl-C is for the supervisor alone
                process = await trio.lowlevel.open_process(
                    [*COMMAND, str(number)], stdin=theirs.fileno(), env=environment, start_new_session=True
                )
            except RuntimeError as error:  # no thread to start it from: a limit of processes counts those, too
                raise OSError(f"it cannot be started: {error}") from error
            undo.pop_all()
            values = {"number": number, "config": settings}
            channel.send("begin", values, [inner.fileno(), door.fileno()])
        log.info("worker_started", worker=number, pid=process.pid)
        return cls(number, process, channel, door)

    async def run(self, on_news: Callable[[], None]) -> int:
        """Hear what it says, until it has ended; return its exit code, or -9 for signal 9. Cancelled, it kills it.

        ``on_news``: called each time that it has told something.
        """
        try:
            while (message := await self._channel.receive()) is not None:
                close_all(message.descriptors)
                self._hear(message.kind, message.values)
                on_news()
            return await self._process.wait()
        finally:
            self._channel.close()
            self._door.close()
            if self._process.returncode is None:
                self.kill()
                with trio.move_on_after(KILLED_S, shield=True):
                    await self._process.wait()

    def _hear(self, kind: str, values: dict[str, Any]) -> None:
        self._heard_at = trio.current_time()
        match kind:
            case "state":
                self._readiness = Readiness(*values["readiness"])
                self._connections = Connections(*values["connections"])
            case "ready":
                self.told = Told(**{**values, "durability": Durability(*values["durability"])})
            case "failed":
                self.failure = WorkerFailed(**values)

    # -- what it is like --------------------------------------------------------------------------------------

    def readiness(self) -> Readiness:
        """Return what it said last; one that is silent is not ready."""
        if (silent_s := self._silent_s()) > SILENT_S:
            return Readiness(ready=False, detail=f"silent for {silent_s:.0f} s")
        return self._readiness

    def _silent_s(self) -> float:
        return trio.current_time() - self._heard_at

    @property
    def taking(self) -> bool:
        """It takes connections."""
        return self._connections.taking and self._silent_s() <= SILENT_S

    @property
    def connections(self) -> int:
        """How many it has, with those that are on their way to it. One that was closed counts 0.1 s longer."""
        return self._connections.open + self._handed_over - self._connections.opened

    # -- what it is told --------------------------------------------------------------------------------------

    def give(self, client: socket.socket) -> bool:
        """Hand a connection over; the caller closes it in any case. False: it takes none now. Never waits."""
        try:
            socket.send_fds(self._door, [b"c"], [client.fileno()])
        except OSError:  # it has closed its door, or does not empty it
            return False
        self._handed_over += 1
        return True

    async def gather(self) -> bytes | None:
        """Ask for its metrics (`metrics.workers.pack`); None: it does not answer. A checkpoint."""
        ours, theirs = socket.socketpair()
        async with stream_on(ours.detach()) as stream:
            with theirs:
                if not self._channel.send("metrics", descriptors=[theirs.fileno()]):
                    return None
            with trio.move_on_after(GATHER_S):
                return b"".join([bytes(chunk) async for chunk in stream])
        return None

    def describe(self) -> None:
        """Let it log what it is doing."""
        self._channel.send("describe")

    def reload(self) -> None:
        """Let it read its certificates again."""
        self._channel.send("reload")

    def stop(self) -> None:
        """Let it drain and end."""
        if not self._channel.send("stop"):
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        try:
            self._process.send_signal(number)
        except (OSError, subprocess.SubprocessError):
            log.debug("worker_not_signalled", worker=self.number, exc_info=True)
