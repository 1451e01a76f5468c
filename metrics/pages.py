"""What the HTTP endpoint says: /metrics, /healthz and /readyz.

Owns:      paths, methods, statuses, bodies, the choice of the exposition format.
Not here:  bytes and connections (metrics/http.py); when the broker is ready (the ``readiness`` it is given).
Threads:   the trio thread only; no function here is a checkpoint.
"""

import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

PATHS: Final = ("/metrics", "/healthz", "/readyz")
METHODS: Final = ("GET", "HEAD")
TEXT: Final = "text/plain; charset=utf-8"

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

    def __init__(self, registry: CollectorRegistry, readiness: Callable[[], Readiness]) -> None:
        self._registry = registry
        self._readiness = readiness

    def answer(self, request: Request) -> Reply:
        """Answer a request; HEAD is answered as GET, body and all. Raises what a collector or ``readiness`` raises."""
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
                return self._metrics(request.accept)
            case "/readyz":
                ready, detail, facts = self._readiness()
                return text(HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, detail, *facts)
            case _:
                return text(HTTPStatus.OK, "ok")  # that somebody answers is the news

    def _metrics(self, accept: str) -> Reply:
        encode, content_type = choose_encoder("" if _ODD_VERSION.search(accept) else accept)
        return Reply(HTTPStatus.OK, encode(self._registry), content_type)
