"""Logging: one event a line, structured, without secrets; and the start banner."""

import io
import json
import logging
import platform
from datetime import UTC, datetime
from typing import NamedTuple

import pytest
import structlog
import trio

from trio_broker._version import __version__
from trio_broker.config import BODY_MAX_BYTES, Config
from trio_broker.logs import Started, configure_logging, redact_url


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_json_is_one_object_a_line_with_the_event_its_values_and_utc_time(log_stream: io.StringIO) -> None:
    configure_logging("json", "info", log_stream)
    structlog.get_logger("trio_broker.serve").info("ready", grpc="127.0.0.1:1", odd=b"\xff")
    logged = json.loads(log_stream.getvalue())
    at = datetime.fromisoformat(logged.pop("timestamp"))
    assert at.tzinfo == UTC
    assert logged == {
        "event": "ready",
        "grpc": "127.0.0.1:1",
        "level": "info",
        "logger": "trio_broker.serve",
        "odd": repr(b"\xff"),
    }


def test_logging_is_routed_in_and_its_values_are_keys(log_stream: io.StringIO) -> None:
    configure_logging("json", "info", log_stream)
    why = OSError("no = no, 100%s")
    logging.getLogger("persistence.sqlite").info(
        "opened path=%r after_s=%.1f durable=%s why=%s", "a b", 2.25, True, why
    )
    logged = json.loads(log_stream.getvalue())
    assert logged.pop("timestamp")
    assert logged == {
        "event": "opened",
        "level": "info",
        "logger": "persistence.sqlite",
        "path": "a b",
        "after_s": 2.25,
        "durable": True,
        "why": "no = no, 100%s",
    }


@pytest.mark.parametrize(
    ("template", "values", "text"),
    [
        ("plain words", (), "plain words"),
        ("100%% of path=%s", ("x",), "100% of path=x"),
        ("%s path=%s", ("opened", "x"), "opened path=x"),
        ("opened path=%(path)s", ({"path": "x"},), "opened path=x"),
    ],
)
def test_what_libraries_log_is_left_as_it_is(
    log_stream: io.StringIO, template: str, values: tuple[object, ...], text: str
) -> None:
    configure_logging("json", "info", log_stream)
    logging.getLogger("library").warning(template, *values)
    logged = json.loads(log_stream.getvalue())
    assert (logged["event"], logged.keys()) == (text, {"event", "level", "logger", "timestamp"})


def test_the_level_is_ours_and_libraries_speak_from_warning(log_stream: io.StringIO) -> None:
    configure_logging("json", "debug", log_stream)
    structlog.get_logger("trio_broker.x").debug("ours")
    logging.getLogger("hpack.hpack").debug("a header: secret")
    logging.getLogger("hpack.hpack").warning("theirs")
    assert [json.loads(line)["event"] for line in log_stream.getvalue().splitlines()] == ["ours", "theirs"]


def test_what_is_below_the_level_is_not_logged(log_stream: io.StringIO) -> None:
    configure_logging("json", "warning", log_stream)
    structlog.get_logger("trio_broker.x").info("quiet")
    logging.getLogger("metrics.http").info("quiet")
    structlog.get_logger("trio_broker.x").warning("loud")
    assert [json.loads(line)["event"] for line in log_stream.getvalue().splitlines()] == ["loud"]


def fail_with_a_body_at_hand() -> None:
    body = bytes.fromhex("74686520626f6479")  # "the body": not to be seen in the source line either
    raise ValueError(f"bad length {len(body)} from postgresql://me:secret@db/x")


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("by", [structlog.get_logger, logging.getLogger])
def test_tracebacks_show_frames_and_neither_variables_nor_passwords(
    log_stream: io.StringIO, log_format: str, by: object
) -> None:
    configure_logging(log_format, "info", log_stream)
    try:
        fail_with_a_body_at_hand()
    except ValueError:
        by("trio_broker.x").exception("rpc_failed")
    text = log_stream.getvalue()
    assert "fail_with_a_body_at_hand" in text
    assert "the body'" not in text
    assert "secret" not in text
    assert "postgresql://me:***@db/x" in text
    if log_format == "json":
        (exception,) = json.loads(text)["exception"]
        assert exception["exc_type"] == "ValueError"
        assert exception["frames"][-1]["name"] == "fail_with_a_body_at_hand"


def test_auto_is_json_unless_on_a_terminal(log_stream: io.StringIO) -> None:
    configure_logging("auto", "info", log_stream)
    structlog.get_logger("trio_broker.x").info("started", port=1)
    assert json.loads(log_stream.getvalue())["port"] == 1
    terminal = Terminal()
    configure_logging("auto", "info", terminal)
    structlog.get_logger("trio_broker.x").info("started", port=1)
    assert "\x1b[" in terminal.getvalue()


def test_console_has_no_colours_in_a_file(log_stream: io.StringIO) -> None:
    configure_logging("console", "info", log_stream)
    structlog.get_logger("trio_broker.x").info("started", port=1)
    assert "\x1b[" not in log_stream.getvalue()
    assert "started" in log_stream.getvalue()
    assert "port=1" in log_stream.getvalue()


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("postgresql://me:s3cret@db:5432/x", "postgresql://me:***@db:5432/x"),
        ("at postgresql://me:p@ss/w:rd@db/x, then", "at postgresql://me:***@db/x, then"),
        ("postgresql://:pw@db/x", "postgresql://:***@db/x"),
        ("postgresql://db/x?user=me&password=s3cret&a=1", "postgresql://db/x?user=me&password=***&a=1"),
        ('{"store": "cassandra://u:pw@h1:9042,h2/k"}', '{"store": "cassandra://u:***@h1:9042,h2/k"}'),
        ("sqlite:///a.db", "sqlite:///a.db"),
        ("http://127.0.0.1:9464/metrics", "http://127.0.0.1:9464/metrics"),
        ("user:password@host", "user:password@host"),
    ],
)
def test_passwords_in_urls_are_redacted_and_nothing_else(text: str, redacted: str) -> None:
    assert redact_url(text) == redacted


class Durability(NamedTuple):
    kind: str = "SQLite 3.45.1"
    setting: str = "journal_mode=wal synchronous=full"
    durable: bool = True
    meaning: str = "durable"


def started(config: Config, durability: Durability, *, shared: bool = False) -> Started:
    addresses = ("127.0.0.1:50051", "127.0.0.1:9464")
    return Started(
        config,
        durability,
        shared,
        *addresses,
        memory_max_bytes=2**28 + 1,
        connections_max=6400,
        subscribers_max=12800,
        ready_after_s=0.4123,
    )


def test_the_banner_says_what_started_in_few_lines() -> None:
    lines = started(Config(), Durability()).banner()
    text = "\n".join(lines)
    assert len(lines) <= 14
    assert lines[-1] == "ready in 412 ms"
    for part in (
        *("trio-broker 0", "sqlite:///trio-broker.db", "SQLite 3.45.1", "durable (journal_mode=wal synchronous=full)"),
        *("127.0.0.1:50051", "anybody may call", "http://127.0.0.1:9464/metrics", "64MiB", "4032KiB", "within 10s"),
    ):
        assert part in text


def test_the_banner_says_what_brokers_that_share_a_store_may_expect() -> None:
    told = "others on this store hear of what this one appends"
    assert told in "\n".join(started(Config(), Durability(), shared=True).banner())
    assert told not in "\n".join(started(Config(), Durability()).banner())


def test_the_banner_warns_of_what_is_not_durable_and_of_strangers_and_hides_passwords() -> None:
    config = Config(listen="0.0.0.0:1", allow_anonymous=True, store="postgresql://me:secret@db/x")
    text = "\n".join(started(config, Durability("memory", "none", durable=False, meaning="lost")).banner())
    assert "lost (none)" in text
    assert "from other machines" in text
    assert "secret" not in text


def announced(log_stream: io.StringIO, config: Config, durability: Durability) -> list[dict[str, object]]:
    configure_logging("json", "info", log_stream)
    started(config, durability).announce()
    return [json.loads(line) for line in log_stream.getvalue().splitlines()]


def test_programs_get_one_event_with_all_that_the_banner_says(log_stream: io.StringIO) -> None:
    (ready,) = announced(log_stream, Config(log_format="json"), Durability())
    assert ready.pop("timestamp")
    assert {ready.pop(name) for name in ("version", "python", "trio")} == {
        *(__version__, platform.python_version(), trio.__version__)
    }
    assert ready == {
        "event": "ready",
        "level": "info",
        "logger": "trio_broker.logs",
        "grpc": "127.0.0.1:50051",
        "metrics": "127.0.0.1:9464",
        "store": "sqlite:///trio-broker.db",
        "store_kind": "SQLite 3.45.1",
        "durability": "journal_mode=wal synchronous=full",
        "durable": True,
        "store_shared": False,
        "workers": 1,
        "tls": False,
        "client_certificates": False,
        "open_to_strangers": False,
        "commit_timeout_s": 10.0,
        "drain_delay_s": 0.0,
        "grace_s": 10.0,
        "queue_messages": 50_000,
        "queue_bytes": 64 << 20,
        "flush_messages": 1024,
        "flush_bytes": 4 << 20,
        "subscriber_messages": 1024,
        "subscriber_bytes": 4 << 20,
        "cache_bytes": 32 << 20,
        "streams_per_connection": 1000,
        "body_max_bytes": BODY_MAX_BYTES,
        "memory_max_bytes": 2**28 + 1,
        "connections_max": 6400,
        "subscribers_max": 12800,
        "ready_after_s": 0.412,
    }


def test_what_may_not_be_meant_is_warned_of_without_passwords(log_stream: io.StringIO) -> None:
    config = Config(listen="0.0.0.0:1", allow_anonymous=True, store="postgresql://me:secret@db/x", log_format="json")
    lines = announced(log_stream, config, Durability("memory", "none", durable=False, meaning="lost"))
    assert [(line["level"], line["event"]) for line in lines] == [
        ("warning", "not_durable"),
        ("warning", "strangers_may_call"),
        ("info", "ready"),
    ]
    assert {line["store"] for line in lines if "store" in line} == {"postgresql://me:***@db/x"}


def test_who_needs_a_certificate_is_no_stranger(log_stream: io.StringIO) -> None:
    config = Config(listen="0.0.0.0:1", tls_cert="c", tls_key="k", tls_client_ca="a", log_format="json")
    (ready,) = announced(log_stream, config, Durability())
    assert (ready["tls"], ready["client_certificates"], ready["open_to_strangers"]) == (True, True, False)
