"""Logging of a broker process: one event a line with its values, and what is said when it is ready.

Owns:      structlog's and logging's set-up, what must not reach a log, the start banner.
Not here:  what is logged (each module: INFO is life-cycle; never bodies, never a DSN).
Threads:   any, once set up.
"""

import logging
import platform
import re
import sys
from typing import TYPE_CHECKING, Literal, NamedTuple, TextIO

import structlog
import trio
from structlog.typing import EventDict, Processor, WrappedLogger

from trio_broker._version import __version__
from trio_broker.config import Config, open_to_strangers
from trio_broker.line_budget import LineBudget
from trio_broker.notation import write_seconds, write_size

if TYPE_CHECKING:
    from persistence import Durability

_OURS = ("trio_broker", "persistence", "metrics")

_LIMITS = {
    *("queue_messages", "queue_bytes", "flush_messages", "flush_bytes", "subscriber_messages", "subscriber_bytes"),
    *("cache_bytes", "streams_per_connection", "body_max_bytes"),
}

_PASSWORD_IN_AUTHORITY = re.compile(r"(\b[a-zA-Z][\w+.-]*://[^\s:/@]*):\S*@")
_PASSWORD_IN_QUERY = re.compile(r"([?&](?:ssl)?password=)[^&\s\"]*", re.IGNORECASE)

_KEYS_AND_VALUES = re.compile(r"\w+(?: \w+=%[-#0-9.]*[a-z])+")
_KEY = re.compile(r" (\w+)=%")

_SHARED = "others on this store hear of what this one appends, and this one of theirs"

log = structlog.get_logger(__name__)


def configure_logging(
    log_format: Literal["auto", "console", "json"],
    level: Literal["debug", "info", "warning", "error"],
    stream: TextIO | None = None,
    worker: int | None = None,
) -> LineBudget:
    """Send everything that is logged to ``stream`` (stderr), whether by structlog or by logging.

    Return what bounds it: the caller renews it every minute.

    ``level`` is for this project's loggers. Libraries speak from WARNING up: what they log below may hold what
    clients sent. ``worker``: the number of this process among several, which every line is to have.
    """
    stream = stream or sys.stderr
    before: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if worker is not None:
        before.append(_of_worker(worker))
    structlog.configure(
        processors=[*before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    formatter = _RedactingFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(log_format, stream)],
        foreign_pre_chain=[*before, _with_values],
        pass_foreign_args=True,
    )
    budget = LineBudget()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    handler.addFilter(budget)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in _OURS:
        logging.getLogger(name).setLevel(level.upper())
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # it warns every second while a database is away
    return budget


def _of_worker(number: int) -> Processor:
    def add(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
        return {**event, "worker": number}

    return add


def _with_values(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:  # noqa: ARG001
    """Take a line that was logged as ``event key=%s key=%d`` apart: its values are keys of their own, like structlog's.

    Rooms that do not know structlog log so.
    """
    template = str(event["_record"].msg)
    values = event.pop("positional_args", None)
    if isinstance(values, tuple) and _KEYS_AND_VALUES.fullmatch(template):
        event["event"] = template.partition(" ")[0]
        for key, value in zip(_KEY.findall(template), values, strict=True):
            event[key] = value if isinstance(value, int | float) else str(value)
    return event


def _for_people(log_format: Literal["auto", "console", "json"], stream: TextIO) -> bool:
    return stream.isatty() if log_format == "auto" else log_format == "console"


def _renderers(log_format: Literal["auto", "console", "json"], stream: TextIO) -> list[Processor]:
    if _for_people(log_format, stream):
        plain = structlog.dev.plain_traceback  # the default shows local variables, and those hold bodies
        return [structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=plain)]
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [
        structlog.processors.ExceptionRenderer(tracebacks),
        structlog.processors.JSONRenderer(),
    ]


class _RedactingFormatter(structlog.stdlib.ProcessorFormatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact_url(super().format(record))


def redact_url(text: str) -> str:
    """Return ``text`` with the password of every URL in it replaced by ``***``."""
    if "://" not in text:
        return text
    return _PASSWORD_IN_QUERY.sub(r"\1***", _PASSWORD_IN_AUTHORITY.sub(r"\1:***@", text))


class Started(NamedTuple):
    """What has started, where, and how durable it is."""

    config: Config
    durability: "Durability"
    shared: bool
    """Other brokers may use the store too."""
    grpc: str
    """The address that was bound."""
    metrics: str
    """As well."""
    memory_max_bytes: int
    """What the process may use."""
    connections_max: int
    """How many clients may connect."""
    subscribers_max: int
    """How many subscriptions there may be."""
    ready_after_s: float

    def announce(self) -> None:
        """Log it: lines for people, or one event ``ready`` for programs; before, warn of what may not be meant.

        Programs read the keys ``grpc`` and ``metrics`` of that event: they stay.
        """
        if not self.durability.durable:
            log.warning(
                "not_durable",
                store=redact_url(self.config.store),
                setting=self.durability.setting,
                meaning=self.durability.meaning,
            )
        if open_to_strangers(self.config):
            log.warning("strangers_may_call", grpc=self.grpc)
        if _for_people(self.config.log_format, sys.stderr):
            for line in self.banner():
                log.info(line)
        else:
            log.info("ready", **self.facts())

    def banner(self) -> list[str]:
        """Return the lines for people: what, where, how durable, within which limits."""
        config, durability = self.config, self.durability
        tls = "TLS" if config.tls_cert else "no TLS"
        strangers = "anybody may call" + (" from other machines" if open_to_strangers(config) else "")
        callers = "clients need a certificate" if config.tls_client_ca else strangers
        clients = f"{self.connections_max} connections, {self.subscribers_max} subscriptions"
        queue = f"{config.queue_messages} messages or {write_size(config.queue_bytes)} wait"
        flush = f"{config.flush_messages} or {write_size(config.flush_bytes)} a flush"
        subscriber = f"{config.subscriber_messages} messages or {write_size(config.subscriber_bytes)} each"
        return [
            f"trio-broker {__version__}, Python {platform.python_version()}, trio {trio.__version__}",
            *(
                [f"workers     {config.workers} processes; queue, buffers and cache are of each"]
                if config.workers > 1
                else []
            ),
            f"store       {redact_url(config.store)}, {durability.kind}",
            f"durability  {durability.meaning} ({durability.setting})",
            *([f"brokers     {_SHARED}"] if self.shared else []),
            f"grpc        {self.grpc}, {tls}, {callers}",
            f"metrics     http://{self.metrics}/metrics, /healthz, /readyz",
            f"publishes   {queue}, {flush}, each within {write_seconds(config.commit_timeout)}",
            f"subscribers {subscriber}, {config.streams_per_connection} calls a connection",
            f"cache       {write_size(config.cache_bytes)} of recent messages",
            f"bodies      {write_size(config.body_max_bytes)} at most",
            f"memory      {write_size(self.memory_max_bytes >> 20 << 20)} at most, {clients}",
            f"stopping    after {write_seconds(config.drain_delay)}, within {write_seconds(config.grace)}",
            f"ready in {self.ready_after_s * 1000:.0f} ms",
        ]

    def facts(self) -> dict[str, object]:
        """Return the same for programs."""
        config, durability = self.config, self.durability
        return {
            "version": __version__,
            "python": platform.python_version(),
            "trio": trio.__version__,
            "grpc": self.grpc,
            "metrics": self.metrics,
            "store": redact_url(config.store),
            "store_kind": durability.kind,
            "durability": durability.setting,
            "durable": durability.durable,
            "store_shared": self.shared,
            "workers": config.workers,
            "tls": bool(config.tls_cert),
            "client_certificates": bool(config.tls_client_ca),
            "open_to_strangers": open_to_strangers(config),
            "commit_timeout_s": config.commit_timeout,
            "drain_delay_s": config.drain_delay,
            "grace_s": config.grace,
            **config.model_dump(include=_LIMITS),
            "memory_max_bytes": self.memory_max_bytes,
            "connections_max": self.connections_max,
            "subscribers_max": self.subscribers_max,
            "ready_after_s": round(self.ready_after_s, 3),
        }
