"""Hear from the database what any process appends: LISTEN, on a connection of its own.

Owns:      the connection that listens, and making it again; hints gathered while nobody asks for them.
Not here:  what is said there (hints.py), what a hint is good for (trio_broker/).
Threads:   the trio thread. Only to connect takes another one, for seconds at most; waiting takes none: trio watches
           the socket.

Not by psycopg's AsyncConnection under trio-asyncio, which hears as well: importing trio-asyncio changes asyncio for the
whole process (``asyncio.run`` gets a slower loop), must come before psycopg's import, and warns from Python 3.12 on.
"""

import logging
import math
import threading
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack, asynccontextmanager, closing

import psycopg
import trio

from persistence import threads
from persistence.facade import Wakeups
from persistence.postgres.connection import CONNECT_TIMEOUT_S, Address, Connection, failure
from persistence.postgres.hints import CHANNEL, add_hint, changed_subjects
from persistence.postgres.patience import OutOfPatience, Patience

POLL_INTERVAL_S = 1.0
"""How often "anything" is hinted while nothing is heard, if nothing else is asked for."""
SUBJECTS_MAX = 1_000
"""So many are gathered while nobody asks; beyond it, anything may have changed."""

_PAUSE_MIN_S = 0.1
_PAUSE_MAX_S = 5.0
_ANYTHING: dict[str, int] = {}

log = logging.getLogger(__name__)


@asynccontextmanager
async def listen(address: Address, poll_interval_s: float) -> AsyncGenerator[Wakeups]:
    """Listen for the length of the block. A checkpoint at its end; it does not wait for a connection."""
    wakeups = PostgresWakeups(address, poll_interval_s)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wakeups.run)
        yield wakeups
        nursery.cancel_scope.cancel()


class PostgresWakeups(Wakeups):
    """Listens; after a lost connection again by itself, and polls until then.

    A task of its own reads, whether or not anybody asks: who listens and does not read fills the server's queue.
    """

    def __init__(self, address: Address, poll_interval_s: float) -> None:
        self._address = address
        self._poll_interval_s = poll_interval_s
        self._limiter = threads.Tokens(1)
        self._connected = False
        self._told = False
        """The log has it that nothing is heard."""
        self._news = trio.Event()
        self._changed = _ANYTHING
        """Since somebody asked last; of no meaning without news."""

    @property
    def connected(self) -> bool:
        return self._connected

    async def __anext__(self) -> Mapping[str, int]:
        with trio.move_on_after(math.inf if self._connected else self._poll_interval_s) as waiting:
            await self._news.wait()
        if waiting.cancelled_caught:
            return _ANYTHING
        self._news = trio.Event()
        return self._changed

    async def run(self) -> None:
        """Connect, listen until the connection is lost, and so on. Never returns."""
        pause_s = _PAUSE_MIN_S
        while True:
            try:
                with closing(_Line(self._address)) as line:
                    connection = await threads.read(self._limiter, line.connect)
                    log.info("wakeups_listening database=%s", self._address)
                    self._connected, self._told, pause_s = True, False, _PAUSE_MIN_S
                    self._hear(_ANYTHING)  # what was appended in the meantime was not heard
                    await self._follow(connection)
            except (psycopg.Error, OutOfPatience) as error:
                if not self._told:
                    self._told = True
                    log.warning("wakeups_not_heard why=%s", failure(error, self._address))
                if self._connected:
                    self._connected = False
                    self._hear(_ANYTHING)
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)

    async def _follow(self, connection: Connection) -> None:
        """Pass on what is heard until the connection is lost."""
        while True:
            while notify := connection.pgconn.notifies():
                self._hear(changed_subjects(notify.extra))
            await trio.lowlevel.wait_readable(connection.fileno())
            connection.pgconn.consume_input()  # all there is, without waiting; raises at its end

    def _hear(self, hint: dict[str, int]) -> None:
        if not self._news.is_set():
            self._changed = hint
        elif self._changed and hint:
            add_hint(self._changed, hint)
        else:
            self._changed = _ANYTHING
        if len(self._changed) > SUBJECTS_MAX:
            self._changed = _ANYTHING
        self._news.set()


class _Line:
    """A connection that listens, made in a thread that may be left behind.

    Closed, it ends the connection once it is there: libpq does not bear that a thread still uses it then.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._wanted = True
        self._opened = ExitStack()

    def connect(self) -> Connection:
        """Connect and listen, in a worker thread."""
        patience = Patience(CONNECT_TIMEOUT_S, check_cancelled=trio.from_thread.check_cancelled)
        with ExitStack() as undo:
            connection = undo.enter_context(closing(self._address.connect(patience)))
            connection.execute(f"LISTEN {CHANNEL}")
            with self._lock:
                if self._wanted:
                    self._opened = undo.pop_all()
        return connection

    def close(self) -> None:
        with self._lock:
            self._wanted = False
            self._opened.close()
