"""Settings: how values are written, what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trio_broker.config import Config, open_to_strangers
from trio_broker.notation import (
    TcpAddress,
    UnixAddress,
    is_loopback,
    parse_listen,
    seconds,
    size,
    write_seconds,
    write_size,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("250ms", 0.25),
        ("5s", 5),
        ("1.5s", 1.5),
        ("10m", 600),
        ("1h", 3600),
        ("7d", 604800),
        ("3", 3),
        (0.5, 0.5),
        (2, 2),
    ],
)
def test_a_duration_is_read(text: object, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 year", "1e3", "nan", True, None, "5S"])
def test_what_is_no_duration_is_refused_with_the_forms(text: object) -> None:
    with pytest.raises(ValueError, match="write 250ms, 5s"):
        seconds(text)


@pytest.mark.parametrize(
    ("text", "value"), [("4MiB", 4 << 20), ("64 KiB", 64 << 10), ("10MB", 10**7), ("5", 5), (7, 7)]
)
def test_a_size_is_read(text: object, value: int) -> None:
    assert size(text) == value


@pytest.mark.parametrize("text", ["", "4kb", "4 mib", "kiB", "1.5MiB", "-1", True, 1.5])
def test_what_is_no_size_is_refused_with_the_forms(text: object) -> None:
    with pytest.raises(ValueError, match="write 64KiB"):
        size(text)


@given(st.integers(0, 10**9))
def test_written_sizes_and_durations_read_back(value: int) -> None:
    assert size(write_size(value)) == value
    assert seconds(write_seconds(value / 1000)) == pytest.approx(value / 1000, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:50051", TcpAddress("127.0.0.1", 50051)),
        ("[::1]:0", TcpAddress("::1", 0)),
        ("broker.example:65535", TcpAddress("broker.example", 65535)),
        ("unix:/run/b.sock", UnixAddress("/run/b.sock")),
        ("unix:///run/b.sock", UnixAddress("/run/b.sock")),
    ],
)
def test_an_address_is_read(text: str, address: TcpAddress | UnixAddress) -> None:
    assert parse_listen(text) == address
    assert parse_listen(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", "50051", ":50051", "localhost", "::1:50051", "[::1]", "[1.2.3.4]:1", "http://h:1", "[::1:1", "h/:1"),
        *("h:65536", "h:-1", "h:1x", "h h:1", "h:٣", "unix:", "unix:relative", "unix:/", "unix:/" + "x" * 120),
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"write 127|valid port|absolute path|too long"):
        parse_listen(text)


@pytest.mark.parametrize(
    ("listen", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/run/b.sock", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("broker.local:1", False),
    ],
)
def test_only_loopback_may_be_anonymous_unasked(listen: str, loopback: bool) -> None:
    assert is_loopback(parse_listen(listen)) == loopback
    assert open_to_strangers(Config(listen=listen, allow_anonymous=True)) == (not loopback)


def test_an_exposed_listener_is_refused_and_the_refusal_names_the_flag() -> None:
    with pytest.raises(ValidationError, match="--allow-anonymous"):
        Config(listen="0.0.0.0:50051")
    assert Config(listen="0.0.0.0:50051", allow_anonymous=True).allow_anonymous


def test_the_metrics_listener_is_apart_and_tcp() -> None:
    assert Config(metrics_listen="0.0.0.0:9464").listen == "127.0.0.1:50051"
    with pytest.raises(ValidationError, match="only HOST:PORT will do"):
        Config(metrics_listen="unix:/run/m.sock")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("grace", -1),
        ("grace", float("nan")),
        ("grace", "9" * 400),
        ("grace", True),
        ("commit_timeout", 0),
        ("queue_messages", 0),
        ("queue_messages", True),
        ("body_max_bytes", 0),
        ("log_level", "loud"),
        ("listen", 50051),
        ("metrics_subjects", 7),
        ("no_such_setting", 1),
    ],
)
def test_a_wrong_value_is_refused_and_named(name: str, value: object) -> None:
    with pytest.raises(ValidationError) as refused:
        Config.model_validate({name: value})
    assert [error["loc"] for error in refused.value.errors()] == [(name,)]


@pytest.mark.parametrize("store", ["memory:", "sqlite:///x.db"])
def test_workers_need_a_store_that_processes_share_and_the_refusal_says_what_to_do(store: str) -> None:
    with pytest.raises(ValidationError, match=r"--workers 2 needs .* --store (sqlite|memory): .* use postgresql://"):
        Config(store=store, workers=2)
    assert Config(store=store).workers == 1
    assert Config(store="postgresql://db/x", workers=2).workers == 2


@pytest.mark.parametrize("store", ["sqlite:///broker.db", "memory:"])
def test_a_store_of_one_broker_is_refused_where_others_are_told_of_it(store: str) -> None:
    with pytest.raises(ValidationError, match=r"--advertise .* --store (sqlite|memory): .* use postgresql://"):
        Config(store=store, advertise="10.1.2.3:50052")
    assert Config(store="postgresql://db/x", advertise="10.1.2.3:50052").advertise == "10.1.2.3:50052"


@pytest.mark.parametrize("store", ["sqlite:///broker.db", "memory:"])
def test_a_store_of_one_broker_is_refused_where_it_is_told_of_others(store: str) -> None:
    with pytest.raises(ValidationError, match=r"--peers .* --store (sqlite|memory): .* use postgresql://"):
        Config.model_validate({"store": store, "peers": "10.1.2.3:50052"})
    assert Config(store=store).peers == ()


@pytest.mark.parametrize("setting", ["advertise", "peers"])
@pytest.mark.parametrize("address", ["10.1.2.3:0", "0.0.0.0:50052", "[::]:50052", "unix:/run/peers.sock"])
def test_where_nobody_can_be_reached_is_refused(setting: str, address: str) -> None:
    with pytest.raises(ValidationError, match=r"port 0|where others can connect|only HOST:PORT"):
        Config.model_validate({"store": "postgresql://db/x", setting: address})


@pytest.mark.parametrize(("flag", "setting"), [("--peer-listen", "peer_listen"), ("--advertise", "advertise")])
def test_each_worker_needs_a_port_for_others(flag: str, setting: str) -> None:
    values = {"store": "postgresql://db/x", setting: "127.0.0.1:65534"}
    assert Config.model_validate(values | {"workers": 2}).workers == 2
    with pytest.raises(ValidationError, match=f"{flag} 127.0.0.1:65534: there are no ports .* --workers 3"):
        Config.model_validate(values | {"workers": 3})


def test_a_queue_without_room_for_the_largest_message_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValidationError, match=r"--queue-bytes 4095KiB .* --body-max-bytes 4032KiB .* at least 4MiB"):
        Config(queue_bytes="4095KiB")
    assert Config(queue_bytes="4MiB").queue_bytes == 4 << 20
    assert Config(queue_bytes="65KiB", body_max_bytes="1KiB").body_max_bytes == 1024


@pytest.mark.parametrize("given", ["orders.eu  stock", ["orders.eu", "stock", "orders.eu"]])
def test_subjects_with_metrics_are_words_or_a_list(given: object) -> None:
    assert Config(metrics_subjects=given).metrics_subjects == ("orders.eu", "stock")


def test_subjects_with_metrics_are_subjects_and_few() -> None:
    with pytest.raises(ValidationError, match=r"subject 'a\.\.b': empty token at character 3"):
        Config(metrics_subjects="orders a..b")
    most = [f"orders.{number}" for number in range(100)]
    assert Config(metrics_subjects=most).metrics_subjects == tuple(most)
    with pytest.raises(ValidationError, match="101 subjects; at most 100 can have metrics of their own"):
        Config(metrics_subjects=[*most, "orders.one"])


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().grace = 1.0  # type: ignore[misc]


def test_the_defaults_are_those_of_the_design() -> None:
    config = Config()
    assert (config.listen, config.store, config.metrics_listen) == (
        "127.0.0.1:50051",
        "sqlite:///trio-broker.db",
        "127.0.0.1:9464",
    )
    assert (config.drain_delay, config.grace, config.commit_timeout, config.store_grace) == (0, 10, 10, 5)
    assert (config.queue_messages, config.queue_bytes) == (50_000, 64 << 20)
    assert (config.flush_messages, config.flush_bytes) == (1024, 4 << 20)
    assert (config.subscriber_messages, config.subscriber_bytes) == (1024, 4 << 20)
    assert config.streams_per_connection == 1000
    assert config.compression == "none"
