"""Open and close the database: in which order, and what is said when it cannot be opened.

Owns:      what a server must be, and the texts for an operator whose server, URL or rights are not that.
Not here:  the facade (store.py), the tables (schema.py).
Threads:   worker threads; opening blocks.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import NamedTuple

import psycopg

from persistence.errors import CannotOpen, StoreUnavailable
from persistence.postgres.connection import CONNECT_TIMEOUT_S, Address, Connection, failure, reason
from persistence.postgres.patience import OutOfPatience, Patience
from persistence.postgres.schema import check_ours, migrate_to_latest, schema_version
from persistence.postgres.writing import Writer

STATEMENT_SHARE = 0.5
"""Part of the commit timeout for which a statement is waited for. The rest is for finding out what became of it: the
broker stops waiting then, and has to call the outcome unknown."""
VERSION_MIN = 13_00_00

_OPEN_TIMEOUT_S = 10.0
_MIGRATION_TIMEOUT_S = 600.0
"""A step may take long, and so may waiting for another process that takes it."""
# What a server says to a client that it does not let in comes without an SQLSTATE; those of other languages than
# English are not recognized, and taken for a server that may let us in later.
_REFUSALS = {
    "it is a read replica": "give the address of the primary",
    "password authentication failed": "check the user and the password in the URL",
    "no password supplied": "write the password in the URL, or set PGPASSWORD",
    "no pg_hba.conf entry": "let this host and user in by the server's pg_hba.conf",
    "is not permitted to log in": "ALTER ROLE it LOGIN, or name another user in the URL",
    "does not exist": "create it, or correct the URL",
    "permission denied for database": "GRANT CONNECT on it to the user in the URL",
    "unrecognized configuration parameter": "correct the options in the URL",
    "invalid ": "correct the URL",
    "does not support SSL": "turn SSL on in the server, or choose another sslmode in the URL",
    "certificate verify failed": "name the authority that signed the server's certificate by sslrootcert in the URL",
}
_NO_RIGHTS = "42501"
_RIGHTS = (
    "let an administrator CREATE SCHEMA trio_broker AUTHORIZATION this role, or grant it all on the tables in there"
)


class Database(NamedTuple):
    """An open database."""

    address: Address
    listen_address: Address
    """Where to listen for wake-ups; nothing is connected there yet."""
    writer: Writer


def open_database(
    url: str, listen_url: str, *, migrate: bool, commit_timeout_s: float, check_cancelled: Callable[[], None]
) -> Database:
    """Open the database that ``url`` names, its tables created or upgraded if ``migrate``.

    Raises:
        CannotOpen: with what is wrong and what to do.
        StoreUnavailable: it cannot be reached now.
        trio.Cancelled: as ``check_cancelled`` says.
    """
    address, listen_address = (Address(each, commit_timeout_s * STATEMENT_SHARE) for each in (url, listen_url))
    bounded = partial(Patience, check_cancelled=check_cancelled)
    with _refusals(address):
        with closing(address.connect(bounded(_OPEN_TIMEOUT_S))) as connection:
            _check_server(connection, address)
            check_ours(connection, address, migrate=migrate)
            if migrate:
                connection.patience = bounded(_MIGRATION_TIMEOUT_S)
                migrate_to_latest(connection)
                check_ours(connection, address, migrate=migrate)  # a later release may have come in between
        writer = Writer(address, commit_timeout_s)
        writer.open(bounded(_OPEN_TIMEOUT_S))
    return Database(address, listen_address, writer)


def version_of(url: str) -> int:
    """Return the version of the schema in the database that ``url`` names; 0 where there is none. Nothing is created.

    Raises as `open_database` does.
    """
    address = Address(url, CONNECT_TIMEOUT_S)
    with _refusals(address), closing(address.connect(Patience(CONNECT_TIMEOUT_S))) as connection:
        _check_server(connection, address)
        check_ours(connection, address, migrate=True)  # it may be older
        return schema_version(connection)


def _check_server(connection: Connection, address: Address) -> None:
    if connection.info.server_version < VERSION_MIN:
        version = connection.info.parameter_status("server_version")
        raise CannotOpen(f"{address} is PostgreSQL {version}; 13 or later is needed")
    encoding = connection.info.parameter_status("server_encoding")
    if encoding not in ("UTF8", "SQL_ASCII"):
        raise CannotOpen(f"{address} has the encoding {encoding}; create a database with ENCODING 'UTF8'")


@contextmanager
def _refusals(address: Address) -> Iterator[None]:
    """Raise the errors of the block as those of opening."""
    try:
        yield
    except (psycopg.Error, OutOfPatience) as error:
        text = str(failure(error, address))
        if isinstance(error, psycopg.Error):
            if error.sqlstate == _NO_RIGHTS:
                raise CannotOpen(f"{text}; {_RIGHTS}") from error
            for refusal, advice in _REFUSALS.items():
                if error.sqlstate is None and refusal in reason(error):
                    raise CannotOpen(f"{text}; {advice}") from error
        raise StoreUnavailable(text) from error
