"""The connections for everything but appending, shared by the tasks that want to read or change something.

Owns:      lending a connection to a worker thread and getting it back; what a lost connection means to a call.
Not here:  what is read or changed (reading.py, registers.py, sweeping.py).
Threads:   the trio thread, except where a docstring says otherwise. psycopg's pool connects in threads of its own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar, TypeVarTuple

import psycopg
import trio
from psycopg_pool import ConnectionPool, PoolTimeout

from persistence import threads
from persistence.errors import OutcomeUnknown, StoreUnavailable
from persistence.facade import PoolUse
from persistence.postgres.connection import (
    CONNECT_TIMEOUT_S,
    STOP_TIMEOUT_S,
    Address,
    Connection,
    failure,
    is_undone,
)
from persistence.postgres.patience import OutOfPatience, Patience

READERS = 3
"""Connections for reading: one that waits for the database does not hold up the others. One more is for changes."""

_RECONNECT_TIMEOUT_S = 2.0
"""After that psycopg's pool tries again only when somebody asks for a connection, and then at once."""
_WAIT_S = 0.5
"""How long a call waits for psycopg's pool before it looks what is wrong."""
_SLACK_S = 0.25
"""By so much a thread outstays its caller's deadline: it is the caller's own scope that ends the call."""

Ts = TypeVarTuple("Ts")
R = TypeVar("R")


class Pool:
    """A few connections, and as many tokens."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._limiter = threads.Tokens(READERS)
        self._changing = threads.Worker("postgres-changes")
        self._pool = ConnectionPool(
            connection_class=Connection,
            kwargs=address.parameters,
            configure=self._set_up,
            min_size=1,
            max_size=READERS + 1,
            reconnect_timeout=_RECONNECT_TIMEOUT_S,
            num_workers=1,  # closing waits for each of them in turn, and one may be stuck connecting
            name="trio-broker",
            open=True,
        )

    async def read(self, fn: Callable[[Connection, *Ts], R], *args: *Ts) -> R:
        """Call ``fn``, which changes nothing, with a connection in a thread. A checkpoint.

        When cancelled it leaves the thread behind, which tells the server to stop.
        """
        with trio.move_on_after(self._address.statement_timeout_s):
            left_s = trio.current_effective_deadline() - trio.current_time()
            patience = Patience(left_s + _SLACK_S, check_cancelled=trio.from_thread.check_cancelled)
            return await threads.read(self._limiter, self._read, patience, fn, *args)
        raise StoreUnavailable(f"{self._address}: no answer within {self._address.statement_timeout_s:g} s")

    async def change(self, fn: Callable[[Connection, *Ts], R], *args: *Ts) -> R:
        """Call ``fn``, which changes something, with a connection in a thread, to its end. A checkpoint."""
        return await self._changing.run(self._change, fn, *args)

    def use(self) -> tuple[PoolUse, PoolUse]:
        """Say how busy both kinds of threads are."""
        return self._changing.use("change"), self._limiter.use("read")

    def give_up(self, begun: Exception, waiting: Exception) -> None:
        """Wait for the database no longer. See `threads.Worker.give_up`."""
        self._changing.give_up(begun, waiting)

    async def close(self) -> None:
        """Close the connections once no thread uses them. A checkpoint."""
        borrowers = range(READERS)
        for borrower in borrowers:
            await self._limiter.acquire_on_behalf_of(borrower)  # also from threads that were left behind
        await self._changing.close(partial(self._pool.close, STOP_TIMEOUT_S))
        for borrower in borrowers:
            self._limiter.release_on_behalf_of(borrower)  # who comes now is told that it is closed

    def _read(self, patience: Patience, fn: Callable[[Connection, *Ts], R], *args: *Ts) -> R:
        """Call ``fn`` with a connection, in a worker thread; once more with another, if it was lost."""
        with self._lend(patience) as connection:
            try:
                return fn(connection, *args)
            except psycopg.OperationalError as error:
                if is_undone(error):
                    raise
                connection.close()
        with self._lend(patience) as connection:
            return fn(connection, *args)

    def _change(self, fn: Callable[[Connection, *Ts], R], *args: *Ts) -> R:
        """Call ``fn`` with a connection, in a worker thread."""
        with self._lend(Patience(self._address.statement_timeout_s)) as connection:
            try:
                return fn(connection, *args)
            except (psycopg.OperationalError, OutOfPatience) as error:
                if is_undone(error):
                    raise
                connection.close()
                raise OutcomeUnknown(f"{failure(error, self._address)}; it may have been done") from error

    @contextmanager
    def _lend(self, patience: Patience) -> Iterator[Connection]:
        """Lend a connection to a worker thread, for the block; errors are raised as the facade's."""
        try:
            connection = self._take(patience)
            try:
                connection.patience = patience
                yield connection
            finally:
                connection.patience = Patience(STOP_TIMEOUT_S)
                with suppress(psycopg.Error, OutOfPatience):  # what was wrong with it is known
                    connection.rollback()
                self._pool.putconn(connection)
        except (psycopg.Error, OutOfPatience) as error:
            raise failure(error, self._address) from error

    def _take(self, patience: Patience) -> Connection:
        """Return a connection that is alive, by all that can be seen from here."""
        while True:
            patience.check()
            try:
                connection = self._pool.getconn(_WAIT_S)
            except PoolTimeout:
                self._address.connect(patience).close()  # psycopg's pool does not say why it cannot; this does
                continue
            if connection.is_silent():
                return connection
            connection.close()
            self._pool.putconn(connection)

    def _set_up(self, connection: Connection) -> None:
        self._address.set_up(connection, Patience(CONNECT_TIMEOUT_S))
