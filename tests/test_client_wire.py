"""The client's half of the protocol, without sockets, against h2's server half."""

import base64
from contextlib import suppress

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_broker._proto.google.protobuf.any_pb2 import Any
from trio_broker._proto.google.protobuf.duration_pb2 import Duration
from trio_broker._proto.google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from trio_broker._proto.google.rpc.status_pb2 import Status
from trio_broker.client.exchange import MESSAGE_MAX_BYTES, Exchange, Trailers, frame, write_timeout
from trio_broker.client.statuses import error_of
from trio_broker.client.wire import Wire
from trio_broker.errors import (
    BrokerError,
    ConnectionLost,
    ExpiredId,
    OutcomeUnknown,
    Overloaded,
    SlowConsumer,
    StorageUnavailable,
)

OK = [(":status", "200"), ("content-type", "application/grpc")]
GOOD_END = [("grpc-status", "0")]


class Server:
    """A server that does what the test says."""

    def __init__(self, **settings: int) -> None:
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.h2.local_settings = h2.settings.Settings(
            client=False, initial_values={h2.settings.SettingCodes[name]: value for name, value in settings.items()}
        )
        self.h2.initiate_connection()
        self.wire = Wire("broker.example:50051")
        self.events: list[h2.events.Event] = []
        self.exchange()

    def exchange(self) -> list[Exchange]:
        """Carry bytes both ways until there are none."""
        changed = []
        while True:
            up, down = self.wire.outgoing(), self.h2.data_to_send()
            if not up and not down:
                return changed
            self.events += self.h2.receive_data(up)
            changed += self.wire.receive(down)

    def call(self, message: bytes = b"request", timeout_s: float | None = None) -> Exchange:
        exchange = self.wire.request("/broker.Broker/Publish", timeout_s)
        data = frame(message)
        while data:
            sent = self.wire.send(exchange, data)
            data = data[sent:]
            self.exchange()
            if not sent:
                break
        return exchange

    def headers(self) -> dict[str, str]:
        return dict(next(e.headers for e in self.events if isinstance(e, h2.events.RequestReceived)))

    def body(self) -> bytes:
        return b"".join(e.data for e in self.events if isinstance(e, h2.events.DataReceived))

    def reset_codes(self) -> list[int]:
        return [e.error_code for e in self.events if isinstance(e, h2.events.StreamReset)]

    def answer(self, exchange: Exchange, *messages: bytes, end: list[tuple[str, str]] | None = None) -> None:
        self.h2.send_headers(exchange.stream_id, OK)
        for message in messages:
            self.h2.send_data(exchange.stream_id, bytes(frame(message)))
        if end is not None:
            self.h2.send_headers(exchange.stream_id, end, end_stream=True)
        self.exchange()


def test_a_call_is_a_grpc_request() -> None:
    server = Server()
    server.call(b"hello", timeout_s=2.5)
    assert server.headers() == {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/broker.Broker/Publish",
        ":authority": "broker.example:50051",
        "te": "trailers",
        "content-type": "application/grpc",
        "user-agent": server.headers()["user-agent"],
        "grpc-timeout": "2500000u",
    }
    assert server.body() == b"\0\0\0\0\5hello"
    assert any(isinstance(event, h2.events.StreamEnded) for event in server.events)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, b"1u"), (0.25, b"250000u"), (99.9, b"99900000u"), (100, b"100000m"), (1e5, b"100000S"), (1e12, b"99999999S")],
)
def test_a_timeout_has_at_most_eight_digits(seconds: float, text: bytes) -> None:
    assert write_timeout(seconds) == text


def test_messages_and_the_good_end_are_received() -> None:
    server = Server()
    call = server.call()
    server.answer(call, b"one", b"", end=GOOD_END)
    assert call.started
    assert server.wire.take(call) == [b"one", b""]
    assert call.end == Trailers(0, "", "")


@given(st.lists(st.binary(max_size=40), max_size=6), st.data())
def test_messages_come_out_whole_however_they_are_cut(messages: list[bytes], data: st.DataObject) -> None:
    server = Server()
    call = server.call()
    server.h2.send_headers(call.stream_id, OK)
    rest = b"".join(bytes(frame(message)) for message in messages)
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        server.h2.send_data(call.stream_id, rest[:size])
        rest = rest[size:]
    server.h2.send_headers(call.stream_id, GOOD_END, end_stream=True)
    stream, received = server.h2.data_to_send(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        server.wire.receive(stream[:size])
        received += server.wire.take(call)
        stream = stream[size:]
    assert received == messages
    assert call.end == Trailers(0, "", "")


def test_an_error_without_response_headers_is_received() -> None:
    server = Server()
    call = server.call()
    server.h2.send_headers(
        call.stream_id,
        [*OK, ("grpc-status", "3"), ("grpc-message", "id 5 %E2%80%A6 100%25"), ("grpc-status-details-bin", "CAM=")],
        end_stream=True,
    )
    server.exchange()
    assert not call.started
    assert call.end == Trailers(3, "id 5 … 100%", "CAM=")


def test_a_request_waits_for_the_servers_window() -> None:
    server = Server()
    call = server.wire.request("/broker.Broker/Publish", None)
    data = frame(b"x" * 100_000)
    data = data[server.wire.send(call, data) :]
    server.exchange()
    assert len(data) == 100_005 - 65_535
    assert server.wire.send(call, data) == 0
    server.h2.acknowledge_received_data(65_535, call.stream_id)
    server.exchange()
    assert server.wire.send(call, data) == len(data)
    server.exchange()
    assert server.body() == bytes(frame(b"x" * 100_000))


def test_a_reader_that_does_not_take_stops_the_server_at_the_window() -> None:
    server = Server()
    call = server.call()
    server.h2.send_headers(call.stream_id, OK)
    sent = 0
    while (window := server.h2.local_flow_control_window(call.stream_id)) >= 1005:
        server.h2.send_data(call.stream_id, bytes(frame(b"x" * 1000)))
        sent += 1
        server.exchange()
        assert sent < 2000
    assert window < 1005
    assert len(server.wire.take(call)) == sent
    server.exchange()
    assert server.h2.local_flow_control_window(call.stream_id) > 500_000


def test_a_message_larger_than_the_window_gets_in() -> None:
    server = Server()
    call = server.call()
    server.h2.send_headers(call.stream_id, OK)
    rest = memoryview(bytes(frame(b"x" * 3_000_000)))
    while rest:
        size = min(len(rest), 16_384, server.h2.local_flow_control_window(call.stream_id))
        assert size > 0
        server.h2.send_data(call.stream_id, bytes(rest[:size]))
        rest = rest[size:]
        server.exchange()
    assert server.wire.take(call) == [b"x" * 3_000_000]


def test_leaving_a_call_resets_it_and_gives_the_shared_window_back() -> None:
    server = Server()
    call = server.call()
    server.h2.send_headers(call.stream_id, OK)
    server.h2.send_data(call.stream_id, b"\0\0\0\0\1x" * 1000)
    server.wire.receive(server.h2.data_to_send())
    server.h2.send_data(call.stream_id, b"\0\0\0\0\1x" * 1000)  # on its way when the call is left
    server.wire.leave(call)
    window = server.h2.outbound_flow_control_window
    server.exchange()
    assert server.reset_codes() == [h2.errors.ErrorCodes.CANCEL]
    assert isinstance(call.end, ConnectionLost)
    assert server.h2.outbound_flow_control_window >= window
    again = server.call()
    server.answer(again, b"fine", end=GOOD_END)
    assert server.wire.take(again) == [b"fine"]


def test_leaving_a_finished_call_says_nothing() -> None:
    server = Server()
    call = server.call()
    server.answer(call, b"done", end=GOOD_END)
    server.wire.leave(call)
    assert server.wire.outgoing() == b""


def test_an_answer_before_the_whole_request_ends_the_call_and_the_rest_is_not_sent() -> None:
    server = Server()
    call = server.wire.request("/broker.Broker/Publish", None)
    server.wire.send(call, frame(b"x" * 100_000))
    server.exchange()
    server.h2.send_headers(call.stream_id, [*OK, ("grpc-status", "8")], end_stream=True)
    server.exchange()
    assert call.end == Trailers(8, "", "")
    server.wire.leave(call)
    server.exchange()
    assert server.reset_codes() == [h2.errors.ErrorCodes.CANCEL]


@pytest.mark.parametrize(
    ("code", "retryable"),
    [(h2.errors.ErrorCodes.REFUSED_STREAM, True), (h2.errors.ErrorCodes.INTERNAL_ERROR, False), (0xBEEF, False)],
)
def test_a_reset_ends_the_call_and_only_a_refused_one_was_surely_not_begun(code: int, retryable: bool) -> None:
    server = Server()
    call = server.call()
    server.h2.reset_stream(call.stream_id, code)
    server.exchange()
    assert isinstance(call.end, ConnectionLost)
    assert call.end.retryable == retryable


def test_going_away_lets_calls_in_flight_finish_and_fails_those_not_begun() -> None:
    server = Server()
    begun, late = server.call(), server.call()
    server.h2.close_connection(last_stream_id=begun.stream_id)
    goaway = server.h2.data_to_send()
    server.h2.state_machine.state = h2.connection.ConnectionState.SERVER_OPEN  # h2 would not speak any more
    assert server.wire.receive(goaway) == [late]
    assert isinstance(late.end, ConnectionLost)
    assert late.end.retryable
    server.answer(begun, b"acknowledged", end=GOOD_END)
    assert server.wire.take(begun) == [b"acknowledged"]
    with pytest.raises(ConnectionLost, match="connect again") as refused:
        server.wire.request("/broker.Broker/Fetch", None)
    assert refused.value.retryable


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ([(":status", "503"), ("content-type", "text/html")], "HTTP 503"),
        ([(":status", "200"), ("content-type", "text/html")], "not a gRPC server"),
    ],
)
@pytest.mark.parametrize("ended", [True, False])
def test_what_is_not_grpc_fails_that_call_only(headers: list[tuple[str, str]], why: str, ended: bool) -> None:
    server = Server()
    call, neighbour = server.call(), server.call()
    server.h2.send_headers(call.stream_id, headers, end_stream=ended)
    server.exchange()
    assert isinstance(call.end, ConnectionLost)
    assert why in str(call.end)
    server.answer(neighbour, b"fine", end=GOOD_END)
    assert server.wire.take(neighbour) == [b"fine"]


@pytest.mark.parametrize(
    ("prefix", "why"), [(b"\1\0\0\0\1x", "compressed"), (b"\0" + (MESSAGE_MAX_BYTES + 1).to_bytes(4), "at most")]
)
def test_a_message_that_cannot_be_read_fails_that_call_only(prefix: bytes, why: str) -> None:
    server = Server()
    call, neighbour = server.call(), server.call()
    server.h2.send_headers(call.stream_id, OK)
    server.h2.send_data(call.stream_id, prefix)
    server.h2.send_headers(call.stream_id, GOOD_END, end_stream=True)
    server.exchange()
    assert isinstance(call.end, ConnectionLost)
    assert why in str(call.end)
    server.answer(neighbour, b"fine", end=GOOD_END)
    assert server.wire.take(neighbour) == [b"fine"]


@pytest.mark.parametrize(
    "trailers",
    [None, [("grpc-message", "no status")], [("grpc-status", "-1")], [("grpc-status", "1" * 5000)]],
)
def test_a_call_that_ends_without_a_status_is_lost(trailers: list[tuple[str, str]] | None) -> None:
    server = Server()
    call = server.call()
    server.answer(call, b"x", end=trailers)
    if trailers is None:
        server.h2.end_stream(call.stream_id)
        server.exchange()
    assert isinstance(call.end, ConnectionLost)
    assert "without a status" in str(call.end)


def test_losing_the_connection_ends_every_call() -> None:
    server = Server()
    calls = [server.call(), server.call()]
    assert server.wire.lose("cable cut") == calls
    assert all(isinstance(call.end, ConnectionLost) and not call.end.retryable for call in calls)
    assert calls[0].end is not calls[1].end
    with pytest.raises(ConnectionLost, match="cable cut") as refused:
        server.wire.request("/broker.Broker/Fetch", None)
    assert refused.value.retryable


def test_the_servers_limit_of_open_calls_is_known() -> None:
    assert Server(MAX_CONCURRENT_STREAMS=7).wire.calls_max == 7


def test_pings_are_answered() -> None:
    server = Server()
    server.h2.ping(b"12345678")
    server.exchange()
    assert any(isinstance(event, h2.events.PingAckReceived) for event in server.events)


def test_padding_is_no_data_and_is_given_back() -> None:
    server = Server()
    call = server.call()
    server.h2.send_headers(call.stream_id, OK)
    for _ in range(5000):  # 1.3 MB of padding: more than the window
        server.h2.send_data(call.stream_id, b"", pad_length=255)
        server.exchange()
    server.h2.send_data(call.stream_id, bytes(frame(b"x")), pad_length=7)
    server.exchange()
    assert server.wire.take(call) == [b"x"]


def test_trailers_larger_than_a_frame_are_put_together() -> None:
    server = Server()
    call = server.call()
    server.answer(call, end=[*GOOD_END, ("grpc-status-details-bin", "A" * 40_000)])
    assert call.end == Trailers(0, "", "A" * 40_000)


def test_too_many_headers_fail_that_call_only() -> None:
    server = Server()
    call, neighbour = server.call(), server.call()
    server.answer(call, end=[*GOOD_END, ("x", "A" * 70_000)])
    assert isinstance(call.end, ConnectionLost)
    server.answer(neighbour, b"fine", end=GOOD_END)
    assert server.wire.take(neighbour) == [b"fine"]


def test_informational_headers_are_passed_over() -> None:
    server = Server()
    call = server.call()
    server.h2.send_headers(call.stream_id, [(":status", "103")])
    server.exchange()
    assert not call.started
    server.answer(call, b"x", end=GOOD_END)
    assert server.wire.take(call) == [b"x"]


def test_settings_change_the_windows_of_open_calls_also_below_zero() -> None:
    server = Server(INITIAL_WINDOW_SIZE=40_000)
    call = server.wire.request("/broker.Broker/Publish", None)
    data = frame(b"x" * 50_000)
    assert server.wire.send(call, data) == 40_000
    server.exchange()
    server.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 10_000})
    server.exchange()
    assert server.wire.send(call, data[40_000:]) == 0
    server.h2.increment_flow_control_window(50_000, call.stream_id)
    server.exchange()
    assert server.wire.send(call, data[40_000:]) == len(data) - 40_000
    server.exchange()
    assert server.body() == bytes(data)


def header(size: int, kind: int, flags: int = 0, stream_id: int = 0) -> bytes:
    return size.to_bytes(3) + bytes([kind, flags]) + stream_id.to_bytes(4)


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(header(16_385, 0), id="frame too large"),
        pytest.param(header(1, 0, 0, 3) + b"x", id="data on an idle stream"),
        pytest.param(header(1, 0, 0, 2) + b"x", id="data on a stream of the server"),
        pytest.param(header(1, 0) + b"x", id="data on the connection"),
        pytest.param(header(1, 9, 0, 1) + b"x", id="continuation of nothing"),
        pytest.param(header(1, 1, 0, 1) + b"\x88" + header(0, 6), id="a frame inside a header block"),
        pytest.param(header(1, 1, 0, 1) + b"\x88" + header(1, 9, 4, 3) + b"x", id="continuation of another"),
        pytest.param(
            (header(16_000, 1, 0, 1) + bytes(16_000)) + (header(16_000, 9, 0, 1) + bytes(16_000)) * 9, id="bomb"
        ),
        pytest.param(header(1, 1, 4, 1) + b"\xff", id="hpack"),
        pytest.param(header(1, 0, 8, 1) + b"\5", id="padding longer than its frame"),
        pytest.param(header(3, 3, 0, 1) + b"xxx", id="reset cut short"),
        pytest.param(header(4, 8) + bytes(4), id="window update by 0"),
        pytest.param(header(4, 8) + b"\x7f\xff\xff\xff", id="window over the maximum"),
        pytest.param(header(5, 4) + bytes(5), id="settings cut short"),
        pytest.param(header(6, 4) + b"\0\5" + bytes(4), id="frame size 0"),
        pytest.param(header(6, 4) + b"\0\4" + b"\xff" * 4, id="initial window too large"),
        pytest.param(header(4, 7) + bytes(4), id="goaway cut short"),
        pytest.param(header(5, 5, 4, 1) + b"\0\0\0\2\x88", id="a push"),
    ],
)
def test_a_server_that_breaks_http2_ends_the_connection(broken: bytes) -> None:
    server = Server()
    server.call()
    with pytest.raises(ConnectionLost, match="HTTP/2"):
        server.wire.receive(broken)


def test_more_data_than_the_window_ends_the_connection() -> None:
    server = Server()
    call = server.call()
    server.answer(call)
    with pytest.raises(ConnectionLost, match="window"):
        for _ in range(70):
            server.wire.receive(header(16_384, 0, 0, call.stream_id) + bytes(frame(bytes(16_379))))


def test_frames_of_other_specifications_are_passed_over() -> None:
    server = Server()
    assert server.wire.receive(header(3, 0xEE) + b"abc") == []


@given(st.binary(max_size=200), st.booleans())
def test_garbage_is_refused_and_nothing_else_happens(garbage: bytes, greeted: bool) -> None:
    server = Server()
    server.call()
    wire = server.wire if greeted else Wire("x:1")
    with suppress(ConnectionLost):
        wire.receive(garbage)


def details(*messages: ErrorInfo | RetryInfo) -> str:
    status = Status(code=14, details=[])
    for message in messages:
        any_ = Any(type_url=f"type.googleapis.com/{message.DESCRIPTOR.full_name}", value=message.SerializeToString())
        status.details.append(any_)
    return base64.b64encode(status.SerializeToString()).decode().rstrip("=")


def test_an_error_is_rebuilt_from_its_reason() -> None:
    info = ErrorInfo(reason="SLOW_CONSUMER", domain="trio-broker", metadata={"last_delivered_id": "41"})
    error = error_of(Trailers(8, "too slow", details(info)))
    assert type(error) is SlowConsumer
    assert str(error) == "too slow"
    assert error.metadata == {"last_delivered_id": "41"}
    assert not error.retryable


def test_when_to_try_again_is_what_the_broker_says() -> None:
    retry = RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000))
    error = error_of(Trailers(14, "", details(ErrorInfo(reason="STORAGE_UNAVAILABLE"), retry)))
    assert type(error) is StorageUnavailable
    assert error.retry_after_s == 2.5
    assert str(error) == "STORAGE_UNAVAILABLE"
    silent = error_of(Trailers(8, "full", details(ErrorInfo(reason="OVERLOADED"))))
    assert type(silent) is Overloaded
    assert silent.retry_after_s == Overloaded.retry_after_s


def test_a_reason_of_a_newer_broker_is_kept() -> None:
    error = error_of(Trailers(9, "new", details(ErrorInfo(reason="OF_TOMORROW"))))
    assert (type(error), error.reason, str(error)) == (BrokerError, "OF_TOMORROW", "new")


@pytest.mark.parametrize(
    ("status", "expected", "reason"),
    [
        (14, ConnectionLost, "CONNECTION_LOST"),
        (4, OutcomeUnknown, "OUTCOME_UNKNOWN"),
        (12, BrokerError, "UNIMPLEMENTED"),
        (99, BrokerError, "STATUS_99"),
    ],
)
def test_a_status_without_a_reason_tells_no_outcome(status: int, expected: type[BrokerError], reason: str) -> None:
    error = error_of(Trailers(status, "from a proxy", ""))
    assert (type(error), error.reason, error.retryable) == (expected, reason, False)


@pytest.mark.parametrize("text", ["!", "AAA", "/w", "A" * 400, "\ufffd"])
def test_details_that_cannot_be_read_do_not_hide_the_status(text: str) -> None:
    assert type(error_of(Trailers(14, "away", text))) is ConnectionLost


def test_every_reason_leads_back_to_its_class() -> None:
    error = error_of(Trailers(3, "gone", details(ErrorInfo(reason="EXPIRED_ID"))))
    assert type(error) is ExpiredId
    assert isinstance(error, ValueError)
