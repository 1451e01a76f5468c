"""Cassandra as the store sees it, in this process: what each request does to the tables, and what may happen to it.

Owns:      the tables; `Network`, in which requests are late, are lost, or are done and never answered for.
Not here:  anything of the store; TTLs: nothing expires here.
Threads:   any, one at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from persistence.cassandra import buckets, keys, purging, reading, writing
from persistence.cassandra.steps import AtOnce, Batch, Bound, OutOfPatience, Pause, Request, Rows, Steps, Unclear
from persistence.errors import StoreError, StoreUnavailable

R = TypeVar("R")
Partition = tuple[str, int]


class Nodes:
    """The tables of a keyspace, and statements on them."""

    def __init__(self, *, check_conditions: bool = True) -> None:
        self._listed: dict[str, tuple[int, bool]] = {}  # when, and whether
        self.buckets: dict[Partition, int] = {}
        self.states: dict[Partition, dict[str, Any]] = {}
        self.rows: dict[Partition, dict[int, dict[str, Any]]] = {}
        self.claims: dict[tuple[str, str], dict[object, dict[str, Any]]] = {}
        self._check_conditions = check_conditions
        self._statements: dict[object, Callable[..., Rows | None]] = {
            buckets._LAST: lambda subject: self._bases(subject, lambda base_id: True)[-1:],
            buckets._HOLDING: lambda subject, id_: self._bases(subject, lambda base_id: base_id < id_)[-1:],
            buckets._FROM: lambda subject, first: self._bases(subject, lambda base_id: base_id >= first)[:1],
            buckets._ADD: lambda subject, base_id, began_at, ttl: self.buckets.update({(subject, base_id): began_at}),
            buckets._ADD_SUBJECT: lambda shard, subject, at: self._list(subject, at, listed=True),
            buckets._STATE: lambda *key: self._select(key[:2], lambda id_: id_ == key[2]),
            reading._CHUNKS: lambda *key: self._select(key[:2], lambda id_: id_ >= key[2])[: key[3]],
            keys._CLAIMS: lambda *key: [{"key": key[1], **row} for row in self.claims.get(key, {}).values()],
            keys._CLAIM: lambda subject, key, *row: self._claim((subject, key), *row),
            keys._ATTEMPT: lambda *key: self._select(key[:2], lambda id_: id_ == key[2]),
            writing._PUT_CHUNK: lambda *values: self._put(*values[:3], chunk=values[3]),
            writing._PUT_ATTEMPT: lambda *values: self._put(*values[:3], attempt=values[3]),
            writing.PUT_END: lambda *values: self._put(*values),
            purging._BELOW: lambda subject, after, base_id, limit: self._bases(
                subject, lambda each: after < each < base_id
            )[:limit],
            purging._DROP_UNTIL: lambda subject, last: [
                self.buckets.pop((subject, row["base_id"])) for row in self._bases(subject, lambda each: each <= last)
            ],
            purging._DROP_CHUNKS: lambda subject, base_id, last: self._drop((subject, base_id), last),
            purging._UNLIST: lambda at, shard, subject: self._list(subject, at, listed=False),
        }
        self._conditional: dict[object, tuple[Sequence[str], Sequence[str]]] = {
            writing._MOVE_HEAD: (buckets.MOVED, (*buckets.MOVED, "gone_at")),
            purging._MARK: (("gone_at", "floor"), (*buckets.MOVED, "gone_at")),
            purging._RAISE: (("floor",), ("floor",)),
            purging._CLOSE: (("floor",), ("sealed",)),
        }

    @property
    def subjects(self) -> list[str]:
        return sorted(subject for subject, (_, listed) in self._listed.items() if listed)

    def do(self, request: Bound | Batch | AtOnce) -> Rows | None:
        """Carry a request out; return the rows of the answer."""
        if isinstance(request, AtOnce):
            return [row for part in request.parts for row in self.do(part) or ()]
        if isinstance(request, Bound):
            return self._statements[request.statement](*request.values)
        changes = [part for part in request.parts if part.statement in self._conditional]
        for part in changes:
            row = self._obstacle(part)
            if self._check_conditions and row is not None:
                return [{"[applied]": False, **row}]
        for part in request.parts:
            if part.statement in self._conditional:
                written, _ = self._conditional[part.statement]
                partition = (part.values[len(written)], part.values[len(written) + 1])
                self.states.setdefault(partition, {}).update(zip(written, part.values, strict=False))
            else:
                self._statements[part.statement](*part.values)
        return [{"[applied]": True}] if changes else None

    def take(self, steps: Steps[R]) -> R:
        """Take steps to their end while nothing goes wrong."""
        answer: Rows | None = None
        while True:
            try:
                request = steps.send(answer)  # type: ignore[arg-type]
            except StopIteration as end:
                return end.value
            answer = None if isinstance(request, Pause) else self.do(request)

    def _obstacle(self, part: Bound) -> dict[str, Any] | None:
        """The columns of a condition that does not hold; without any in a partition that has none."""
        written, compared = self._conditional[part.statement]
        state = self.states.get((part.values[len(written)], part.values[len(written) + 1]), {})
        expected = part.values[len(written) + 2 :] or (True,)  # of a sealed bucket
        found = {name: state.get(name) for name in compared}
        if tuple(found.values()) == tuple(expected):
            return None
        return found if state else {}

    def _bases(self, subject: str, wanted: Callable[[int], bool]) -> Rows:
        found = sorted(base_id for name, base_id in self.buckets if name == subject and wanted(base_id))
        return [{"base_id": base_id, "began_at": self.buckets[subject, base_id]} for base_id in found]

    def _select(self, partition: Partition, wanted: Callable[[int], bool]) -> Rows:
        statics = {**dict.fromkeys((*buckets.MOVED, "gone_at", "floor")), **self.states.get(partition, {})}
        rows = self.rows.get(partition, {})
        return [{"chunk": None, **statics, "id": id_, **rows[id_]} for id_ in sorted(rows) if wanted(id_)]

    def _put(self, subject: str, base_id: int, id_: int, **columns: object) -> None:
        self.rows.setdefault((subject, base_id), {})[id_] = columns

    def _drop(self, partition: Partition, last_id: int) -> None:
        rows = self.rows.get(partition, {})
        self.rows[partition] = {id_: row for id_, row in rows.items() if not 0 < id_ <= last_id}

    def _list(self, subject: str, at: int, *, listed: bool) -> None:
        """The later one counts, and of two at the same time the one that deletes."""
        self._listed[subject] = max(
            self._listed.get(subject, (0, False)), (at, listed), key=lambda it: (it[0], not it[1])
        )

    def _claim(self, key: tuple[str, str], attempt: object, *values: object) -> None:
        columns = ("base_id", "first_id", "id", "appended_at", "expires_at")
        row = {"attempt": attempt, **dict(zip(columns, values[: len(columns)], strict=True))}
        self.claims.setdefault(key, {})[attempt] = row


@dataclass
class Work(Generic[R]):
    """Steps under way through a bad network."""

    steps: Steps[R]
    asked: Request | None = None
    on_its_way: list[Request] = field(default_factory=list)
    """Requests that nobody waits for any more, and that nodes may still carry out."""
    result: R | StoreError | None = None

    @property
    def is_done(self) -> bool:
        return self.result is not None

    def begin(self) -> "Work[R]":
        self._go_on(lambda: next(self.steps))
        return self

    def happen(self, what: str, nodes: Nodes) -> None:
        """Let something happen to what was asked for."""
        asked = self.asked
        if isinstance(asked, Pause) and what != "give up":
            self._go_on(lambda: next(self.steps))
        elif what == "answer":
            answer = nodes.do(asked)
            self._go_on(lambda: next(self.steps) if answer is None else self.steps.send(answer))
        elif what == "lose the answer":
            nodes.do(asked)
            self._throw(Unclear("no answer"))
        elif what == "lose the request":
            self._throw(Unclear("no answer"))
        elif what == "delay":
            self.on_its_way.append(asked)
            self._throw(Unclear("no answer"))
        elif what == "refuse":
            self._throw(StoreUnavailable("refused"))
        else:
            assert what == "give up"
            if not isinstance(asked, Pause):
                self.on_its_way.append(asked)
            self._throw(OutOfPatience("too late"))

    def arrive(self, nodes: Nodes) -> None:
        """Let the oldest of the delayed requests be carried out."""
        nodes.do(self.on_its_way.pop(0))

    def _throw(self, error: StoreError) -> None:
        self._go_on(lambda: self.steps.throw(error))

    def _go_on(self, step: Callable[[], Request]) -> None:
        self.asked = None
        try:
            self.asked = step()
        except StopIteration as end:
            self.result = end.value
        except StoreError as error:
            self.result = error


EVENTS = ("answer", "lose the answer", "lose the request", "delay", "refuse", "give up")
