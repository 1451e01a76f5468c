"""Traces by OpenTelemetry: where a call's time went, and what became of a message that it published.

Owns:      the spans and their names, the context that goes along with a message, handing spans to the exporter.
Not here:  where spans go and which are recorded: the standard OTEL_* variables say so.
Threads:   the trio thread; the exporter has a thread of its own, which sends what was recorded.

For those who run with ``--traces``: nobody else imports this module, which needs the extra ``otel``. Names are those
of the semantic conventions (https://opentelemetry.io/docs/specs/semconv/) for RPC, databases and messaging.

    broker.Broker/Publish  (server)    child of the client's span
      flush                (internal)  child of one of its publishes, linked to all of them
        append             (client)    the store's part
    deliver                (producer)  child of the publisher's span, linked to the Subscribe call: commit to socket
    broker.Broker/Fetch    (server)
      fetch                (internal)  child of one of its calls, linked to all of them
        get                (client)
"""

import logging
import os
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager

import structlog
import trio
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from persistence.headers import headers_size_bytes
from trio_broker._version import __version__
from trio_broker.batch import Batch
from trio_broker.rpc.call import Call
from trio_broker.rpc.request import TRACEPARENT, Request
from trio_broker.rpc.status import CODE_NAMES
from trio_broker.runs import Pending
from trio_broker.validation import HEADERS_MAX, HEADERS_MAX_BYTES

CLOSE_S = 2.0
"""How long the exporter may take at the end to send what it still has."""

_OTHER = "_OTHER"
"""What the conventions call a method that is unknown."""
_ERRORS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
"""The statuses that make a server's span an error."""
_PATH_MAX = 200

log = structlog.get_logger()

_propagator = TraceContextTextMapPropagator()


@asynccontextmanager
async def open_tracing(store: str) -> AsyncGenerator["Tracing"]:
    """Record spans for the length of the block, and send them as the OTEL_* variables say. ``store``: its URL.

    At the end it waits for the exporter, `CLOSE_S` at most, also when cancelled.

    Raises:
        OSError: a variable asks for a protocol that is not there.
    """
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if (protocol := os.environ.get(variable, "http/protobuf")) != "http/protobuf":
            raise OSError(f"{variable} is {protocol!r}: traces are sent by http/protobuf only")
    ours = Resource({SERVICE_NAME: "trio-broker", SERVICE_VERSION: __version__})
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_Telling(OTLPSpanExporter())))
    try:
        yield Tracing(provider, store.partition(":")[0])
    finally:
        with trio.move_on_after(CLOSE_S, shield=True):
            await trio.to_thread.run_sync(provider.shutdown, abandon_on_cancel=True)


class _Telling(SpanExporter):
    """Sends by another exporter, and says when spans begin to be lost, and when they arrive again.

    The other one's own lines, four for each batch that is lost, are not logged; the first tells why.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._losing = False
        self._words = _FirstWords()
        logger = logging.getLogger("opentelemetry.exporter")
        logger.handlers[:] = [self._words]
        logger.propagate = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._words.text = ""
        result = self._exporter.export(spans)
        losing = result is not SpanExportResult.SUCCESS
        if losing and not self._losing:
            log.warning("traces_lost", why=self._words.text)
        elif self._losing and not losing:
            log.info("traces_sent")
        self._losing = losing
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class _FirstWords(logging.Handler):
    """Keeps the text of the first line since it was emptied."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = self.text or record.getMessage()


class Tracing:
    """What is told of a broker's work, and makes spans of it. Made by `open_tracing`."""

    def __init__(self, provider: TracerProvider, store: str) -> None:
        self._tracer = provider.get_tracer("trio_broker", __version__)
        self._store = store
        self._spans: dict[object, Span] = {}
        """By call, from its `begin` until it is `over`."""

    def begin(self, call: Call) -> None:
        """Begin the span of a call, as of when the call began."""
        request = call.request
        assert isinstance(request, Request)
        attributes: dict[str, AttributeValue] = {"rpc.system.name": "grpc"}
        if call.method is None:
            attributes |= {"rpc.method": _OTHER, "rpc.method_original": request.path[1:_PATH_MAX]}
        else:
            attributes["rpc.method"] = call.method.path[1:]
        self._spans[call] = self._tracer.start_span(
            str(attributes["rpc.method"]),
            context=_context_of_call(request),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=_epoch_ns(call.started),
        )

    def publish(self, call: Call) -> None:
        """Begin the span of a publish; let its context go along with the message, if there is room for it."""
        self.begin(call)
        headers = call.message.headers
        if TRACEPARENT in headers or len(headers) >= HEADERS_MAX:
            return
        assert isinstance(call.request, Request)
        for name, value in call.request.echo:
            if name == TRACEPARENT and headers_size_bytes(headers) + len(name) + len(value) <= HEADERS_MAX_BYTES:
                headers[TRACEPARENT] = value.encode()

    def over(self, call: Call, seconds: float) -> None:
        """End the span of a call. One that never reached its handler has one nevertheless; health checks have none."""
        if call.method is not None and call.method.service.startswith("grpc."):
            return
        if call not in self._spans:
            self.begin(call)
        span = self._spans.pop(call)
        if not span.is_recording():
            return
        code = "CANCELLED" if call.status is None else CODE_NAMES[call.status.int_value]
        span.set_attribute("rpc.response.status_code", code)
        if code in _ERRORS:
            assert call.status is not None
            span.set_attribute("error.type", getattr(call.status, "reason", code))
            span.set_status(Status(StatusCode.ERROR, call.status.status_message))
        span.end(_epoch_ns(call.started + seconds))

    def flush(self, part: Sequence[Pending]) -> AbstractContextManager[None]:
        """Record the flush that the block does."""
        return self._shared("flush", [run.caller for run in part], sum(run.count for run in part))

    def fetch(self, calls: Sequence[Call]) -> AbstractContextManager[None]:
        """Record the lookup that the block does for these calls."""
        return self._shared("fetch", calls, len(calls))

    @contextmanager
    def operation(self, name: str) -> Iterator[None]:
        """Record an operation of the store, if it is part of something that is recorded."""
        if not get_current_span().is_recording():
            yield
            return
        attributes = {"db.system.name": self._store, "db.operation.name": name}
        with self._tracer.start_as_current_span(name, kind=SpanKind.CLIENT, attributes=attributes):
            yield

    def delivered(self, call: Call, batch: Batch) -> None:
        """Record the way of each message of a batch from its commit to one subscriber, if its publish is recorded.

        Not of what was read from the log: its publish may be long over.
        """
        if batch.committed_s is None:
            return
        subscriber = [Link(span.get_span_context()) for span in self._recorded([call])]
        for message in batch.messages:
            publisher = _context_of_message(message.headers)
            if get_current_span(publisher).get_span_context().trace_flags.sampled:
                self._tracer.start_span(
                    "deliver",
                    context=publisher,
                    kind=SpanKind.PRODUCER,
                    links=subscriber,
                    attributes={
                        "messaging.system": "trio_broker",
                        "messaging.operation.name": "deliver",
                        "messaging.operation.type": "send",
                        "messaging.destination.name": message.subject,
                        "messaging.message.id": str(message.id),
                        "messaging.message.body.size": len(message.body),
                    },
                    start_time=_epoch_ns(batch.committed_s),
                ).end()

    @contextmanager
    def _shared(self, name: str, calls: Sequence[object], messages: int) -> Iterator[None]:
        """Record work for several calls at once: as part of the first that is recorded, linked to all."""
        spans = list(self._recorded(calls))
        if not spans:
            yield
            return
        with self._tracer.start_as_current_span(
            name,
            context=set_span_in_context(spans[0], Context()),
            links=[Link(span.get_span_context()) for span in spans],
            attributes={"messaging.batch.message_count": messages},
        ):
            yield

    def _recorded(self, calls: Iterable[object]) -> Iterator[Span]:
        for call in calls:
            span = self._spans.get(call)
            if span is not None and span.is_recording():
                yield span


def _context_of_call(request: Request) -> Context:
    """Return the client's context; an empty one, if it sent none."""
    state = {name: value for name, value in request.metadata if name == "tracestate"}
    return _propagator.extract({**state, **dict(request.echo)}, Context())


def _context_of_message(headers: Mapping[str, bytes]) -> Context:
    """Return the context that goes along with a message; an empty one, if none does."""
    traceparent = headers.get(TRACEPARENT)
    if traceparent is None:
        return Context()
    return _propagator.extract({TRACEPARENT: traceparent.decode("latin-1")}, Context())


def _epoch_ns(at_s: float) -> int:
    """Return a time of `time.perf_counter` as one since 1970."""
    return time.time_ns() - int((time.perf_counter() - at_s) * 1e9)
