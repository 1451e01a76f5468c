"""The records of a page as the rows that a driver gave.

Owns:      `Rows`, and `rows_of`, which has the rows of any page.
Not here:  reading them (each store).
Threads:   any.

A log is replayed row by row, at a microsecond or two for each: to make a `Record` of it, which nobody looks at, would
be a good part of that.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import overload

from persistence.facade import NO_HEADERS, Record

Row = tuple[int, bytes, Mapping[str, bytes] | None, int, int | None]
"""The fields of a `Record`; without headers there may be None in their place."""


class Rows(Sequence[Record]):
    """Records, each made when it is asked for. Equal to any sequence of the same records."""

    __slots__ = ("rows",)
    __hash__ = None  # type: ignore[assignment] # as a list

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Record]:
        return map(_record, self.rows)

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    @overload
    def __getitem__(self, place: int) -> Record: ...

    @overload
    def __getitem__(self, place: slice) -> "Rows": ...

    def __getitem__(self, place: int | slice) -> "Record | Rows":
        return Rows(self.rows[place]) if isinstance(place, slice) else _record(self.rows[place])


def rows_of(records: Sequence[Record]) -> Sequence[Row]:
    """Return records as rows, without making those that are rows."""
    return records.rows if isinstance(records, Rows) else records


def _record(row: Row) -> Record:
    id_, body, headers, time_us, expires_us = row
    return Record(id_, body, headers or NO_HEADERS, time_us, expires_us)
