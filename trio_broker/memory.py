"""Keep a broker's process within its memory.

Owns:      `Shares`, how much each kind of buffer may hold; `Guard`, which looks at what is used, and says when it is
           too much; giving memory back to the system.
Not here:  what is refused or cut then (trio_broker/serve.py); the limit and the use themselves (metrics/limits.py).
Threads:   the trio thread.

Two things together: what can be large is counted exactly, where it is held, and bounded by its share; what is left,
such as objects of many small calls, a store in memory and the kernel's buffers, is measured, many times a second.
"""

import ctypes
import gc
import resource
import sys
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple, Self

import structlog
import trio

from metrics.limits import memory_limit_bytes, memory_used_bytes, resident_bytes
from trio_broker.config import MESSAGE_OVERHEAD_BYTES, Config
from trio_broker.notation import write_size

LOOK_INTERVAL_S = 0.05
LOOK_CLOSELY_S = 0.01
"""The same above the low mark."""
OTHERS_LOOKS = 20
"""Looks between two at what others use of the same limit, which costs more to ask."""
LASTS_S = 1.0
"""Pressure that lasts is relieved each time that so long has passed."""
CALM_S = 5.0
"""Use that has stayed below the high mark for so long is no pressure any more: it may never sink to the low mark."""
SETTLED_S = 10.0
"""Use that has not changed for so long under pressure is what the process keeps: Python gives memory back in large
pieces only, and uses the rest of each again."""
SETTLED_IDLE_S = 3.0
"""The same while what is counted is no more than `HELD_LITTLE` of the room."""
SHORT_S = 10.0
"""A process that has accepted nobody for so long is not ready."""

# The marks, as shares of the room: of what the limit leaves besides what the process used when it began, or keeps.
LOW, HIGH, FULL = 0.5, 0.7, 0.85
LOW_SETTLED, HIGH_SETTLED, FULL_SETTLED = 0.2, 0.5, 0.75
SETTLED_MAX = 0.95
"""More of the room than this is taken for what the process just keeps only while it holds little that is counted."""
SETTLED_ROOM = 0.1
"""What is left above what it keeps, at least, as a share of the room: to serve beyond the limit is a risk, to refuse
everybody for ever is none the less an outage."""
HELD_LITTLE = 0.1
"""The share of the room that what is counted may take in a process that does next to nothing."""
BUFFERS = 0.6
"""What the buffers share: parsing and committing their messages takes some more for a moment."""
CONNECTIONS = 0.4
"""What idle connections may take."""
SUBSCRIBERS = 0.2
"""What idle subscriptions may take: with as many connections as may be, they alone stay below the high mark."""
STREAMS = 0.4
"""What open calls may take, subscriptions among them; those that wait for the store are bounded apart."""
CONNECTION_BYTES = 16 * 1024
TLS_CONNECTION_BYTES = 48 * 1024
"""What an idle one takes."""
CALL_BYTES = 4 * 1024
"""What a call takes besides its messages, such as a subscription for which nothing waits."""

OTHER_DESCRIPTORS = 128
"""What a process needs besides those of its clients, generously: the store's connections, files, HTTP."""

MMAP_BYTES = 1024 * 1024
"""A larger block is given back to the system when it is freed; by default glibc soon keeps blocks of up to 32 MiB."""
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_ARENAS = 2
"""Threads share so many heaps of glibc's: each keeps what it once had."""

log = structlog.get_logger()


class Pressure(IntEnum):
    """How short memory is."""

    NONE = 0
    HIGH = 1
    """Nothing more is taken in: publishes and subscriptions are refused."""
    FULL = 2
    """Fetches and connections neither."""


class Shares(NamedTuple):
    """What each kind of buffer may hold, over all clients. Bytes."""

    queue: int
    """Publishes that wait for the store."""
    inbound: int
    """Requests that have not arrived in whole."""
    backlog: int
    """Messages that wait for subscribers, once for all of a subject's, and their wire bytes."""
    fetches: int
    """Messages on their way from the store."""
    replies: int
    """Messages that were fetched and wait for their clients."""
    cache: int
    """Messages that were delivered last, and their wire bytes; those that wait for subscribers too count only here."""

    @classmethod
    def of(cls, room_bytes: int, message_max_bytes: int) -> Self:
        """Share a room; each kind gets at least what its largest message needs, but for the cache."""
        ninth = int(room_bytes * BUFFERS) // 9
        one = message_max_bytes
        return cls(
            queue=max(2 * ninth, one),
            inbound=max(2 * ninth, 2 * one),  # no connection gets more than half
            backlog=max(2 * ninth, 2 * one),  # a message and its wire bytes
            fetches=max(ninth, one),
            replies=max(ninth, 2 * one),
            cache=ninth,  # it can do without any
        )

    def fit(self, config: Config) -> Config:
        """Return the settings with what they say of the queue and the cache made to fit."""
        return config.model_copy(
            update={
                "queue_bytes": min(config.queue_bytes, self.queue),
                "cache_bytes": min(config.cache_bytes, self.cache),
            }
        )


def descriptors_max() -> int:
    """Return how many descriptors this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


class Guard:
    """Looks at the memory that is used, and says how short it is.

    Args:
        limit_bytes: what may be used.
        used: returns what is.
        changed: told of each change of `pressure`.
        relieve: called each `LASTS_S` while pressure lasts: lets something go that can be.
        held: returns about how much of it is known to be in use.
    """

    def __init__(
        self,
        limit_bytes: int,
        used: Callable[[], int],
        changed: Callable[[Pressure], None],
        relieve: Callable[[], None],
        held: Callable[[], int],
    ) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = used()
        """When it looked last."""
        self.pressure = Pressure.NONE
        self.room_bytes = max(0, limit_bytes - self.used_bytes)
        """What was left when the process began."""
        self._base = self.used_bytes
        self._set_marks(self._base, LOW, HIGH, FULL)
        self._settled = False
        self._steady_bytes = 0
        self._steady_since = 0.0
        self._used = used
        self._changed = changed
        self._relieve = relieve
        self._held = held
        self._relieved_at = 0.0
        self._full_since: float | None = None
        self._high_at = 0.0

    def connections_max(self, config: Config) -> int:
        """Return how many clients may connect: no more than fit into memory and the process's descriptors."""
        each = TLS_CONNECTION_BYTES if config.tls_cert else CONNECTION_BYTES
        fit = max(1, min(int(CONNECTIONS * self.room_bytes) // each, descriptors_max() - OTHER_DESCRIPTORS))
        return min(fit, config.connections_max or fit)

    def subscribers_max(self, config: Config) -> int:
        """Return how many subscriptions there may be: no more than fit into memory."""
        fit = max(1, int(SUBSCRIBERS * self.room_bytes) // CALL_BYTES)
        return min(fit, config.subscribers_max or fit)

    def streams_max(self, config: Config) -> int:
        """Return how many calls may be open: no more than fit into memory."""
        fit = max(1, int(STREAMS * self.room_bytes) // CALL_BYTES)
        return min(fit, config.streams_max or fit)

    def shares(self, config: Config) -> Shares:
        """Return what the buffers may hold; warn if even the least that they need does not fit."""
        shares = Shares.of(self.room_bytes, config.body_max_bytes + MESSAGE_OVERHEAD_BYTES)
        if sum(shares) > HIGH * self.room_bytes:
            log.warning(
                "memory_small",
                memory_max=write_size(self.limit_bytes),
                used_before_start=write_size(self.limit_bytes - self.room_bytes),
                buffers=write_size(sum(shares)),
                advice=f"give it more, or lower --body-max-bytes {write_size(config.body_max_bytes)}",
            )
        return shares

    def short_s(self) -> float:
        """Return for how many seconds nobody has been accepted; 0 as long as that may be over soon."""
        full_s = 0.0 if self._full_since is None else trio.current_time() - self._full_since
        return full_s if full_s >= SHORT_S else 0.0

    async def run(self) -> None:
        """Look, again and again, until cancelled."""
        while True:
            self.look()
            await trio.sleep(LOOK_INTERVAL_S if self.used_bytes < self._low else LOOK_CLOSELY_S)

    def look(self) -> None:
        """Look now. Not a checkpoint; while memory is not short it costs some microseconds."""
        used = self.used_bytes = self._used()
        if used < self._high and not self.pressure:
            if self._settled and used < self._base + LOW * self.room_bytes:
                self._settled = False
                self._set_marks(self._base, LOW, HIGH, FULL)
            return
        now = trio.current_time()
        if now >= self._relieved_at + LASTS_S:
            self._relieved_at = now
            if self.pressure and used >= self._high:
                self._relieve()
            give_back(collect=not self.pressure)
            used = self.used_bytes = self._used()
        if used >= self._high:
            self._high_at = now
            self._settle(used, now)
        self._enter(self._level(used, now))

    def _settle(self, used: int, now: float) -> None:
        """Under pressure that nothing relieves, begin again from what is used: what it comes from may be long gone."""
        if not self.pressure or abs(used - self._steady_bytes) > self.room_bytes // 100:
            self._steady_bytes, self._steady_since = used, now
            return
        steady_s = now - self._steady_since
        if (steady_s >= SETTLED_S and used < self._base + SETTLED_MAX * self.room_bytes) or (
            steady_s >= SETTLED_IDLE_S and self._held() <= HELD_LITTLE * self.room_bytes
        ):
            self._settled = True
            self._set_marks(used, LOW_SETTLED, HIGH_SETTLED, FULL_SETTLED)

    def _set_marks(self, base: int, low: float, high: float, full: float) -> None:
        room = max(SETTLED_ROOM * self.room_bytes, self.limit_bytes - base)
        self._low, self._high, self._full = (int(base + mark * room) for mark in (low, high, full))

    def _level(self, used: int, now: float) -> Pressure:
        if used >= self._full or (used >= self._high and self.pressure is Pressure.FULL):
            return Pressure.FULL
        if used >= self._high:
            return Pressure.HIGH
        if self.pressure and used >= self._low and now < self._high_at + CALM_S:
            return Pressure.HIGH
        return Pressure.NONE

    def _enter(self, pressure: Pressure) -> None:
        before, self.pressure = self.pressure, pressure
        if pressure is before:
            return
        self._full_since = trio.current_time() if pressure is Pressure.FULL else None
        if bool(pressure) != bool(before):
            tell, event = (log.warning, "memory_short") if pressure else (log.info, "memory_enough")
            tell(event, used=write_size(self.used_bytes), memory_max=write_size(self.limit_bytes))
        self._changed(pressure)


def guard(
    config: Config, changed: Callable[[Pressure], None], relieve: Callable[[], None], held: Callable[[], int]
) -> Guard:
    """Return the guard of this process: by ``--memory-max``, or else what its container or the machine has."""
    if config.memory_max:
        return Guard(config.memory_max, Use(None), changed, relieve, held)
    return Guard(memory_limit_bytes(), Use(memory_used_bytes), changed, relieve, held)


class Use:
    """What counts against the limit: this process's resident memory, and what others beside it use of the same."""

    def __init__(self, used_by_all: Callable[[], int] | None) -> None:
        """Take what asks for the use of all who share the limit; None: nobody does."""
        self._used_by_all = used_by_all
        self._others = 0
        self._looks = 0

    def __call__(self) -> int:
        """Return it, in bytes."""
        own = resident_bytes()
        if self._used_by_all is not None:
            if self._looks % OTHERS_LOOKS == 0:
                self._others = max(0, self._used_by_all() - own)
            self._looks += 1
        return own + self._others


def use_few_heaps() -> None:
    """Make glibc give back what was freed; elsewhere the allocator is left as it is. Call it before threads start."""
    if (mallopt := _libc("mallopt")) is not None:
        mallopt(_M_MMAP_THRESHOLD, MMAP_BYTES)
        mallopt(_M_ARENA_MAX, _ARENAS)


def give_back(*, collect: bool) -> None:
    """Give what is free back to the system, after looking for garbage if ``collect``. Takes some milliseconds."""
    if collect:
        gc.collect()
    if (malloc_trim := _libc("malloc_trim")) is not None:
        malloc_trim(0)


def _libc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None)
