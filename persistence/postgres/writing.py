"""The one connection that appends.

Owns:      what is told of each batch: appended, or not and never, or unknown; a connection that works again after any
           failure.
Not here:  the statement (flush.py), the writer's row (outcome.py), everything else that changes tables (pool.py).
Threads:   one worker thread; each method blocks, for no longer than the commit timeout.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple
from uuid import UUID

import psycopg
from psycopg.errors import Diagnostic

from persistence.errors import OutcomeUnknown, StoreError, StoreUnavailable
from persistence.facade import Durability, NewMessage, Outcome
from persistence.postgres.arrays import int8
from persistence.postgres.connection import Address, Connection, failure, is_undone, reason
from persistence.postgres.flush import APPEND, BY_THE_INDEX, FENCE, FORGET_NEW, KNOWN, LOCK, REMEMBER, Answer, Flush
from persistence.postgres.hints import Hints
from persistence.postgres.outcome import Turn, register, take_over
from persistence.postgres.patience import OutOfPatience, Patience

_ATTEMPTS = 3
"""How often a flush is tried that certainly did nothing, for a reason that may have passed."""
_ANSWER_SHARE = 0.95
"""Part of the commit timeout within which a flush is answered, finding its outcome included."""
_RECONNECT_PAUSE_S = 0.05
_TRANSIENT = ("40001", "40P01")
_STATEMENT = b"trio_broker_append"
_BINARY = 1
_DURABILITY = "SELECT current_setting('synchronous_commit'), current_setting('fsync')"

log = logging.getLogger(__name__)


class Undone(StoreUnavailable):
    """Nothing was appended, and the next attempt may do better."""


class _Session(NamedTuple):
    connection: Connection
    turn: Turn
    hints: Hints


class Writer:
    """Appends batches, one at a time."""

    def __init__(self, address: Address, commit_timeout_s: float) -> None:
        self._address = address
        self._commit_timeout_s = commit_timeout_s
        self._session: _Session | None = None
        self._writer: UUID | None = None
        """Who appends, in the database's eyes; the same over all sessions, as long as its row is there."""
        self._flushes = 0
        self.durability = Durability("PostgreSQL", "", durable=True)
        """Of the session that appends; known once it was opened."""
        self._acknowledged = 0
        """The last flush that was known to be applied."""
        self._unreplicated = False

    def open(self, patience: Patience) -> None:
        """Connect, and append nothing, to learn now whether the role has the rights to append something."""
        session = self._connect(patience)
        try:
            self._send(session, Flush([]))
            self._send_guarded(session, Flush([]))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection. Safe to call twice."""
        if self._session is not None:
            self._session.connection.close()
            self._session = None

    def append(self, batch: Sequence[NewMessage]) -> list[Outcome]:
        """Do what the facade says."""
        flush = Flush(batch)
        answer = Answer([], [])
        if not flush.is_empty:
            answer = self._append(flush)
        if flush.subjects:
            self._acknowledged = self._flushes
            if self._session is not None:
                self._session.hints.send(flush.subjects, answer.last_ids)
        return flush.outcomes(answer)

    def _append(self, flush: Flush) -> Answer:
        """Try until the flush is appended, or there is no point in trying."""
        statement = Patience(self._address.statement_timeout_s)
        whole = Patience(self._commit_timeout_s * _ANSWER_SHARE)
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._try(flush, statement, whole)
            except Undone:
                if not statement.left_s():
                    raise
        return self._try(flush, statement, whole)

    def _try(self, flush: Flush, statement: Patience, whole: Patience) -> Answer:
        try:
            session = self._ready(statement)
        except (psycopg.Error, OutOfPatience) as error:
            time.sleep(_RECONNECT_PAUSE_S)  # what gathers meanwhile is refused at once, not attempt by attempt
            raise failure(error, self._address) from error
        self._flushes += 1
        try:
            answer = self._send_guarded(session, flush) if flush.is_guarded else self._send(session, flush)
        except (psycopg.Error, OutOfPatience) as error:
            if is_undone(error):
                raise self._refusal(error) from error
            return self._find_out(self._flushes, str(failure(error, self._address)), whole)
        if answer is None:
            self.close()
            raise Undone(f"{self._address}: the row of this writer is gone, or a trigger holds back that of a subject")
        return answer

    def _ready(self, patience: Patience) -> _Session:
        """Return a session that waits for nothing and is alive, by all that can be seen from here."""
        if self._session is not None:
            self._session.connection.patience = patience
            try:
                self._session.hints.finish()
            except (psycopg.Error, OutOfPatience):
                self.close()
        if self._session is not None and self._session.connection.is_silent():
            return self._session
        return self._connect(patience)

    def _connect(self, patience: Patience) -> _Session:
        """Begin a session. What the one before has not begun by now, it never does."""
        self.close()
        connection = self._address.connect(patience)
        try:
            self._unreplicated = False
            connection.add_notice_handler(self._notice)
            turn = (self._writer and take_over(connection, self._writer)) or register(connection)
            self._check_replicated()
            connection.pgconn.send_prepare(_STATEMENT, APPEND)
            connection.results()
            self._look_at_durability(connection)
            self._session = _Session(connection, turn, Hints(connection))
        except BaseException:
            connection.close()
            raise
        if turn.writer == self._writer and turn.last_flush < self._acknowledged:
            log.error(
                "commits_lost database=%s: acknowledged messages are gone, their ids are given again", self._address
            )
            self._acknowledged = turn.last_flush
        self._writer = turn.writer
        return self._session

    def _look_at_durability(self, connection: Connection) -> None:
        """See what an acknowledgement means in a new session: a role's settings change, and servers fail over."""
        ((synchronous_commit, fsync),) = connection.execute(_DURABILITY).fetchall()
        before = self.durability
        self.durability = Durability(
            kind=f"PostgreSQL {(connection.info.parameter_status('server_version') or '').partition(' ')[0]}",
            setting=f"synchronous_commit={synchronous_commit} fsync={fsync}",
            durable=synchronous_commit != "off" and fsync == "on",
            meaning=_meaning(synchronous_commit, fsync),
        )
        if before.setting not in ("", self.durability.setting):
            log.warning("durability_changed setting=%r durable=%s", self.durability.setting, self.durability.durable)

    def _send(self, session: _Session, flush: Flush) -> Answer | None:
        """Append; None: the turn is over, or the flush is empty, and nothing was done."""
        self._unreplicated = False
        turn = session.turn
        parameters = [turn.writer.bytes, int8(turn.epoch), int8(self._flushes), *flush.parameters]
        session.connection.pgconn.send_query_prepared(_STATEMENT, parameters, [_BINARY] * len(parameters), _BINARY)
        (result,) = session.connection.results()
        self._check_replicated()
        if not result.ntuples:
            return None
        last_ids, times = result.get_value(0, 0), result.get_value(0, 1)
        assert last_ids is not None
        assert times is not None
        return Answer.of(last_ids, times)

    def _send_guarded(self, session: _Session, flush: Flush) -> Answer | None:
        """Judge the flush and append what passes, in one transaction; None: the turn is over, and nothing was done."""
        connection, turn = session.connection, session.turn
        with _undoing(connection):
            with connection.pipeline():  # one round trip
                connection.execute("BEGIN")
                connection.execute(BY_THE_INDEX)
                fence = connection.execute(FENCE, [turn.writer, turn.epoch])
                locked = connection.execute(LOCK, flush.lock_parameters())
                known = connection.execute(KNOWN, flush.known_parameters(), binary=True)
            last_ids: dict[str, int] = dict(locked.fetchall())
            answer: Answer | None = None
            if fence.fetchone() is not None and last_ids.keys() == flush.names:
                flush.judge(last_ids, known.fetchall())
                answer = self._send(session, flush) if flush.subjects else Answer([], [])
            if answer is None:
                connection.rollback()
                return None
            self._unreplicated = False
            with connection.pipeline():
                connection.execute(REMEMBER, flush.remember_parameters())
                connection.execute(FORGET_NEW, [flush.new_and_empty()])
                connection.execute("COMMIT")
            self._check_replicated()
        return answer

    def _refusal(self, error: psycopg.Error) -> StoreError:
        if error.sqlstate in _TRANSIENT:
            return Undone(f"{self._address}: {reason(error)}")
        refusal = failure(error, self._address)
        if isinstance(refusal, StoreUnavailable):
            self.close()  # the session may be to blame, such as for a prepared statement that is gone
        return refusal

    def _find_out(self, flush: int, why: str, patience: Patience) -> Answer:
        """Return what the flush did whose answer was lost.

        Raises:
            Undone: nothing, and it never will.
            OutcomeUnknown: the database could not be asked.
        """
        writer = self._writer
        while True:
            try:
                turn = self._connect(patience).turn
                break
            except (psycopg.Error, OutOfPatience) as error:
                if patience.left_s() <= _RECONNECT_PAUSE_S:
                    not_asked = failure(error, self._address)
                    raise OutcomeUnknown(f"{why}; what became of it could not be asked: {not_asked}") from error
            time.sleep(_RECONNECT_PAUSE_S)
        if turn.last_flush == flush:
            return turn.answer
        if turn.writer != writer:
            raise OutcomeUnknown(f"{why}; and the row that says what became of it is gone")
        raise Undone(why)

    def _notice(self, diagnostic: Diagnostic) -> None:
        # "canceling wait for synchronous replication": committed here, while no standby has said so
        self._unreplicated |= diagnostic.source_function == "SyncRepWaitForLSN"

    def _check_replicated(self) -> None:
        """Pass unless a standby was not waited for. Who commits next waits for this commit's place in the log as well.

        Raises:
            psycopg.OperationalError: it counts as a lost answer.
        """
        if self._unreplicated:
            raise psycopg.OperationalError("no standby has confirmed the commit")


@contextmanager
def _undoing(connection: Connection) -> Iterator[None]:
    """Undo a transaction that the block leaves by an error; a connection on which this fails is closed."""
    try:
        yield
    except BaseException:
        try:
            connection.rollback()
        except (psycopg.Error, OutOfPatience):
            connection.close()
        raise


def _meaning(synchronous_commit: str, fsync: str) -> str:
    """Say what an acknowledgement means under these settings of a session."""
    if fsync != "on":
        return "NOT DURABLE: a crash of PostgreSQL's machine may lose anything, acknowledged or not"
    if synchronous_commit == "off":
        return "durable but for the last moment: a crash of PostgreSQL loses what was acknowledged then"
    return "durable"
