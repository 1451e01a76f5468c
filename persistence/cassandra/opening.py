"""Open a keyspace: in which order, and what is said when it cannot be opened.

Owns:      what a cluster must be, and the texts for an operator whose cluster, URL or rights are not that.
Not here:  the facade (store.py), the tables (schema.py), the driver's settings (connection.py).
Threads:   worker threads; opening blocks.
"""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from cassandra import AuthenticationFailed, InvalidRequest, RequestValidationException, Unauthorized
from cassandra.cluster import NoHostAvailable, Session

from persistence.cassandra.address import Address, read_url
from persistence.cassandra.clock import Clock
from persistence.cassandra.connection import ERRORS, by_host, connect, reason
from persistence.cassandra.database import Database, Patience
from persistence.cassandra.schema import STEPS, check_ours, migrate_to_latest, read_record, replication_factor
from persistence.errors import CannotOpen, StoreUnavailable
from persistence.facade import Durability

log = logging.getLogger(__name__)

REQUEST_SHARE = 0.25
"""Part of the commit timeout for which one request is waited for: another node may do better in the rest. Nodes give up
after 2 s themselves."""
VERSION_MIN = (4, 0)

_NODE = "SELECT data_center, release_version FROM system.local"
_SYNC = "SELECT value FROM system_views.settings WHERE name = 'commitlog_sync'"
_PERIODIC = (
    "durable but for the last seconds: a node that crashes loses them, and what was acknowledged then if too few other "
    "replicas have it"
)
_UNKNOWN = (
    "unknown whether durable: see that the nodes' commitlog_sync is batch or group, and let an administrator "
    "GRANT SELECT ON system_views.settings, so that a broker sees it too"
)
_REFUSALS = {
    "mismatch, certificate": "let the nodes' certificates name their addresses, or write check_hostname=false",
    "certificate verify failed": "name the authority that signed the nodes' certificates by ca= in the URL",
    "WRONG_VERSION_NUMBER": "leave ssl and ca out of the URL, or turn encryption for clients on in the nodes",
    "requires authentication": "write user:password@ in the URL",
}
_LOGIN = "check the user and the password in the URL"
_RIGHTS = "let an administrator GRANT it, or run what `trio-broker migrate sql` prints"
_TABLES = "the keyspace may hold tables of another application; use another one"


class Opened(NamedTuple):
    """An open keyspace."""

    address: Address
    database: Database
    durability: Durability


def open_keyspace(
    url: str, clock: Clock, *, migrate: bool, commit_timeout_s: float, check_cancelled: Callable[[], None]
) -> Opened:
    """Open the keyspace that ``url`` names, made if ``migrate``; set the clock.

    Raises:
        CannotOpen: with what is wrong and what to do.
        StoreUnavailable: it cannot be reached now.
        trio.Cancelled: as ``check_cancelled`` says.
    """
    address = read_url(url)
    with _connected(address) as session:
        dc, kind = _check_node(session, address)
        recorded = read_record(session, address)
        check_ours(address, dc, recorded, migrate=migrate)
        version = recorded.version if recorded else 0
        if recorded is None or version < len(STEPS):
            recorded = migrate_to_latest(session, address, dc, version, check_cancelled)
            check_ours(address, dc, recorded, migrate=migrate)  # somebody else may have been first
        durability = _durability(session, address, dc, kind)
        database = Database(session, address, commit_timeout_s * REQUEST_SHARE)
        database.prepare()
        database.run(clock.ask(), Patience(commit_timeout_s))
        return Opened(address, database, durability)


def version_of(url: str) -> int:
    """Return the version of the schema of the keyspace that ``url`` names; 0 where there is none. Nothing is made.

    Raises as `open_keyspace` does.
    """
    address = read_url(url)
    with _connected(address) as session:
        dc, _ = _check_node(session, address)
        recorded = read_record(session, address)
        check_ours(address, dc, recorded, migrate=True)  # it may be older
        session.cluster.shutdown()
        return recorded.version if recorded else 0


@contextmanager
def _connected(address: Address) -> Iterator[Session]:
    """Connect; if the block fails, close the connections and raise its errors as those of opening."""
    try:
        session = connect(address)
        try:
            yield session
        except BaseException:
            session.cluster.shutdown()
            raise
    except ERRORS as error:
        raise refusal(error, address) from error


def _check_node(session: Session, address: Address) -> tuple[str, str]:
    """Return the datacenter, and what runs there in which version."""
    node = session.execute(_NODE).one()
    version: str = node["release_version"]
    if session.cluster.is_shard_aware():
        return node["data_center"], "ScyllaDB"
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < VERSION_MIN:
        raise CannotOpen(f"{address} is Cassandra {version}; 4.0 or later is needed")
    return node["data_center"], f"Cassandra {version}"


def _durability(session: Session, address: Address, dc: str, kind: str) -> Durability:
    factor = replication_factor(session, address, dc)
    if not factor:
        raise CannotOpen(f"{address} has no replicas in the datacenter {dc}; ALTER the keyspace, or name another dc=")
    if factor == 1:
        log.warning("store_not_replicated store=%s replication_factor=%d", address, factor)
    setting = f"{address.consistency} {address.serial} replication_factor={factor}"
    try:
        sync = session.execute(_SYNC).one()
    except (InvalidRequest, Unauthorized):
        return Durability(kind, f"{setting} commitlog_sync=unknown", durable=False, meaning=_UNKNOWN)
    setting += f" commitlog_sync={sync['value']}"
    if sync["value"] == "periodic":
        return Durability(kind, setting, durable=False, meaning=_PERIODIC)
    return Durability(kind, setting, durable=True)


def refusal(error: Exception, address: Address) -> CannotOpen | StoreUnavailable:
    """Say what an error means while opening."""
    causes = [error, *by_host(error).values()] if isinstance(error, NoHostAvailable) else [error]
    text = f"{address}: {reason(error)}"
    for refusal, advice in _REFUSALS.items():
        if refusal in text:
            return CannotOpen(f"{text}; {advice}")
    if any(isinstance(cause, AuthenticationFailed) for cause in causes):
        return CannotOpen(f"{text}; {_LOGIN}")
    if isinstance(error, Unauthorized):
        return CannotOpen(f"{text}; {_RIGHTS}")
    if isinstance(error, RequestValidationException):
        return CannotOpen(f"{text}; {_TABLES}")
    return StoreUnavailable(text)
