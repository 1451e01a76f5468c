"""The HTTP endpoint of a broker process: HTTP/1.1 by h11 on trio.

Owns:      the listener; connections, how many and for how long; requests and replies as bytes.
Not here:  what is answered (metrics/pages.py).
Threads:   the trio thread only. A scrape is rendered there too: it takes about 5 ms, ten times a second at most.
"""

from collections.abc import Awaitable, Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

import h11
import structlog
import trio
from prometheus_client import CollectorRegistry

from metrics.pages import Pages, Readiness, Reply, Request, text

log = structlog.get_logger()

CONNECTIONS_MAX: Final = 64
"""Open at once; one more closes the oldest, so that idle clients cannot shut out a probe."""
HEAD_MAX_BYTES: Final = 16 * 1024
"""Request line and headers together; more is refused."""
REQUEST_TIMEOUT_S: Final = 75.0
"""Until the next request is there, whole: longer than the usual pause between scrapes, so they share a connection."""
REPLY_TIMEOUT_S: Final = 10.0
"""Until the client has taken a reply."""
LINGER_S: Final = 2.0
"""Until a client that was told that the connection closes closes it, too."""


async def serve_http(
    host: str,
    port: int,
    registry: CollectorRegistry,
    readiness: Callable[[], Readiness],
    gather: Callable[[], Awaitable[None]] | None = None,
    *,
    task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve /metrics, /healthz and /readyz on one address until cancelled.

    ``gather`` is awaited before each rendering of the metrics: what takes time to learn is learnt then.

    ``started`` yields the address that was bound, with the port that was found where ``port`` is 0. A name of several
    addresses is served on each; the first is told.

    Raises:
        OSError: the address cannot be listened on; ``strerror`` names it and says why.
    """
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)  # SO_REUSEADDR; never SO_REUSEPORT
    except OSError as error:
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise OSError(error.errno, f"cannot serve metrics on {address}: {error.strerror}") from error
    bound: tuple[str, int] = listeners[0].socket.getsockname()[:2]
    task_status.started(bound)
    await trio.serve_listeners(Endpoint(Pages(registry, readiness, gather)).serve, listeners)


class Endpoint:
    """The open connections."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._open: dict[trio.CancelScope, None] = {}  # oldest first

    async def serve(self, stream: trio.abc.HalfCloseableStream) -> None:
        """Serve one client to its end; the caller closes the stream. Raises nothing: that would end the others too."""
        if len(self._open) >= CONNECTIONS_MAX:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.cancel()
        with trio.CancelScope() as scope:
            self._open[scope] = None
            try:
                await self._converse(Connection(stream))
            except (trio.BrokenResourceError, trio.TooSlowError):
                pass  # gone, or too slow: there is nobody to tell
            except Exception:
                log.exception("http_connection_failed")
            finally:
                self._open.pop(scope, None)

    async def _converse(self, connection: "Connection") -> None:
        while (request := await connection.receive()) is not None:
            reply = request if isinstance(request, Reply) else await self._answer(request)
            await connection.send(reply)
            if not connection.next_cycle():
                await connection.linger()
                return

    async def _answer(self, request: Request) -> Reply:
        try:
            return await self._pages.answer(request)
        except Exception:
            log.exception("http_request_failed", target=request.target)
            return text(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; the log says more")


class Connection:
    """One client's requests and replies, in turn."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self._stream = stream
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX_BYTES)
        self._head_only = False

    async def receive(self) -> Request | Reply | None:
        """Wait for a request; return the refusal instead if it is none, None if the client has closed. A checkpoint.

        Raises:
            trio.TooSlowError: no whole request within `REQUEST_TIMEOUT_S`.
            trio.BrokenResourceError: the connection is lost.
        """
        await trio.lowlevel.checkpoint()  # a pipelined request is here already
        self._head_only = False
        try:
            with trio.fail_after(REQUEST_TIMEOUT_S):
                while (event := self._h11.next_event()) is h11.NEED_DATA:
                    self._h11.receive_data(bytes(await self._stream.receive_some()))
            if not isinstance(event, h11.Request):
                return None
            self._head_only = event.method == b"HEAD"
            has_body = not isinstance(self._h11.next_event(), h11.EndOfMessage)
        except h11.RemoteProtocolError as error:
            status = HTTPStatus(error.error_status_hint)
            return text(status, status.phrase)
        accept = b",".join(value for name, value in event.headers if name == b"accept").decode("ascii", "ignore")
        return Request(event.method.decode("ascii"), event.target.decode("ascii"), accept, has_body)

    async def send(self, reply: Reply) -> None:
        """Send a reply, without its body if the request was HEAD. A checkpoint.

        Raises:
            trio.TooSlowError: the client did not take it within `REPLY_TIMEOUT_S`.
            trio.BrokenResourceError: the connection is lost.
        """
        headers = [
            ("Date", formatdate(usegmt=True)),
            ("Content-Type", reply.content_type),
            ("Content-Length", str(len(reply.body))),
        ]
        if reply.allow is not None:
            headers.append(("Allow", reply.allow))
        if self._h11.their_state in (h11.SEND_BODY, h11.ERROR):
            headers.append(("Connection", "close"))  # a body or garbage follows, which nobody will read
        status = reply.status
        data = self._h11.send(h11.Response(status_code=status, reason=status.phrase.encode(), headers=headers))
        if not self._head_only:
            data += self._h11.send(h11.Data(data=reply.body))
        data += self._h11.send(h11.EndOfMessage())
        with trio.fail_after(REPLY_TIMEOUT_S):
            await self._stream.send_all(data)

    def next_cycle(self) -> bool:
        """Make ready for the next request; False if this connection takes none."""
        if self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE:
            return False
        self._h11.start_next_cycle()
        return True

    async def linger(self) -> None:
        """Say that nothing follows, and wait a little until the client closes. A checkpoint.

        To close with bytes unread resets the connection, and the client may then never see the reply.
        """
        with trio.move_on_after(LINGER_S):
            await self._stream.send_eof()
            while await self._stream.receive_some():
                pass
