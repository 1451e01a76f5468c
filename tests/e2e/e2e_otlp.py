"""A receiver of traces, as OpenTelemetry's collector is one: OTLP over HTTP, on a real socket.

Owns:      the endpoint, and the spans that came, in words.
Threads:   one for the server and one per request; whoever waits for spans is woken by them.
"""

import gzip
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple, Self

from e2e_broker import SAFETY_S
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status


class Span(NamedTuple):
    """A span that was received."""

    name: str
    kind: str
    """Such as ``SERVER``."""
    trace_id: str
    id: str
    parent_id: str
    """Empty: it is a root."""
    links: list[str]
    """The ids of the spans that it is linked to."""
    attributes: dict[str, object]
    failed: bool
    start_ns: int
    end_ns: int


class Receiver:
    """Receives traces for the length of the ``with`` block."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resource: dict[str, object] = {}
        """Who sent them."""
        self.refusing = False
        """What comes meanwhile is refused."""
        self.refused = 0
        """How often that was."""
        self._received = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                if receiver.refusing:
                    receiver.refused += 1
                    self.send_error(403)  # one that is not tried again
                    return
                assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
                receiver._take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.end_headers()
                self.wfile.write(ExportTraceServiceResponse().SerializeToString())

            def log_message(self, *_arguments: object) -> None:
                """Tell nobody."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="otlp-receiver")
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def wait_for(self, enough: Callable[[Sequence[Span]], bool]) -> list[Span]:
        """Wait until the spans that came are enough; return them."""
        with self._received:
            assert self._received.wait_for(lambda: enough(self.spans), SAFETY_S), self.spans
            return list(self.spans)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _take(self, request: ExportTraceServiceRequest) -> None:
        with self._received:
            for resource_spans in request.resource_spans:
                self.resource = _values(resource_spans.resource.attributes)
                for scope_spans in resource_spans.scope_spans:
                    self.spans += [_in_words(span) for span in scope_spans.spans]
            self._received.notify_all()


def _in_words(span: ProtoSpan) -> Span:
    return Span(
        span.name,
        ProtoSpan.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        [link.span_id.hex() for link in span.links],
        _values(span.attributes),
        span.status.code == Status.STATUS_CODE_ERROR,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
    )


def _values(attributes: Sequence[KeyValue]) -> dict[str, object]:
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in attributes}
