"""The driver: how it connects, and what its errors mean.

Owns:      the driver's settings, `connect`, `failure`.
Not here:  statements (buckets.py, writing.py and others), sending them (database.py), what is opened (opening.py).
Threads:   worker threads; connecting blocks. The driver has threads of its own, which keep connecting again.
"""

import logging
import re
import socket
from collections.abc import Mapping

from cassandra import (
    AuthenticationFailed,
    ConsistencyLevel,
    DriverException,
    InvalidRequest,
    OperationTimedOut,
    RequestValidationException,
    Unavailable,
    UnresolvableContactPoints,
)
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable, Session
from cassandra.connection import ConnectionException
from cassandra.policies import (
    ConstantReconnectionPolicy,
    DCAwareRoundRobinPolicy,
    FallthroughRetryPolicy,
    TokenAwarePolicy,
)
from cassandra.protocol import ErrorMessage, IsBootstrappingErrorMessage
from cassandra.query import dict_factory

from persistence.cassandra.address import Address
from persistence.cassandra.steps import TooFewReplicas, Unclear
from persistence.errors import BadContent, CannotOpen, StoreFull, StoreUnavailable

CONNECT_TIMEOUT_S = 2.0
"""Closing waits for whoever is connecting."""
RECONNECT_PAUSE_S = 1.0
HEARTBEAT_INTERVAL_S = 1.0
HEARTBEAT_TIMEOUT_S = 2.0
"""A node that stands still is asked for nothing more after these two: other nodes need much longer to notice."""
SCHEMA_TIMEOUT_S = 30.0
"""For a change of the schema, and for all nodes to agree on it."""

ERRORS = (DriverException, ErrorMessage, ConnectionException, NoHostAvailable)
"""What the driver raises when something is wrong outside of this process."""

_driver_log = logging.getLogger("cassandra")
if _driver_log.level == logging.NOTSET:
    # it has a traceback for each try to connect; what is wrong is told to whoever asked for something
    _driver_log.setLevel(logging.CRITICAL)

_UNDONE = (NoHostAvailable, RequestValidationException, AuthenticationFailed, IsBootstrappingErrorMessage)
"""What is raised before anything is done: it was sent to no node, or the node did not begin with it."""
_SERIAL = (ConsistencyLevel.SERIAL, ConsistencyLevel.LOCAL_SERIAL)
_TOO_LATE = "maximum supported expiration date"
_CONTENT = ("exceeds allowed maximum", "too large")
_FULL = "disk usage exceeds"
_PREAMBLE = re.compile(r"^(Error from server: code=\w+ |\[Errno \d+\] |Tried connecting to .*?\. Last error: )+")


def connect(address: Address) -> Session:
    """Connect to all nodes of the datacenter. Whoever is done with the session shuts its ``cluster`` down."""
    profile = ExecutionProfile(
        load_balancing_policy=TokenAwarePolicy(DCAwareRoundRobinPolicy(address.dc or "")),
        # whether a statement may be sent again is known to who sent it
        retry_policy=FallthroughRetryPolicy(),
        consistency_level=ConsistencyLevel.name_to_value[address.consistency],
        serial_consistency_level=ConsistencyLevel.name_to_value[address.serial],
        request_timeout=SCHEMA_TIMEOUT_S,
        row_factory=dict_factory,
    )
    cluster = Cluster(
        list(address.hosts),
        port=address.hosts[0][1],
        auth_provider=address.login and PlainTextAuthProvider(*address.login),
        ssl_context=address.tls,
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        reconnection_policy=ConstantReconnectionPolicy(RECONNECT_PAUSE_S, max_attempts=None),
        # the driver writes 4 KiB at a time: without it the last piece waits some 40 ms for an acknowledgement
        sockopts=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        connect_timeout=CONNECT_TIMEOUT_S,
        control_connection_timeout=CONNECT_TIMEOUT_S,
        idle_heartbeat_interval=HEARTBEAT_INTERVAL_S,
        idle_heartbeat_timeout=HEARTBEAT_TIMEOUT_S,
        max_schema_agreement_wait=SCHEMA_TIMEOUT_S,
    )
    try:
        session = cluster.connect()
    except NoHostAvailable as error:
        cluster.shutdown()
        dcs = sorted({host.datacenter for host in cluster.metadata.all_hosts() if host.datacenter})
        if dcs and address.dc not in (None, *dcs):
            raise CannotOpen(f"{address} has no datacenter {address.dc}; there are {', '.join(dcs)}") from error
        raise
    except BaseException:
        cluster.shutdown()
        raise
    session.use_client_timestamp = False  # the clocks of brokers decide nothing
    session.default_fetch_size = None  # every answer is bounded by its statement
    return session


def failure(error: Exception, address: Address) -> Exception:
    """Say what an error means to who asked for something: a `StoreError`, or itself if it is a bug."""
    if not isinstance(error, ERRORS):
        return error
    text = f"{address}: {reason(error)}"
    if isinstance(error, InvalidRequest):
        if _TOO_LATE in str(error):
            return BadContent("the expiration is too long: these nodes store no expiry after 2038 (or 2106)")
        if any(words in str(error) for words in _CONTENT):
            return BadContent(reason(error))
        if _FULL in str(error):
            return StoreFull(text)
    if isinstance(error, Unavailable):
        # too few to decide on a condition: nothing was done; too few to hear what was decided: it may have been
        return StoreUnavailable(text) if error.consistency in _SERIAL else TooFewReplicas(text)
    return StoreUnavailable(text) if isinstance(error, _UNDONE) else Unclear(text)


def by_host(error: NoHostAvailable) -> Mapping[object, Exception]:
    """Return what was wrong with each host that was tried; the driver does not always say."""
    return error.errors if isinstance(error.errors, dict) else {}


def reason(error: Exception) -> str:
    """Return what a node or the driver says, in one line."""
    match error:
        case NoHostAvailable():
            reasons = [f"{host}: {reason(why)}" for host, why in by_host(error).items()]
            return "; ".join(reasons) or "no node of the datacenter is connected"
        case OperationTimedOut():
            return "a node did not answer in time"
        case Unavailable():
            return f"{error.alive_replicas} of the {error.required_replicas} replicas that are needed are alive"
        case UnresolvableContactPoints():
            return "the names of the hosts cannot be resolved"
        case ErrorMessage():
            return f"{error.summary}: {error.message}"
    return _PREAMBLE.sub("", str(error)).partition(" info=")[0].partition("\n")[0] or type(error).__name__
