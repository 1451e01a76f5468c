"""Messages as JSON lines: what is printed can be read back, and what is wrong with a line is told."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_broker.cli.jsonlines import expiration_of, from_json, to_json
from trio_broker.message import Draft, Message

DEFAULT = Draft("orders", b"", 60, {"k": b"v"})


def test_text_is_printed_as_text_with_stable_keys() -> None:
    message = Message("orders", 7, "grüße\n".encode(), {"k": b"v"}, 1_700_000_000_123_456)
    line = to_json(message)
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "subject": "orders",
        "id": 7,
        "body": "grüße\n",
        "headers": {"k": "v"},
        "published_at": "2023-11-14T22:13:20.123456Z",
    }


def test_bytes_that_are_no_text_are_base64() -> None:
    found = json.loads(to_json(Message("orders", 7, b"\xff", {"t": b"x", "b": b"\xfe"}, 0)))
    assert "body" not in found
    assert (found["body_base64"], found["headers"], found["headers_base64"]) == ("/w==", {"t": "x"}, {"b": "/g=="})
    assert found["published_at"] == "1970-01-01T00:00:00.000000Z"


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(texts, st.binary(max_size=20), st.dictionaries(texts, st.binary(max_size=9), min_size=1, max_size=3))
def test_what_is_printed_is_read_back(subject: str, body: bytes, headers: dict[str, bytes]) -> None:
    line = to_json(Message(subject, 1, body, headers, 0))
    assert from_json(line, DEFAULT._replace(headers={})) == Draft(subject, body, 60, headers)


def test_what_a_line_does_not_say_is_as_on_the_command_line() -> None:
    assert from_json(b'{"body": "x"}', DEFAULT) == Draft("orders", b"x", 60, {"k": b"v"})
    assert from_json(b'{"body": "x", "subject": "a"}', DEFAULT) == Draft("a", b"x", 60, {"k": b"v"})


def test_a_lines_headers_are_added_and_go_before_those_of_the_command_line() -> None:
    line = b'{"body": "x", "headers": {"other": "1"}, "headers_base64": {"k": "/w=="}}'
    assert from_json(line, DEFAULT) == Draft("orders", b"x", 60, {"k": b"\xff", "other": b"1"})
    assert from_json(b'{"body": "x", "headers": {}}', DEFAULT) == from_json(b'{"body": "x"}', DEFAULT)
    assert DEFAULT.headers == {"k": b"v"}


def test_a_line_may_have_a_key() -> None:
    assert from_json(b'{"body": "x", "idempotency_key": "k"}', DEFAULT) == Draft("orders", b"x", 60, {"k": b"v"}, "k")


@pytest.mark.parametrize("line", [b"", b" ", b"\t\r"])
def test_a_blank_line_is_no_message(line: bytes) -> None:
    assert from_json(line, DEFAULT) is None


@pytest.mark.parametrize(
    ("text", "expiration"),
    [('"expiration": 5', 5), ('"expiration": "1h"', 3600), ('"keep": true', None), ('"keep": false', 0)],
)
def test_how_long_a_line_is_kept(text: str, expiration: int | None) -> None:
    assert from_json(f'{{"body": "x", {text}}}'.encode(), DEFAULT) == DEFAULT._replace(body=b"x", expiration=expiration)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "not JSON: .* at character 2"),
        ("[1]", "not a JSON object"),
        ('{"body": "x", "bdoy": 1}', "unknown key 'bdoy'; did you mean 'body'"),
        ('{"body": "x", "qqq": 1}', "unknown key 'qqq'"),
        ('{"subject": "a"}', "either body or body_base64"),
        ('{"body": "a", "body_base64": "YQ=="}', "either body or body_base64"),
        ('{"body": 1}', "body must be text"),
        ('{"body": "\\ud800"}', "body must be text"),
        ('{"body_base64": "!"}', "body_base64 must be base64"),
        ('{"body_base64": "é"}', "body_base64 must be base64"),
        ('{"body": "x", "subject": 1}', "subject must be text"),
        ('{"body": "x", "subject": ""}', "no subject"),
        ('{"body": "x", "idempotency_key": 1}', "idempotency_key must be text"),
        ('{"body": "x", "headers": []}', "headers must be an object"),
        ('{"body": "x", "headers": {"a": 1}}', "a must be text"),
        ('{"body": "x", "headers_base64": {"a": "?"}}', "a must be base64"),
        ('{"body": "x", "expiration": true}', "not a duration"),
        ('{"body": "x", "expiration": 1.5}', "whole number of seconds"),
        ('{"body": "x", "expiration": -1}', "not negative"),
        ('{"body": "x", "expiration": 2147483648}', "at most 2147483647 seconds"),
        ('{"body": "x", "expiration": Infinity}', "whole number of seconds"),
        ('{"body": "x", "expiration": 1' + "0" * 400 + "}", "whole number of seconds"),
        ("[" * 100_000, "nested too deeply"),
        ('{"body": "x", "keep": 1}', "keep must be true or false"),
        ('{"body": "x", "keep": true, "expiration": 1}', "either keep or expiration"),
    ],
)
def test_what_is_wrong_with_a_line_is_told(line: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        from_json(line.encode(), DEFAULT)


def test_a_line_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(ValueError, match="UTF-8"):
        from_json(b'{"body": "\xff"}', DEFAULT)


def test_without_a_default_the_line_must_name_its_subject() -> None:
    with pytest.raises(ValueError, match="no subject"):
        from_json(b'{"body": "x"}', DEFAULT._replace(subject=""))


@pytest.mark.parametrize(("text", "value"), [("60s", 60), ("3600", 3600), ("2h", 7200), ("0", 0)])
def test_an_expiration_is_read(text: str, value: int) -> None:
    assert expiration_of(text) == value
