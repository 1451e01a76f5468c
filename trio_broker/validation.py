"""What is refused whatever the state of the broker and its store: arguments of calls that make no sense.

Owns:      the bounds of headers, keys and ids, and the text of each refusal.
Not here:  subjects (trio_broker/subject.py), the size of bodies (trio_broker/broker.py).
Threads:   any: pure functions.
"""

from collections.abc import Mapping
from types import MappingProxyType

from persistence.headers import headers_size_bytes
from trio_broker.errors import InvalidExpiration, InvalidHeaders, InvalidKey, InvalidPosition
from trio_broker.start import After, At, Last, Start, Until

HEADERS_MAX = 64
HEADERS_MAX_BYTES = 16 * 1024
KEY_MAX_BYTES = 255
ID_MAX = 2**63 - 1
MESSAGES_MAX = 2**31 - 1


def check_expiration(expiration: int, longest_s: int) -> None:
    """Refuse an expiration, in seconds, that no message can have, or none in a store that keeps them so long."""
    if not isinstance(expiration, int):
        raise TypeError(f"an expiration is an int (seconds) or None, not {type(expiration).__name__}")
    if expiration < 0:
        raise InvalidExpiration(f"expiration is {expiration} s; it cannot be negative")
    if expiration > longest_s:
        raise InvalidExpiration(
            f"expiration is {expiration} s; this store keeps messages for at most {longest_s} s, "
            "or until they are deleted",
            limit=longest_s,
        )


def check_key(key: str) -> None:
    """Refuse an idempotency key that is too long, or that UTF-8 cannot say."""
    if not isinstance(key, str):
        raise TypeError(f"an idempotency key is a str, not {type(key).__name__}")
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise InvalidKey("the idempotency key has half a surrogate pair, which UTF-8 cannot say") from error
    if size > KEY_MAX_BYTES:
        raise InvalidKey(
            f"the idempotency key has {size} bytes; at most {KEY_MAX_BYTES} are accepted",
            size=size,
            limit=KEY_MAX_BYTES,
        )


def frozen_headers(headers: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """Return a copy that nobody can change, since all subscribers share it."""
    if not isinstance(headers, Mapping):
        raise TypeError(f"headers are a mapping, not {type(headers).__name__}")
    if len(headers) > HEADERS_MAX:
        raise InvalidHeaders(f"{len(headers)} headers; at most {HEADERS_MAX} are accepted", limit=HEADERS_MAX)
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, bytes):
            raise TypeError(f"headers map str to bytes, not {type(name).__name__} to {type(value).__name__}")
        if not name:
            raise InvalidHeaders("a header has no name")
    try:
        size = headers_size_bytes(headers)
    except UnicodeEncodeError as error:
        raise InvalidHeaders("the name of a header has half a surrogate pair, which UTF-8 cannot say") from error
    if size > HEADERS_MAX_BYTES:
        raise InvalidHeaders(
            f"the headers have {size} bytes together; at most {HEADERS_MAX_BYTES} are accepted",
            size=size,
            limit=HEADERS_MAX_BYTES,
        )
    return MappingProxyType(dict(headers))


def check_range(after_id: int, until_id: int, max_messages: int) -> None:
    """Refuse a part of a log that there cannot be."""
    for name, number, most in (
        ("after_id", after_id, ID_MAX),
        ("until_id", until_id, ID_MAX),
        ("max_messages", max_messages, MESSAGES_MAX),
    ):
        if not isinstance(number, int):
            raise TypeError(f"{name} is an int, not {type(number).__name__}")
        if not 0 <= number <= most:
            raise InvalidPosition(f"{name} is {number}; it can be from 0 to {most}")


def check_span(start: Start, until: Until | None) -> None:
    """Refuse a start or an end that no log can have."""
    match start:
        case Last(count) if count < 0:
            raise InvalidPosition(f"the last {count} ids cannot be asked for")
        case After(after_id) if not 0 <= after_id <= ID_MAX:
            raise InvalidPosition(f"{after_id} is no id, nor 0 for the beginning")
        case At(time) if time.tzinfo is None:
            raise InvalidPosition(f"{time.isoformat()} has no time zone")
    if isinstance(until, int) and not 0 <= until <= ID_MAX:
        raise InvalidPosition(f"{until} is no id to end with")
