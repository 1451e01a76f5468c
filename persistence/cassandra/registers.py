"""Registers: all in one partition, so that one batch can change a register and count its version.

Owns:      the table ``registers``.
Not here:  what an answer that is missing means (steps.py), in which thread (store.py).
Threads:   any; nothing waits.
"""

from functools import partial
from uuid import UUID, uuid4

from persistence.cassandra.steps import Batch, Row, Statement, Steps, apply_once, pause, surely
from persistence.errors import OutcomeUnknown
from persistence.facade import Register

_COUNT = Statement("UPDATE {keyspace}.registers SET last_version = ? WHERE shard = 0 IF last_version = ?")
_SET = Statement("""
    UPDATE {keyspace}.registers SET value = ?, version = ?, attempt = ? WHERE shard = 0 AND name = ? IF version = ?
""")
_DELETE = Statement("DELETE FROM {keyspace}.registers WHERE shard = 0 AND name = ? IF version = ?")
_LOAD = Statement("SELECT value, version, attempt FROM {keyspace}.registers WHERE shard = 0 AND name = ?", serial=True)
_LIST = Statement("SELECT name, value, version FROM {keyspace}.registers WHERE shard = 0 AND name >= ?", serial=True)


def load_register(name: str) -> Steps[Register | None]:
    rows = yield from surely(_LOAD(name))
    return _register(rows[0]) if rows else None


def list_registers(prefix: str) -> Steps[list[tuple[str, Register]]]:
    rows = yield from surely(_LIST(prefix))
    return [(row["name"], _register(row)) for row in rows if row["name"].startswith(prefix)]


def compare_and_set(name: str, value: bytes, version: int) -> Steps[int | None]:
    last_version: int | None = None  # a guess: if it is wrong, the answer says what is right
    while True:
        new_version = (last_version or 0) + 1
        attempt = uuid4()
        batch = Batch([_COUNT(new_version, last_version), _SET(value, new_version, attempt, name, version or None)])
        row = yield from apply_once(batch, partial(_was_mine, name, version, attempt))
        if row is None:
            return new_version
        if (row.get("version") or 0) != version:
            return None
        last_version = row["last_version"]
        yield pause()


def delete_register(name: str, version: int) -> Steps[bool]:
    return (yield from apply_once(_DELETE(name, version), _is_unknown)) is None


def _was_mine(name: str, version: int, attempt: UUID) -> Steps[bool]:
    """Say whether a register was set by an attempt that it no longer has the version for."""
    rows = yield from surely(_LOAD(name))
    if rows and rows[0]["attempt"] == attempt:
        return True
    if rows and rows[0]["version"] == version:
        return False
    return (yield from _is_unknown())  # it was changed since, by this attempt and then another one or by that alone


def _is_unknown() -> Steps[bool]:
    yield from ()
    raise OutcomeUnknown("an answer was lost, and the register has changed since; it may or may not have been done")


def _register(row: Row) -> Register:
    return Register(row["value"], row["version"])
