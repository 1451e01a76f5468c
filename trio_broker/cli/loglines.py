"""A log as JSON, one object a line: what ``export`` prints and ``import`` reads.

Owns:      the lines. A message: what ``sub --json`` prints of it (trio_broker/cli/jsonlines.py) and, if it expires,
           expires_at. After the messages of a subject, which are in the order of their ids: subject and last_id.
Not here:  where lines come from and go to.

Times are exact to the microsecond, which is all that a store knows.
"""

from datetime import UTC, datetime
from typing import NamedTuple

from persistence import Record
from trio_broker.cli.jsonlines import dump, load, read_body, read_headers, write_content, write_time
from trio_broker.message import microseconds_of, time_of
from trio_broker.subject import check_subject
from trio_broker.validation import ID_MAX

_ID_MAX = ID_MAX // 2


class Line(NamedTuple):
    """One line."""

    subject: str
    record: Record | None
    """A message; None: this is the end of the subject."""
    last_id: int
    """The id of the message, or the last one that the subject ever gave."""


def record_line(subject: str, record: Record) -> bytes:
    """Return the line of a message, with its newline."""
    line: dict[str, object] = {"subject": subject, "id": record.id}
    line |= write_content(record.body, record.headers)
    line["published_at"] = _write_time_us(record.time_us)
    if record.expires_us is not None:
        line["expires_at"] = _write_time_us(record.expires_us)
    return dump(line)


def end_line(subject: str, last_id: int) -> bytes:
    """Return the line after the messages of a subject, with its newline."""
    return dump({"subject": subject, "last_id": last_id})


def read_line(line: bytes) -> Line:
    """Read a line.

    Raises:
        ValueError: with what is wrong with it.
    """
    found = load(line)
    subject = found.get("subject")
    if not isinstance(subject, str):
        raise ValueError("no subject: this is not what export writes")  # noqa: TRY004  as all of them
    check_subject(subject)
    if "last_id" in found:
        return Line(subject, None, _read_id("last_id", found["last_id"]))
    id_ = _read_id("id", found.get("id"))
    time_us = _read_time_us("published_at", found.get("published_at"))
    expires_us = _read_time_us("expires_at", found["expires_at"]) if "expires_at" in found else None
    return Line(subject, Record(id_, read_body(found), read_headers(found), time_us, expires_us), id_)


def _write_time_us(time_us: int) -> str:
    return write_time(time_of(time_us))


def _read_time_us(what: str, value: object) -> int:
    try:
        time = datetime.fromisoformat(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError(f"{what} must be a time such as 2026-01-31T12:00:00.000000Z, not {value!r}") from None
    if time.tzinfo is None:
        raise ValueError(f"{what} says no time zone: {value!r}; UTC is a Z at the end")
    try:
        time.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{what} is {value!r}; in UTC its year is not one from 1 to 9999") from None
    return microseconds_of(time)


def _read_id(what: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{what} must be a number from 1 on, not {value!r}")
    if value > _ID_MAX:
        raise ValueError(f"{what} is {value}; at most {_ID_MAX} leaves room for ids after it")
    return value
