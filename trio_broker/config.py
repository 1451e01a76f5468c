"""Every setting of the broker, once: name, default, meaning, check.

Owns:      `Config`. Each field is a flag (``--metrics-listen``), a variable (``TRIO_BROKER_METRICS_LISTEN``) and a
           key of the TOML file (``metrics_listen``); trio_broker/cli/settings.py reads them.
Not here:  where values come from; what they are used for.

Times are seconds, also ``250ms``, ``5s``, ``10m``, ``1h``; sizes are bytes, also ``64KiB``, ``4MiB``.
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from trio_broker.notation import (
    PORT_MAX,
    is_loopback,
    parse_listen,
    parse_reachable,
    parse_tcp,
    seconds,
    size,
    write_size,
)
from trio_broker.subject import check_subject


def _number(value: object) -> object:
    if isinstance(value, bool):  # to pydantic True is 1; in a file it is a mistake
        raise ValueError(f"must be a whole number, not {value}")  # noqa: TRY004  pydantic reports ValueErrors
    return value


Duration = Annotated[float, BeforeValidator(seconds), Field(ge=0, allow_inf_nan=False)]
PositiveDuration = Annotated[float, BeforeValidator(seconds), Field(gt=0, allow_inf_nan=False)]
Size = Annotated[int, BeforeValidator(size), Field(gt=0)]
Count = Annotated[int, BeforeValidator(_number), Field(gt=0)]
CountOrAll = Annotated[int, BeforeValidator(_number), Field(ge=0)]

_OF_ONE_PROCESS = ("sqlite", "memory")
"""Stores that a second broker is refused."""

WORKERS_MAX = 64
"""Each is a process of 65 MiB or more, and has connections of its own to the database."""
METRICS_SUBJECTS_MAX = 100
"""Each adds series that a Prometheus server keeps for as long as it keeps anything."""


def _words(value: object) -> object:
    return tuple(value.split()) if isinstance(value, str) else value  # no subject has white space


def _subjects(subjects: tuple[str, ...]) -> tuple[str, ...]:
    subjects = tuple(dict.fromkeys(subjects))
    if len(subjects) > METRICS_SUBJECTS_MAX:
        raise ValueError(f"{len(subjects)} subjects; at most {METRICS_SUBJECTS_MAX} can have metrics of their own")
    for subject in subjects:
        check_subject(subject)
    return subjects


Subjects = Annotated[tuple[str, ...], BeforeValidator(_words), AfterValidator(_subjects)]


def _peers(peers: tuple[str, ...]) -> tuple[str, ...]:
    for peer in peers:
        parse_reachable(peer)
    return tuple(dict.fromkeys(peers))


Peers = Annotated[tuple[str, ...], BeforeValidator(_words), AfterValidator(_peers)]

BODY_MAX_BYTES = 4 * 1024 * 1024 - 64 * 1024
"""So that every encoded response fits gRPC clients' default limit of 4 MiB on what they receive."""

MESSAGE_OVERHEAD_BYTES = 64 * 1024
"""What a message may have besides its body: subject, headers, framing."""


class Config(BaseModel):
    """The settings of one broker process. Immutable; checked when made."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    listen: str = Field("127.0.0.1:50051", description="gRPC address: HOST:PORT, [V6]:PORT or unix:/path")
    store: str = Field(
        "sqlite:///trio-broker.db",
        description="where messages are kept: sqlite:///path, postgresql://.., cassandra://.., memory:",
    )
    store_listen: str = Field("", description="PostgreSQL: where to LISTEN, if --store goes through a pooler")
    peer_listen: str = Field(
        "127.0.0.1:0", description="where other brokers on the same database connect: HOST:PORT; port 0: any free one"
    )
    advertise: str = Field(
        "", description="HOST:PORT where other brokers reach that; without it, what can be found out"
    )
    peers: Peers = Field(
        (), description="HOST:PORT of the other brokers, separated by spaces, instead of asking the store"
    )
    metrics_listen: str = Field("127.0.0.1:9464", description="address of /metrics, /healthz and /readyz")
    metrics_subjects: Subjects = Field(
        (),
        description=f"at most {METRICS_SUBJECTS_MAX} subjects with metrics of their own, separated by spaces",
    )
    allow_anonymous: bool = Field(default=False, description="let anybody call, also on an address beyond loopback")
    tls_cert: str = Field("", description="PEM file: the certificate of the gRPC listener and its chain; serve TLS")
    tls_key: str = Field("", description="PEM file: the key of the certificate")
    tls_client_ca: str = Field("", description="PEM file: only clients with a certificate of this authority may call")
    no_migrate: bool = Field(
        default=False, description="wait for the store's schema at start instead of creating or upgrading it"
    )
    no_admin: bool = Field(default=False, description="do not serve broker.Admin: nobody can list or purge subjects")
    log_format: Literal["auto", "console", "json"] = Field("auto", description="auto: console on a terminal, else JSON")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="the least that is logged")
    compression: Literal["none", "gzip"] = Field(
        "none", description="compress replies of 1 KiB and more for clients that accept it: saves network, costs CPU"
    )
    slow_call: PositiveDuration = Field(
        1, description="log unary calls, such as Publish and Fetch, that take at least so long"
    )
    traces: bool = Field(default=False, description="send traces by OpenTelemetry, as the OTEL_* variables say")

    drain_delay: Duration = Field(0, description="from not ready to GOAWAY: time for load balancers to look away")
    grace: Duration = Field(10, description="how long calls in flight may go on when the broker stops")
    connection_max_age: Duration = Field(
        0, description="after so long, about, a client is asked to connect again, perhaps elsewhere; 0: never"
    )
    connection_max_age_grace: PositiveDuration = Field(
        10, description="how long calls may go on then; streams end with DRAINING, to go on where they were"
    )
    connection_max_idle: Duration = Field(
        0, description="after so long without a call a client is asked to connect again when it has one; 0: never"
    )
    keepalive_time: Duration = Field(
        60, description="after so long without a word from a client it is asked, by a PING, if it is there; 0: never"
    )
    keepalive_timeout: PositiveDuration = Field(20, description="a client that says nothing for so long then is closed")
    commit_timeout: PositiveDuration = Field(10, description="how long one flush to the store may take")
    store_grace: Duration = Field(5, description="how long the store may be away before the broker is not ready")
    poll_interval: PositiveDuration = Field(
        0.5, description="how often to ask a shared store what other brokers appended, while nothing better tells"
    )
    sweep_interval: PositiveDuration = Field(1, description="pause between sweeps of what has expired")

    workers: Annotated[Count, Field(le=WORKERS_MAX)] = Field(
        1, description=f"processes, at most {WORKERS_MAX}, that serve the gRPC address together; see docs/SCALING.md"
    )
    memory_max: Annotated[int, BeforeValidator(size), Field(ge=0)] = Field(
        0, description="memory that all workers together may use; 0: what the container or the machine has"
    )
    queue_messages: Count = Field(50_000, description="publishes that may wait for the store; more are refused")
    queue_bytes: Size = Field(
        64 * 1024 * 1024,
        description="bytes of publishes that may wait, at least --body-max-bytes and 64KiB; more are refused",
    )
    flush_messages: Count = Field(1024, description="messages that go to the store at once")
    flush_bytes: Size = Field(4 * 1024 * 1024, description="bytes that go to the store at once")
    subscriber_messages: Count = Field(1024, description="messages that may wait for one subscriber")
    subscriber_bytes: Size = Field(4 * 1024 * 1024, description="bytes that may wait for one subscriber")
    cache_bytes: Annotated[int, BeforeValidator(size), Field(ge=0)] = Field(
        32 * 1024 * 1024, description="bytes of recent messages kept for subscribers that lag or come back; 0: none"
    )
    connections_max: CountOrAll = Field(0, description="clients at once; more are refused; 0: as memory allows")
    connections_per_address: CountOrAll = Field(
        0, description="those of them from one IP address (IPv6: one /64), at each worker; 0: any number"
    )
    streams_max: CountOrAll = Field(0, description="calls open at once; more are refused; 0: as memory allows")
    streams_per_address: CountOrAll = Field(
        0, description="those of them from one IP address (IPv6: one /64), at each worker; 0: any number"
    )
    subscribers_max: CountOrAll = Field(0, description="subscriptions at once; more are refused; 0: as memory allows")
    streams_per_connection: Count = Field(1000, description="calls that may be open on one connection")
    body_max_bytes: Size = Field(BODY_MAX_BYTES, description="largest body that is accepted")

    @field_validator("listen")
    @classmethod
    def _is_address(cls, text: str) -> str:
        parse_listen(text)
        return text

    @field_validator("metrics_listen", "peer_listen")
    @classmethod
    def _is_tcp(cls, text: str) -> str:
        parse_tcp(text)
        return text

    @field_validator("advertise")
    @classmethod
    def _is_reachable_or_empty(cls, text: str) -> str:
        if text:
            parse_reachable(text)
        return text

    @model_validator(mode="after")
    def _is_meant(self) -> Self:
        if bool(self.tls_cert) != bool(self.tls_key):
            missing = "--tls-key" if self.tls_cert else "--tls-cert"
            raise ValueError(f"TLS needs a certificate and its key: {missing} is missing")
        if self.tls_client_ca and not self.tls_cert:
            raise ValueError(
                "--tls-client-ca asks clients for certificates over TLS: it needs --tls-cert and --tls-key"
            )
        if not self.allow_anonymous and open_to_strangers(self):
            raise ValueError(
                f"{self.listen} can be reached from other machines, and nothing authenticates clients: anybody could "
                "publish and read. If that is meant, pass --allow-anonymous (TRIO_BROKER_ALLOW_ANONYMOUS=true); "
                "otherwise listen on 127.0.0.1"
            )
        kind = self.store.partition(":")[0]
        if self.workers > 1 and kind in _OF_ONE_PROCESS:
            raise ValueError(
                f"--workers {self.workers} needs a store that several processes can share, and --store {kind}: is for "
                "one alone: use postgresql:// or cassandra://, or --workers 1"
            )
        for flag, given, what in (
            ("--advertise", self.advertise, "tells other brokers where this one is"),
            ("--peers", self.peers, "names the other brokers"),
        ):
            if given and kind in _OF_ONE_PROCESS:
                raise ValueError(
                    f"{flag} {what}, and --store {kind}: has no others: use postgresql:// or cassandra://, or leave "
                    f"{flag} out"
                )
        for flag, text in ("--peer-listen", self.peer_listen), ("--advertise", self.advertise):
            if text and parse_tcp(text).port + self.workers - 1 > PORT_MAX:
                raise ValueError(f"{flag} {text}: there are no ports from there on for --workers {self.workers}")
        largest = self.body_max_bytes + MESSAGE_OVERHEAD_BYTES
        if self.queue_bytes < largest:  # such a message would be told for ever that the queue is full: try again
            raise ValueError(
                f"--queue-bytes {write_size(self.queue_bytes)} has no room for a message of --body-max-bytes "
                f"{write_size(self.body_max_bytes)} with its headers: make --queue-bytes at least "
                f"{write_size(largest)}, or --body-max-bytes smaller"
            )
        return self


def open_to_strangers(config: Config) -> bool:
    """Say whether clients on other machines can call and nothing authenticates them."""
    return not config.tls_client_ca and not is_loopback(parse_listen(config.listen))
