"""Pages of a subject's log, as `Broker.fetch_range` returns them.

Owns:      how much a page holds, and where it is cut.
Not here:  reading it (trio_broker/reading.py), bytes on the wire (trio_broker/service/encoding.py).
Threads:   any: pure functions.
"""

from itertools import takewhile

from persistence import Page
from persistence.headers import headers_size_bytes
from persistence.rows import rows_of
from trio_broker.batch import Replayed
from trio_broker.errors import InvalidId
from trio_broker.message import MessagePage

PAGE_MAX_MESSAGES = 10_000
PAGE_MAX_BYTES = 4 * 1024 * 1024 - 64
"""As a response on gRPC: clients take 4 MiB by default. What a response has besides messages has room beyond."""
_FIELDS_BYTES = 64
"""What a message takes on the wire at most besides subject, body and headers: id, time, and lengths."""
_HEADER_BYTES = 16
"""The same of a header."""


def cut_page(subject: str, page: Page, after_id: int, until_id: int, max_bytes: int) -> MessagePage:
    """Return what of a page of the store goes up to ``until_id``, and stays below ``max_bytes`` on the wire."""
    rows = list(takewhile(lambda row: row[0] <= until_id, rows_of(page.records)))
    scanned_to = max(after_id, min(page.scanned_to, until_id))
    each_bytes = len(subject.encode()) + _FIELDS_BYTES
    size = 0
    for place, (_, body, headers, *_) in enumerate(rows):
        size += each_bytes + len(body)
        if headers:
            size += headers_size_bytes(headers) + _HEADER_BYTES * len(headers)
        if size > max_bytes and place:
            return MessagePage(Replayed(subject, rows[:place]), rows[place - 1][0], page.last_id)
    return MessagePage(Replayed(subject, rows), scanned_to, page.last_id)


def never_assigned(subject: str, id_: int, last_id: int) -> InvalidId:
    """Return the error for an id that a subject has not given out."""
    return InvalidId(f"id {id_} was never assigned in {subject!r}; its last id is {last_id}", last_id=last_id)
