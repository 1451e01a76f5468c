"""This broker among the others that share its log.

Owns:      the links to all others, the server that they call, who is admitted, and which replica a subject is left to.
Not here:  who there is (membership.py), one stream (tails.py, links.py), appending for others (forwarding.py).
Threads:   the trio thread only.
"""

import hmac
import secrets
import socket
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path

import structlog
import trio
from purerpc import Status, StatusCode

from persistence import Store, StoreError
from trio_broker import __version__
from trio_broker._proto import replicas_pb2 as pb
from trio_broker.broker import Broker
from trio_broker.memory import descriptors_max
from trio_broker.notation import TcpAddress, is_all_of_a_machine, is_loopback, parse_tcp
from trio_broker.replicas.forwarding import Forwarding
from trio_broker.replicas.links import Link
from trio_broker.replicas.membership import Member, Membership, common_secret
from trio_broker.replicas.service import ReplicasService
from trio_broker.replicas.tails import Feeds
from trio_broker.rpc.limits import Limits
from trio_broker.rpc.server import Server
from trio_broker.service.statuses import BrokerRefusals

LEAVE_S = 1.0
"""How long leaving may take: the others may have calls in flight, and the store may be away."""
RETRY_S = 1.0
"""Pause before the store is asked again for the common secret."""
REQUEST_MAX_BYTES = 16 * 1024 * 1024
"""What another broker asks for at most: to append a flush."""
CONNECTIONS_MAX = 1000
"""Others that are connected at once, or who say that they are others,"""
DESCRIPTORS_SHARE = 16
"""and the part of this process's descriptors that they may have: what nobody knows takes none from clients."""
CONNECTIONS_LEAST = 16
"""So many may be connected, however few descriptors there are."""
TURNED_AWAY_MAX = 8
"""Those that are being told that they are too many."""
_ID_BYTES = 6

log = structlog.get_logger()


@asynccontextmanager
async def run_replicas(
    store: Store, broker: Broker, listener: socket.socket, *, advertise: str = "", peers: tuple[str, ...] = ()
) -> AsyncGenerator["Replicas"]:
    """Let ``broker`` hear of the others' commits, and them of its own, for the length of the block.

    Args:
        store: the one that they share.
        broker: this one.
        listener: where other brokers connect; it is closed at the end.
        advertise: HOST:PORT that they are told; empty: found out from ``listener``.
        peers: where others are, instead of what their registers say.
    """
    async with AsyncExitStack() as opened:
        opened.enter_context(closing(listener))
        replicas = Replicas(store, broker, advertise or _reachable_at(listener), peers)
        nursery = await opened.enter_async_context(trio.open_nursery())
        await nursery.start(replicas.server.serve_on, [listener])
        nursery.start_soon(replicas.run)
        try:
            yield replicas
        finally:
            with trio.move_on_after(LEAVE_S, shield=True):
                await replicas.leave()
            nursery.cancel_scope.cancel()


class Replicas:
    """This broker among the others."""

    def __init__(self, store: Store, broker: Broker, address: str, peers: tuple[str, ...]) -> None:
        self.id = secrets.token_hex(_ID_BYTES)
        self.address = address
        self.feeds = Feeds()
        """Streams to others."""
        limits = Limits(
            message_max_bytes=REQUEST_MAX_BYTES, connections_max=_connections_max(), turned_away_max=TURNED_AWAY_MAX
        )
        self.server = Server(limits=limits, refusals=BrokerRefusals())
        self.server.add_service(ReplicasService(broker, self.admit, self.feeds).service)
        self._store = store
        self._broker = broker
        self._peers = peers
        self._machine = _machine()
        self._secret = b""
        me = Member(self.id, address, self._machine, __version__)
        self._membership = Membership(store, me, self._members_changed)
        self.links: dict[str, Link] = {}
        """Those to the others, by their ids, or by their addresses where those are given."""
        self._scopes: dict[str, trio.CancelScope] = {}
        self._oneself: set[str] = set()  # of the peers
        self._changed = trio.Event()
        broker.fanout.on_interest.append(self._interest_changed)
        broker.hearing.is_linked = self.is_linked
        broker.settling.ask_others = self._ask_settled
        self.forwarding: Forwarding | None = None
        """Which appends are left to others; None: each replica appends what it is given."""
        if store.limits().leaves_subjects and not peers:
            self.forwarding = Forwarding(self.id, store.append, lambda: self.links, self._greeting)
            self.forwarding.changes = broker.committer.left_changes
            broker.leave(self.forwarding.is_left, self.forwarding.append, self.forwarding.take_told)

    @property
    def others(self) -> Mapping[str, Member]:
        """Those that are alive, as far as their registers say."""
        return self._membership.others

    @property
    def known(self) -> int:
        """How many others there are."""
        return len(self._peers) - len(self._oneself) if self._peers else len(self._membership.others)

    @property
    def heard(self) -> int:
        """How many of them stream their commits to this one."""
        return sum(link.connected for link in self.links.values())

    def is_linked(self) -> bool:
        """Say whether all others are heard."""
        return self.known == len(self.links) == self.heard

    async def run(self) -> None:
        """Find the others and follow them, until cancelled."""
        self._secret = await self._learn_secret()
        async with trio.open_nursery() as nursery:
            if not self._peers:
                nursery.start_soon(self._membership.keep)
            while True:
                self._adjust_links(nursery)
                await self._changed.wait()
                self._changed = trio.Event()

    async def leave(self) -> None:
        """Tell the others that this one is gone; return when they have all answers. A checkpoint."""
        for feed in tuple(self.feeds.open):
            feed.retire()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._membership.leave)
            nursery.start_soon(self.server.drain)

    def admit(self, greeting: pb.Greeting) -> Status | None:
        """Say why somebody is not to be spoken to; None: it is one of us."""
        if not self._secret or not hmac.compare_digest(greeting.secret, self._secret):
            return Status(StatusCode.PERMISSION_DENIED, "not one of the brokers of this log")
        if greeting.to not in ("", self.id):  # first: who reaches itself at another's address has to go on trying
            return Status(StatusCode.NOT_FOUND, f"this is replica {self.id}, and not {greeting.to}")
        if getattr(greeting, "from") == self.id:
            return Status(StatusCode.ALREADY_EXISTS, "this is the replica that calls")  # see `ONESELF`
        if getattr(greeting, "from") not in self._membership.others:
            self._membership.look_now()
        return None

    async def _learn_secret(self) -> bytes:
        while True:
            try:
                return await common_secret(self._store)
            except StoreError as error:
                log.debug("secret_unknown", why=str(error))
            await trio.sleep(RETRY_S)

    def _members_changed(self) -> None:
        self._changed.set()

    def _adjust_links(self, nursery: trio.Nursery) -> None:
        """Follow those that are there, and nobody else."""
        if self._peers:
            wanted = {address: (address, "") for address in self._peers if address not in self._oneself}
        else:
            wanted = {
                other.id: (other.address, other.id)
                for other in self._membership.others.values()
                if other.machine == self._machine or not is_loopback(parse_tcp(other.address))
            }
        for gone in [key for key in self.links if key not in wanted]:
            del self.links[gone]
            self._scopes.pop(gone).cancel()
        for key, (address, id_) in wanted.items():
            if key in self.links:
                continue
            self.links[key] = link = Link(address, self._greeting(id_), self._broker.fanout, self._broker.hearing.hint)
            self._scopes[key] = scope = trio.CancelScope()
            nursery.start_soon(self._follow, key, link, scope)

    async def _follow(self, key: str, link: Link, scope: trio.CancelScope) -> None:
        with scope:
            await link.run()
            self._oneself.add(key)
            self._changed.set()

    def _greeting(self, to: str) -> pb.Greeting:
        greeting = pb.Greeting(secret=self._secret, to=to)
        setattr(greeting, "from", self.id)  # a keyword in Python
        return greeting

    def _ask_settled(self) -> list[trio.Event]:
        return [link.ask_settled() for link in self.links.values() if link.connected]

    def _interest_changed(self, subject: str) -> None:
        for link in self.links.values():
            link.interest_changed(subject)


def _reachable_at(listener: socket.socket) -> str:
    """Return where others on the network reach a listener, as far as this host knows."""
    address = TcpAddress(*listener.getsockname()[:2])
    if is_all_of_a_machine(address):
        address = address._replace(host=socket.gethostbyname(socket.gethostname()))
        if is_loopback(address):
            log.warning("replica_address_local", address=str(address), hint="pass --advertise HOST:PORT")
    return str(address)


def _connections_max() -> int:
    return min(CONNECTIONS_MAX, max(CONNECTIONS_LEAST, descriptors_max() // DESCRIPTORS_SHARE))


def _machine() -> str:
    """Return what is equal for processes with the same loopback interface."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/net').readlink()}"
    except OSError:  # not Linux
        return f"{uuid.getnode():x}"
