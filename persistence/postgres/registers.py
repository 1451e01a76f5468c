"""Registers: each function is one statement.

Owns:      the tables ``registers`` and ``register_versions``.
Not here:  which connection, which thread (pool.py).
Threads:   worker threads; each function blocks.
"""

from persistence.facade import Register
from persistence.postgres.connection import Connection

# The counter's lock is taken first and held to the end: the versions that become visible grow.
_CREATE = """
    WITH next AS (UPDATE trio_broker.register_versions SET last = last + 1 RETURNING last AS version)
    INSERT INTO trio_broker.registers (name, value, version) SELECT %(name)s, %(value)s, version FROM next
    ON CONFLICT (name) DO NOTHING RETURNING version
"""
_REPLACE = """
    WITH next AS (UPDATE trio_broker.register_versions SET last = last + 1 RETURNING last AS version)
    UPDATE trio_broker.registers AS register SET value = %(value)s, version = next.version
    FROM next WHERE register.name = %(name)s AND register.version = %(version)s RETURNING register.version
"""
_DELETE = "DELETE FROM trio_broker.registers WHERE name = %s AND version = %s"
_LOAD = "SELECT value, version FROM trio_broker.registers WHERE name = %s"
_LIST = "SELECT name, value, version FROM trio_broker.registers WHERE starts_with(name, %s) ORDER BY name"


def load_register(connection: Connection, name: str) -> Register | None:
    rows = connection.ask(_LOAD, [name])
    return Register(*rows[0]) if rows else None


def list_registers(connection: Connection, prefix: str) -> list[tuple[str, Register]]:
    return [(name, Register(value, version)) for name, value, version in connection.ask(_LIST, [prefix])]


def compare_and_set(connection: Connection, name: str, value: bytes, version: int) -> int | None:
    statement = _REPLACE if version else _CREATE
    row = connection.execute(statement, {"name": name, "value": value, "version": version}).fetchone()
    return int(row[0]) if row else None


def delete_register(connection: Connection, name: str, version: int) -> bool:
    return connection.execute(_DELETE, [name, version]).rowcount == 1
