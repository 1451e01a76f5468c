"""HPACK: header blocks to fields and back (RFC 7541). Sections are its, unless another RFC is named.

Owns:      the decoder with its dynamic table and its bounds; the encoder, which keeps no table.
Not here:  which fields are allowed, and what they mean (RFC 9113, section 8); frames.
Threads:   one at a time per decoder; nothing here is a checkpoint.
"""

from collections.abc import Iterable
from typing import Final

from trio_broker.rpc import huffman
from trio_broker.rpc.header_table import STATIC_TABLE

Field = tuple[bytes, bytes]
"""Name and value."""

_Entry = tuple[Field, int]
"""A field and its size in bytes (section 4.1)."""

FIELD_OVERHEAD_BYTES: Final = 32
"""A field's size is that of its name and value and this: in the table (4.1) and in a list (RFC 9113, 6.5.2)."""

TABLE_SIZE_INITIAL: Final = 4096
"""An encoder's table, until it says otherwise (RFC 9113, section 6.5.2)."""

# Our limit on integers (section 5.1 asks for one): a full prefix and four bytes after it. That allows 2**28, more
# than any length or index here can be, and refuses numbers spun out with zeros.
_INTEGER_SHIFT_MAX: Final = 21

# The first byte of a representation: a pattern in the top bits, then the prefix of an integer, here as a mask
# (section 6). A prefix of only ones says that the integer goes on in the next bytes (section 5.1).
_INDEXED: Final = 0x80  # 6.1
_INDEXED_PREFIX: Final = 0x7F
_INCREMENTAL: Final = 0x40  # literal with incremental indexing, 6.2.1
_INCREMENTAL_PREFIX: Final = 0x3F
_SIZE_UPDATE: Final = 0x20  # 6.3
_SIZE_UPDATE_PREFIX: Final = 0x1F
_LITERAL_PREFIX: Final = 0x0F  # literal without indexing, and never indexed: 6.2.2, 6.2.3

# The first byte of a string (section 5.2).
_HUFFMAN: Final = 0x80
_LENGTH_PREFIX: Final = 0x7F


class HpackError(Exception):
    """The block cannot be decoded; neither can any after it: COMPRESSION_ERROR (RFC 9113, section 4.3)."""


class HeaderListTooLarge(Exception):
    """The list is larger than allowed. The block was decoded to its end, so only this request need be refused."""


def _size(field: Field) -> int:
    name, value = field
    return len(name) + len(value) + FIELD_OVERHEAD_BYTES


# The index address space without a dynamic table (section 2.3.3). Nothing has index 0.
_STATIC_ENTRIES: Final[list[_Entry]] = [((b"", b""), 0), *((field, _size(field)) for field in STATIC_TABLE)]
_FIRST_DYNAMIC: Final = len(_STATIC_ENTRIES)


def list_size(fields: Iterable[Field]) -> int:
    """Return the size of a header list (RFC 9113, section 6.5.2)."""
    return sum(map(_size, fields))


class Decoder:
    """The decoding half of a connection: header blocks in the order of their arrival.

    ``table_size_max`` is what we announce as SETTINGS_HEADER_TABLE_SIZE, ``list_size_max`` as
    SETTINGS_MAX_HEADER_LIST_SIZE; both in bytes, with `FIELD_OVERHEAD_BYTES` for each field. A peer that does not
    yet know a ``table_size_max`` below `TABLE_SIZE_INITIAL` may refer to entries that are no longer here.
    """

    __slots__ = ("_list_size_max", "_table", "_table_size", "_table_size_limit", "_table_size_max", "mutated")

    def __init__(self, table_size_max: int = TABLE_SIZE_INITIAL, list_size_max: int = 16_384) -> None:
        # The index address space as one list: the static table, then the dynamic one, newest first (section 2.3.3).
        # An insertion moves at most table_size_max / 32 pointers.
        self._table = _STATIC_ENTRIES.copy()
        self._table_size = 0
        self._table_size_max = min(table_size_max, TABLE_SIZE_INITIAL)  # the encoder's choice, up to our limit
        self._table_size_limit = table_size_max
        self._list_size_max = list_size_max
        self.mutated = False
        """The last block may have changed the dynamic table: equal bytes may mean something else from now on."""

    def decode(self, block: bytes) -> list[Field]:
        """Return the fields of a whole header block (HEADERS and its CONTINUATIONs), in order.

        Raise `HeaderListTooLarge`; or `HpackError`, after which the decoder must not be used again. Time is linear
        in the block's length, and no more than ``list_size_max`` is kept, however often it refers to a large entry.
        """
        table = self._table
        list_size_max = self._list_size_max
        self.mutated = False
        fields: list[Field] = []
        list_size = 0
        position = 0
        end = len(block)
        while position < end:
            first = block[position]
            position += 1
            if first >= _INDEXED:
                index = first & _INDEXED_PREFIX
                if index == _INDEXED_PREFIX:
                    index, position = _long_integer(block, position, _INDEXED_PREFIX)
                if not 0 < index < len(table):
                    raise _no_such_index(index)
                field, size = table[index]
            elif first >= _INCREMENTAL:
                field, position = self._literal(block, position, first & _INCREMENTAL_PREFIX, _INCREMENTAL_PREFIX)
                size = _size(field)
                self._insert(field, size)
            elif first >= _SIZE_UPDATE:
                if list_size:  # section 4.2
                    raise HpackError("a dynamic table size update after a field")
                position = self._resize(block, position, first & _SIZE_UPDATE_PREFIX)
                continue
            else:
                field, position = self._literal(block, position, first & _LITERAL_PREFIX, _LITERAL_PREFIX)
                size = _size(field)
            list_size += size
            if list_size <= list_size_max:
                fields.append(field)
        if list_size > list_size_max:
            raise HeaderListTooLarge(f"a header list of {list_size} bytes; at most {list_size_max} are allowed")
        return fields

    def _literal(self, block: bytes, position: int, index: int, prefix: int) -> tuple[Field, int]:
        """Return a literal field and its end (section 6.2). ``index``, in its prefix, says which entry has its name."""
        if index == prefix:
            index, position = _long_integer(block, position, prefix)
        if not index:  # a new name
            name, position = _string(block, position)
        elif index < len(self._table):
            name = self._table[index][0][0]
        else:
            raise _no_such_index(index)
        value, position = _string(block, position)
        return (name, value), position

    def _insert(self, field: Field, size: int) -> None:
        """Add the newest entry (section 4.4). One that is larger than the table empties it, itself included."""
        self.mutated = True
        self._table.insert(_FIRST_DYNAMIC, (field, size))
        self._table_size += size
        if self._table_size > self._table_size_max:
            self._evict()

    def _resize(self, block: bytes, position: int, size: int) -> int:
        """Apply a dynamic table size update; return its end (section 6.3).

        A block may start with several (section 4.2 says two at most, but encoders exist that send every change).
        """
        if size == _SIZE_UPDATE_PREFIX:
            size, position = _long_integer(block, position, _SIZE_UPDATE_PREFIX)
        if size > self._table_size_limit:
            raise HpackError(f"a dynamic table of {size} bytes; at most {self._table_size_limit} are allowed")
        self.mutated = True
        self._table_size_max = size
        self._evict()
        return position

    def _evict(self) -> None:
        """Drop the oldest entries until the others fit (sections 4.3, 4.4)."""
        while self._table_size > self._table_size_max:
            _, size = self._table.pop()
            self._table_size -= size


def _no_such_index(index: int) -> HpackError:
    return HpackError(f"no field has index {index}")  # section 2.3.3; section 6.1 on index 0


def _truncated() -> HpackError:
    return HpackError("the header block ends in the middle of a field")


def _long_integer(block: bytes, position: int, prefix: int) -> tuple[int, int]:
    """Return an integer that fills its prefix and goes on at ``position``; and its end (section 5.1)."""
    value = prefix
    for shift in range(0, _INTEGER_SHIFT_MAX + 1, 7):
        if position == len(block):
            raise _truncated()
        byte = block[position]
        position += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise HpackError("an integer is too long")


def _string(block: bytes, position: int) -> tuple[bytes, int]:
    """Return the string literal at ``position``; and its end (section 5.2)."""
    if position == len(block):
        raise _truncated()
    first = block[position]
    position += 1
    length = first & _LENGTH_PREFIX
    if length == _LENGTH_PREFIX:
        length, position = _long_integer(block, position, _LENGTH_PREFIX)
    end = position + length
    if end > len(block):
        raise _truncated()
    string = block[position:end]
    if first < _HUFFMAN:
        return string, end
    try:
        return huffman.decode(string), end
    except huffman.HuffmanError as error:
        raise HpackError(str(error)) from error


INDEXED_STATUS_200: Final = b"\x88"
"""``:status: 200``: entry 8 of the static table (section 6.1)."""


def literal(name: bytes, value: bytes) -> bytes:
    """Return a literal field without indexing, with a new name (section 6.2.2), its strings not Huffman-coded.

    Such a field depends on no table: it is valid in any block, on any connection, and can be encoded in advance.
    """
    return b"\x00" + _encoded_string(name) + _encoded_string(value)


def _encoded_string(string: bytes) -> bytes:
    """Return a string literal (section 5.2), its length an integer with a prefix of 7 bits (section 5.1)."""
    length = len(string)
    if length < _LENGTH_PREFIX:
        return bytes((length,)) + string
    encoded = bytearray((_LENGTH_PREFIX,))
    rest = length - _LENGTH_PREFIX
    while rest >= 0x80:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded) + string
