"""A broker's pages over HTTP, for commands: one request, and what is said when there is no answer.

Owns:      `get`. It asks the broker itself, whatever proxy the environment names.
Not here:  what is on the pages (metrics/pages.py, docs/METRICS.md).
Threads:   any; it blocks.
"""

from http.client import HTTPConnection, HTTPException
from typing import NamedTuple

from trio_broker.cli.running import UNAVAILABLE, Failure
from trio_broker.notation import TcpAddress

PAGE_MAX_BYTES = 16 * 1024 * 1024
"""More is no page of a broker; the rest is not read."""


class Page(NamedTuple):
    """What was answered."""

    status: int
    text: str
    refusal: str
    """What to say if ``status`` is not what was hoped for."""


def get(where: TcpAddress, path: str, timeout_s: float) -> Page:
    """Ask for a page.

    Raises:
        Failure: nobody answers, or not by HTTP.
    """
    connection = HTTPConnection(where.host, where.port, timeout=timeout_s)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        response = connection.getresponse()
        text = response.read(PAGE_MAX_BYTES).decode(errors="replace")
    except TimeoutError as error:
        raise Failure(f"no answer from {where} within {timeout_s:g} s", UNAVAILABLE) from error
    except (OSError, HTTPException) as error:
        why = getattr(error, "strerror", None) or error or type(error).__name__
        raise Failure(f"cannot ask the broker on {where}: {why}", UNAVAILABLE) from error
    finally:
        connection.close()
    return Page(response.status, text, f"http://{where}{path} answers {response.status} {response.reason}")
