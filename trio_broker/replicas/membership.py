"""Who else has this log open, by registers in the store.

Owns:      this replica's register, and what the others' say; the secret that they know each other by.
Not here:  connections to them (links.py).
Threads:   the trio thread only.

Each replica writes a register of its own every `BEAT_S`, with the store's time: clocks of machines do not matter. One
that has not been written for `DEAD_S` is taken for dead, and is deleted after `FORGOTTEN_S` by whoever sees it. While
the store is away everybody is taken to be as they were.
"""

import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import structlog
import trio

from persistence import Store, StoreError
from trio_broker.notation import parse_tcp

BEAT_S = 2.0
DEAD_S = 7.0
FORGOTTEN_S = 60.0

PREFIX = "replicas/"
"""Of the names of registers."""
SECRET = "replica-secret"  # noqa: S105 - the name of a register
_SECRET_BYTES = 32

log = structlog.get_logger()


class Member(NamedTuple):
    """A replica."""

    id: str
    address: str
    """Where others reach it: HOST:PORT."""
    machine: str
    """Equal for those that have the same loopback interface."""
    version: str
    beat_us: int = 0
    """When its register was written, by the store's clock."""

    def write(self) -> bytes:
        """Return what its register holds."""
        return json.dumps({name: value for name, value in self._asdict().items() if name != "id"}).encode()

    @classmethod
    def read(cls, id_: str, value: bytes) -> Self:
        """Read a register.

        Raises:
            ValueError: it holds something else.
        """
        try:
            fields: dict[str, Any] = json.loads(value)
            address, machine, version, beat_us = (fields[name] for name in ("address", "machine", "version", "beat_us"))
            parse_tcp(address)
            return cls(id_, address, str(machine), str(version), int(beat_us))
        except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"the register of replica {id_!r} cannot be read: {error!r}") from error


async def common_secret(store: Store) -> bytes:
    """Return what only those know who can read the store; the first one makes it. A checkpoint. Raises `StoreError`."""
    while (register := await store.load(SECRET)) is None:
        await store.compare_and_set(SECRET, secrets.token_bytes(_SECRET_BYTES), version=0)
    return register.value


class Membership:
    """This replica among the others."""

    def __init__(self, store: Store, me: Member, changed: Callable[[], None]) -> None:
        """``changed`` is called when `others` are not the same any more."""
        self.others: Mapping[str, Member] = {}
        """Those that are alive, by id."""
        self._store = store
        self._me = me
        self._changed = changed
        self._version = 0
        self._look = trio.Event()
        self._writing = trio.Lock()
        self._has_left = False
        self._unreadable: frozenset[tuple[str, int]] = frozenset()  # registers that were told of, with their versions

    async def keep(self) -> None:
        """Write this replica's register and read the others', until cancelled."""
        while True:
            try:
                async with self._writing:
                    if self._has_left:
                        return
                    await self._beat()
            except StoreError as error:
                log.debug("heartbeat_failed", why=str(error))  # that the store is away is told elsewhere
            with trio.move_on_after(BEAT_S):
                await self._look.wait()
            self._look = trio.Event()

    def look_now(self) -> None:
        """There may be somebody new."""
        self._look.set()

    async def leave(self) -> None:
        """Delete this replica's register, for good: it takes no more part. A checkpoint."""
        try:
            async with self._writing:
                self._has_left = True
                await self._store.delete(PREFIX + self._me.id, version=self._version)
        except StoreError as error:
            log.debug("heartbeat_failed", why=str(error))  # it will be taken for dead

    async def _beat(self) -> None:
        name = PREFIX + self._me.id
        now_us = await self._store.now()
        value = self._me._replace(beat_us=now_us).write()
        version = await self._store.compare_and_set(name, value, version=self._version)
        if version is None:  # whoever took it for dead has deleted it, or an answer was lost
            register = await self._store.load(name)
            self._version = register.version if register is not None else 0
            version = await self._store.compare_and_set(name, value, version=self._version)
        self._version = version or 0
        others = {}
        unreadable = set()
        for listed, register in await self._store.list(PREFIX):
            try:
                other = Member.read(listed.removeprefix(PREFIX), register.value)
            except ValueError as error:
                unreadable.add((listed, register.version))
                if (listed, register.version) not in self._unreadable:
                    log.warning("replica_unreadable", why=str(error))
                continue
            if other.id == self._me.id:
                continue
            age_us = abs(now_us - other.beat_us)  # one from the future will not go on for ever
            if age_us < DEAD_S * 1_000_000:
                others[other.id] = other._replace(beat_us=0)
            elif age_us > FORGOTTEN_S * 1_000_000:
                await self._store.delete(listed, version=register.version)
        self._unreadable = frozenset(unreadable)
        if others != self.others:
            self._tell(others)

    def _tell(self, others: Mapping[str, Member]) -> None:
        for id_ in others.keys() - self.others.keys():
            log.info("replica_joined", replica=id_, address=others[id_].address, version=others[id_].version)
        for id_ in self.others.keys() - others.keys():
            log.info("replica_left", replica=id_, address=self.others[id_].address)
        self.others = others
        self._changed()
