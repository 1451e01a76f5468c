"""Messages as JSON, one object a line: what ``sub --json`` and ``get --json`` print and ``pub --json`` reads.

Owns:      the keys. Printed: subject, id, body (UTF-8 text) or body_base64, headers and headers_base64 (those that
           are not UTF-8), published_at (RFC 3339, UTC, microseconds). Read: subject, body or body_base64, headers,
           headers_base64, expiration, keep, idempotency_key; what is printed can be read back.
Not here:  where lines come from and go to.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from datetime import datetime
from difflib import get_close_matches

from trio_broker.client.publishing import EXPIRATION_MAX_S
from trio_broker.message import NO_HEADERS, Draft, Message
from trio_broker.notation import seconds

_READ = {"subject", "body", "body_base64", "headers", "headers_base64", "expiration", "keep", "idempotency_key"}
_IGNORED = {"id", "published_at"}


def to_json(message: Message) -> bytes:
    """Return one line, with its newline."""
    line: dict[str, object] = {"subject": message.subject, "id": message.id}
    line |= write_content(message.body, message.headers)
    line["published_at"] = write_time(message.published_at)
    return dump(line)


def dump(line: Mapping[str, object]) -> bytes:
    """Return one line, with its newline."""
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def write_content(body: bytes, headers: Mapping[str, bytes]) -> dict[str, object]:
    """Return the keys for a body and headers."""
    line: dict[str, object] = {}
    if (text := _text(body)) is not None:
        line["body"] = text
    else:
        line["body_base64"] = _to_base64(body)
    texts = {name: _text(value) for name, value in headers.items()}
    line["headers"] = {name: text for name, text in texts.items() if text is not None}
    if binary := {name: _to_base64(headers[name]) for name, text in texts.items() if text is None}:
        line["headers_base64"] = binary
    return line


def write_time(time: datetime) -> str:
    """Return a time as RFC 3339 has it, in UTC, with microseconds."""
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")


def from_json(line: bytes, default: Draft) -> Draft | None:
    """Read one line; None: it is blank. What it does not say is as in ``default``.

    An empty subject there means that the line must name one. Headers are added to those of ``default``, and go before
    them.

    Raises:
        ValueError: with what is wrong with the line.
    """
    if not line.strip():
        return None
    found = load(line)
    for name in found.keys() - _READ - _IGNORED:
        meant = get_close_matches(name, _READ, n=1)
        raise ValueError(f"unknown key {name!r}" + (f"; did you mean {meant[0]!r}?" if meant else ""))
    subject = _from_text("subject", found.get("subject", default.subject)).decode()
    if not subject:
        raise ValueError("no subject: give it in the line or as the argument")
    key = _from_text("idempotency_key", found.get("idempotency_key", "")).decode()
    headers = read_headers(found, default.headers)
    return Draft(subject, read_body(found), _read_expiration(found, default), headers, key)


def load(line: bytes) -> dict[str, object]:
    """Read the object of one line.

    Raises:
        ValueError: with what is wrong with the line.
    """
    try:
        found = json.loads(line)
    except UnicodeDecodeError:
        raise ValueError("not JSON: not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise ValueError("not JSON that is written here: nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError('not a JSON object: write {"subject": ..., "body": ...}')  # noqa: TRY004  as all of them
    return found


def expiration_of(value: object) -> int:
    """Read an expiration: ``60s``, ``1h`` or whole seconds.

    Raises:
        ValueError: with what is wrong.
    """
    read = seconds(value)
    if not read.is_integer() or read < 0:
        raise ValueError(f"an expiration is a whole number of seconds, and not negative: {value!r}")
    if read > EXPIRATION_MAX_S:
        raise ValueError(f"an expiration is at most {EXPIRATION_MAX_S} seconds, or --keep: {value!r}")
    return int(read)


def read_body(found: Mapping[str, object]) -> bytes:
    """Read a body. Raises as `from_json` does."""
    if ("body" in found) == ("body_base64" in found):
        raise ValueError("give either body or body_base64")
    if "body_base64" in found:
        return _from_base64("body_base64", found["body_base64"])
    return _from_text("body", found["body"])


def read_headers(found: Mapping[str, object], default: Mapping[str, bytes] = NO_HEADERS) -> Mapping[str, bytes]:
    """Read headers, on top of ``default``. Raises as `from_json` does."""
    headers = dict(default)
    for key, read in (("headers", _from_text), ("headers_base64", _from_base64)):
        values = found.get(key, {})
        if not isinstance(values, dict):
            raise ValueError(f"{key} must be an object of strings")  # noqa: TRY004
        headers |= {_from_text("a header's name", name).decode(): read(name, value) for name, value in values.items()}
    return headers


def _read_expiration(found: dict[str, object], default: Draft) -> int | None:
    if "expiration" not in found and "keep" not in found:
        return default.expiration
    keep, expiration = found.get("keep", False), expiration_of(found.get("expiration", 0))
    if not isinstance(keep, bool):
        raise ValueError(f"keep must be true or false, not {keep!r}")  # noqa: TRY004
    if keep and expiration:
        raise ValueError("give either keep or expiration")
    return None if keep else expiration


def _text(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def _from_text(what: str, value: object) -> bytes:
    try:
        if isinstance(value, str):
            return value.encode()
    except UnicodeEncodeError:  # JSON can write half a surrogate pair; bytes are what base64 is for
        pass
    raise ValueError(f"{what} must be text")


def _to_base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _from_base64(what: str, value: object) -> bytes:
    try:
        if isinstance(value, str):
            return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise ValueError(f"{what} must be base64")
