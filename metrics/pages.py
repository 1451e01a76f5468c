"""What the HTTP endpoint says: /metrics, /healthz and /readyz.

Owns:      paths, methods, statuses, bodies, the choice of the exposition format.
Not here:  bytes and connections (metrics/http.py); when the broker is ready (the ``readiness`` it is given).
Threads:   the trio thread only.
"""

import math
import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final, NamedTuple

import trio
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

PATHS: Final = ("/metrics", "/healthz", "/readyz")
METHODS: Final = ("GET", "HEAD")
TEXT: Final = "text/plain; charset=utf-8"

RENDER_INTERVAL_S: Final = 0.1
"""Between two renderings of the metrics, each of which stops the broker for some milliseconds."""
_FORMATS_MAX: Final = 8
"""Formats whose last rendering is kept. There are more only if a client makes versions up."""

# prometheus_client compares versions without checking them: a word in place of a number is a TypeError there
_ODD_VERSION: Final = re.compile(r"version=(?!\d{1,9}(\.\d{1,9})*\s*([,;]|$))")


class Readiness(NamedTuple):
    """Whether calls can be served now."""

    ready: bool
    detail: str
    """One short line for an operator: why not, or what is ready."""
    facts: tuple[str, ...] = ()
    """More lines, such as which store it is."""


class Request(NamedTuple):
    """One HTTP request, as far as the pages care."""

    method: str
    target: str
    accept: str = ""
    """Its Accept headers, joined by commas."""
    has_body: bool = False


class Reply(NamedTuple):
    """One HTTP response, before it is bytes."""

    status: HTTPStatus
    body: bytes
    content_type: str = TEXT
    allow: str | None = None
    """The methods that would have been taken, with METHOD_NOT_ALLOWED only."""


def text(status: HTTPStatus, *lines: str, allow: str | None = None) -> Reply:
    """Return a reply for people."""
    return Reply(status, "".join(f"{line}\n" for line in lines).encode(), allow=allow)


class Pages:
    """The pages of one broker process."""

    def __init__(
        self,
        registry: CollectorRegistry,
        readiness: Callable[[], Readiness],
        gather: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """``gather``: awaited before each rendering of the registry."""
        self._exposition = _Exposition(registry, gather)
        self._readiness = readiness

    async def answer(self, request: Request) -> Reply:
        """Answer a request; HEAD is answered as GET, body and all. A checkpoint.

        Raises what a collector or ``readiness`` raises.
        """
        await trio.lowlevel.checkpoint()
        path = request.target.partition("?")[0]
        if path not in PATHS:
            return text(HTTPStatus.NOT_FOUND, f"nothing here; there are {', '.join(PATHS)}")
        if request.method not in METHODS:
            allow = ", ".join(METHODS)
            return text(HTTPStatus.METHOD_NOT_ALLOWED, f"only {allow}", allow=allow)
        if request.has_body:
            return text(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "send no body")
        match path:
            case "/metrics":
                return await self._exposition.reply(request.accept)
            case "/readyz":
                ready, detail, facts = self._readiness()
                return text(HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, detail, *facts)
            case _:
                return text(HTTPStatus.OK, "ok")  # that somebody answers is the news


class _Exposition:
    """/metrics. However many ask, it is rendered once per `RENDER_INTERVAL_S`, for all that have asked till then."""

    def __init__(self, registry: CollectorRegistry, gather: Callable[[], Awaitable[None]] | None) -> None:
        self._registry = registry
        self._gather = gather
        self._turn = trio.Lock()
        self._rendered_s = -math.inf
        self._last: dict[str, tuple[float, Reply]] = {}
        """By content type, with when it was rendered."""

    async def reply(self, accept: str) -> Reply:
        """Return the page as it is after this was called. A checkpoint."""
        encode, content_type = choose_encoder("" if _ODD_VERSION.search(accept) else accept)
        asked_s = trio.current_time()
        async with self._turn:
            last = self._last.get(content_type)
            if last is not None and last[0] > asked_s:
                return last[1]
            await trio.sleep_until(self._rendered_s + RENDER_INTERVAL_S)
            self._rendered_s = trio.current_time()
            if self._gather is not None:
                await self._gather()
            reply = Reply(HTTPStatus.OK, encode(self._registry), content_type)
            if len(self._last) >= _FORMATS_MAX:
                self._last.clear()
            self._last[content_type] = self._rendered_s, reply
            return reply
