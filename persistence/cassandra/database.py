"""An open database: what steps ask for is sent to it, and they are sent its answers.

Owns:      `Database`, `Patience`; how much is asked at once, and how long an answer is waited for.
Not here:  what is asked for (steps.py and who uses it), connecting (connection.py).
Threads:   worker threads; `Database.run` blocks, for as long as its patience lasts. The driver's own thread only puts
           answers into a queue.
"""

import heapq
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, Queue
from typing import Generic

from cassandra import ConsistencyLevel
from cassandra.cluster import PreparedStatement, Session
from cassandra.query import BatchStatement, BatchType, BoundStatement

from persistence.cassandra.address import Address
from persistence.cassandra.connection import failure
from persistence.cassandra.steps import (
    STATEMENTS,
    AtOnce,
    Batch,
    Bound,
    OutOfPatience,
    Pause,
    R,
    Request,
    Row,
    Rows,
    Statement,
    Steps,
    Unclear,
)
from persistence.errors import StoreError

AT_ONCE_MAX = 64
"""How many steps of one call are taken at once. More only wait in the nodes."""

Answer = Rows | Exception | None


class Patience:
    """A bound for everything that is waited for on behalf of one call."""

    def __init__(self, seconds: float) -> None:
        """Begin now."""
        self.seconds = seconds
        self._until = time.monotonic() + seconds

    def left_s(self) -> float:
        """Return how much of it is left; 0.0 at its end."""
        return max(0.0, self._until - time.monotonic())


class Database:
    """A session, and the prepared statements."""

    def __init__(self, session: Session, address: Address, request_timeout_s: float) -> None:
        self._session = session
        self._address = address
        self._request_timeout_s = request_timeout_s
        self._prepared: dict[Statement, PreparedStatement] = {}

    def prepare(self) -> None:
        """Prepare all statements, which shows whether the tables are what they should be."""
        for statement in STATEMENTS:
            prepared = self._session.prepare(statement.cql.format(keyspace=self._address.keyspace))
            if statement.serial or (statement.whole and self._session.cluster.is_shard_aware()):
                prepared.consistency_level = ConsistencyLevel.name_to_value[self._address.serial]
            self._prepared[statement] = prepared

    def close(self) -> None:
        """Close all connections. Who still waits for an answer is told that the connection is closed."""
        self._session.cluster.shutdown()

    def run(self, steps: Steps[R], patience: Patience) -> R:
        """Take steps to their end; return what they do.

        Raises:
            StoreError: as the steps do.
        """
        (result,) = self.run_all([steps], patience)
        if isinstance(result, StoreError):
            raise result
        return result

    def run_all(self, all_steps: Sequence[Steps[R]], patience: Patience) -> list[R | StoreError]:
        """Take many steps to their ends, several at once; return what each returns, or how each failed."""
        return _Run(self, all_steps, patience).run()

    def send(self, request: Bound | Batch, longest_s: float, answer: Callable[[Answer], None]) -> None:
        """Send a request; ``answer`` is called later in the driver's thread, or at once if it cannot be sent."""
        timeout_s = min(self._request_timeout_s, longest_s)
        future = self._session.execute_async(self._message(request), timeout=timeout_s)
        future.add_callbacks(answer, lambda error: answer(failure(error, self._address)))

    def out_of_patience(self, patience: Patience) -> OutOfPatience:
        return OutOfPatience(f"{self._address}: not done within {patience.seconds:.3g} s")

    def _message(self, request: Bound | Batch) -> BoundStatement | BatchStatement:
        if isinstance(request, Bound):
            return self._bind(request)
        batch = BatchStatement(BatchType.UNLOGGED)  # one partition changes at once in any case
        for part in request.parts:
            batch.add(self._bind(part))
        return batch

    def _bind(self, bound: Bound) -> BoundStatement:
        return self._prepared[bound.statement].bind(bound.values)


class _Run(Generic[R]):
    """Steps that are being taken."""

    def __init__(self, database: Database, all_steps: Sequence[Steps[R]], patience: Patience) -> None:
        self._database = database
        self._all_steps = all_steps
        self._patience = patience
        self._begun = 0
        self._results: dict[int, R | StoreError] = {}
        # no SimpleQueue: its `get` waits for ever when a timeout is over at the wrong moment (CPython 3.11, 3.12)
        self._answers: Queue[tuple[int, Answer]] = Queue()
        self._pauses: list[tuple[float, int]] = []  # a heap: until when, whose

    def run(self) -> list[R | StoreError]:
        while len(self._results) < len(self._all_steps):
            if not self._patience.left_s():
                self._give_up()
            elif self._begun < min(len(self._all_steps), len(self._results) + AT_ONCE_MAX):
                self._begun += 1
                self._step(self._begun - 1, None)
            elif self._pauses and self._pauses[0][0] <= time.monotonic():
                self._step(heapq.heappop(self._pauses)[1], None)
            else:
                self._wait()
        return [self._results[index] for index in range(len(self._all_steps))]

    def _wait(self) -> None:
        longest_s = self._patience.left_s()
        if self._pauses:
            longest_s = min(longest_s, max(0.0, self._pauses[0][0] - time.monotonic()))
        try:
            index, answer = self._answers.get(timeout=longest_s)
        except Empty:
            return
        if not self._patience.left_s():
            return  # what it proves may have been true for as long only
        self._step(index, answer)

    def _give_up(self) -> None:
        for index in range(len(self._all_steps)):
            if index not in self._results:
                self._step(index, self._database.out_of_patience(self._patience))

    def _step(self, index: int, answer: Answer) -> None:
        steps = self._all_steps[index]
        try:
            if isinstance(answer, Exception):
                request = steps.throw(answer)
            else:
                request = next(steps) if answer is None else steps.send(answer)
        except StopIteration as end:
            self._results[index] = end.value
        except StoreError as error:
            self._results[index] = error
        else:
            self._ask(index, request)

    def _ask(self, index: int, request: Request) -> None:
        if isinstance(request, Pause):
            heapq.heappush(self._pauses, (time.monotonic() + request.seconds, index))
            return

        def answered(answer: Answer) -> None:
            self._answers.put((index, answer))

        if isinstance(request, AtOnce):
            each_answered = _Gathering(len(request.parts), answered).take
            for part in request.parts:
                self._database.send(part, self._patience.left_s(), each_answered)
        else:
            self._database.send(request, self._patience.left_s(), answered)


class _Gathering:
    """The answers to what was asked at once. They come in the driver's thread, or at once if it cannot be sent."""

    def __init__(self, missing: int, answered: Callable[[Answer], None]) -> None:
        self._missing = missing
        self._answered = answered
        self._rows: list[Row] = []
        self._error: Exception | None = None
        self._lock = threading.Lock()

    def take(self, answer: Answer) -> None:
        """Take one of them; hand on the rows of all, or else one of the errors, with the last."""
        with self._lock:
            if isinstance(answer, Exception):
                # one that says that nothing was done would be wrong about the others
                self._error = answer if self._error is None or isinstance(answer, Unclear) else self._error
            else:
                self._rows += answer or ()
            self._missing -= 1
            is_last = not self._missing
        if is_last:
            self._answered(self._error or self._rows)
