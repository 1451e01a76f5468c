"""Every bound of the RPC layer, once."""

import math
from dataclasses import dataclass

from trio_broker.rpc.frames import WINDOW_INITIAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one peer may ask of us, and all of them together. Sizes are bytes."""

    connections_max: int = 100_000
    """Clients at once. One more takes the place of the oldest that never made a call, or is turned away."""
    connections_per_address: float = math.inf
    """Those of them from one IPv4 address, or one IPv6 network of 64 bits; more are turned away."""
    turned_away_max: int = 100
    """Clients that are being turned away at once, for about a second each; more wait to be accepted."""
    first_call_s: float = 1.0
    """For so long nobody takes that place: what the client sent may not have been read yet."""
    handshake_s: float = 10.0
    """Until a client has sent its preface and SETTINGS, after TLS; then it is closed."""
    keepalive_s: float = 60.0
    """After so long without a word from a client it is asked by a PING whether it is there. inf: never."""
    keepalive_timeout_s: float = 20.0
    """For so long after that nothing is heard of it, not even an answer: then it is closed."""
    frame_s: float = 20.0
    """A frame or a header block of which the end has not come after so long ends its connection."""
    request_s: float = 60.0
    """A request of one message that has not arrived in whole after so long ends with DEADLINE_EXCEEDED."""
    answer_s: float = 60.0
    """An answer of which nothing could leave for so long, for want of a window, is dropped; streams wait longer."""
    unread_s: float = 60.0
    """A client whose socket takes nothing for so long, while something waits for it, is closed."""
    idle_s: float = math.inf
    """After so long without a call a client is asked to connect again when it has one (GOAWAY)."""
    connection_age_s: float = math.inf
    """So long after it came a client is asked to connect again (GOAWAY), give or take a tenth of that."""
    connection_age_grace_s: float = 10.0
    """How long its calls may go on then; those that stream are ended."""
    streams_max: int = 1000
    """Calls open at once on one connection; more are answered REFUSED_STREAM."""
    task_streams_max: int = 100
    """Those among them whose responses stream from a task of their own, which takes some 10 KB; more are refused."""
    task_streams_total: int = 1000
    """The same over all connections."""
    streams_total: float = math.inf
    """Calls open at once over all connections; more are refused, but for health checks."""
    streams_per_address: float = math.inf
    """The same over the connections of one address."""
    message_max_bytes: int = 4 * 1024 * 1024
    """Largest message received; a larger one ends its call before it is buffered."""
    inbound_max_bytes: int = 64 * 1024 * 1024
    """Unfinished messages by their announced size, and messages of unfinished requests, held for one connection."""
    inbound_total_bytes: int = 1024 * 1024 * 1024
    """The same over all connections, with pieces of frames and of header blocks."""
    header_list_max_bytes: int = 16 * 1024
    """Header list of one request, counted as in RFC 9113, section 6.5.2."""
    continuations_max: int = 64
    """CONTINUATION frames of one header block."""
    header_table_bytes: int = 4096
    """HPACK dynamic table."""
    stream_window_bytes: int = 1024 * 1024
    connection_window_bytes: int = 4 * 1024 * 1024
    write_max_bytes: int = 256 * 1024
    """What one write to the socket gathers from the streams."""
    frame_max_bytes: int = 64 * 1024
    """Largest DATA frame we send, where the peer allows it."""
    send_high_bytes: int = 128 * 1024
    """A handler that streams waits while more than this is queued for its call."""
    outbound_max_bytes: int = 64 * 1024 * 1024
    """Replies that wait for the windows of one connection; beyond, calls are refused instead of answered."""
    outbound_total_bytes: int = 1024 * 1024 * 1024
    """The same over all connections, with what waits for their sockets."""
    starved_s: float = 2.0
    """A total that refuses for so long is freed: calls of the connections that hold most of it are ended.

    A connection of which a frame or a header block has not ended for so long is closed then.
    """
    unsent_max_bytes: int = 1024 * 1024
    """Nothing more is read from a peer that leaves this much unread; less, while the total above is half used."""
    ping_burst: int = 100
    """PINGs in a row before the peer is told "too_many_pings", by a GOAWAY that gRPC libraries know."""
    pings_per_s: float = 1.0
    """How many of them are forgiven each second; each answer, and each write of DATA, forgives one as well."""
    control_burst: int = 2000
    """Other control frames, acknowledgements of nothing and resets in a row before the peer is told to calm down."""
    control_per_s: int = 200
    """How many of them are forgiven each second; each answer, and each write of DATA, forgives one as well."""
    rapid_reset_s: float = 0.02
    """A call that the peer resets unanswered counts only if it was this young: a deadline that passed is no attack."""
    remembered_resets_max: int = 500
    """Streams we reset whose late frames are still ignored."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.connection_window_bytes < WINDOW_INITIAL:  # it can only be raised (RFC 9113, section 6.9.2)
            raise ValueError(
                f"connection_window_bytes must be at least {WINDOW_INITIAL}, not {self.connection_window_bytes}"
            )

    @property
    def per_address(self) -> bool:
        """Something is bounded for each address."""
        return min(self.connections_per_address, self.streams_per_address) < math.inf
