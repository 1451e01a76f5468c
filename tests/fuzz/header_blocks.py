"""Our HPACK decoder against that of the `hpack` library, block after block over one table.

Owns:      blocks that are nearly right, and what the two must agree on.
Not here:  what header fields mean (requests.py).
"""

import hpack
from hpack.exceptions import HPACKError

from trio_broker.rpc.hpack import Decoder, Field, HeaderListTooLarge, HpackError

from .choices import Choices

TABLE_SIZES = [4096, 0, 64, 256, 8192]
LIST_SIZE_MAX = 600
BLOCKS_MAX = 20
PATTERNS = [0x80, 0x40, 0x00, 0x10, 0x20]
"""Of representations: indexed; literals with indexing, without, and never indexed; a table size update."""
STRICTER = ("an integer is too long", "a dynamic table size update after a field")
"""What we refuse, and the library takes: numbers spun out with zeros; a size update behind an empty field (its tuple is
falsy)."""


def header_blocks(data: bytes) -> None:
    """Decode what the bytes say with both."""
    choices = Choices(data)
    table_size = TABLE_SIZES[choices.below(len(TABLE_SIZES))]
    ours, other = Decoder(table_size, LIST_SIZE_MAX), hpack.Decoder(2**24)
    other.header_table_size = min(table_size, 4096)
    other.max_allowed_table_size = table_size
    encoder = hpack.Encoder()
    encoder.header_table_size = min(table_size, 4096)
    for _ in range(BLOCKS_MAX):
        if not choices.left or not _agree(ours, other, _block(choices, encoder)):
            return


def _block(choices: Choices, encoder: hpack.Encoder) -> bytes:
    """Raw bytes; what the library's encoder makes of fields; or representations of our own, one by one."""
    match choices.below(3):
        case 0:
            return choices.piece()
        case 1:
            fields = [(choices.piece()[:20], choices.piece()[:80]) for _ in range(choices.below(6))]
            coded = bytearray(encoder.encode(fields, huffman=bool(choices.below(2))))
            if coded and choices.below(4) == 3:  # broken in one place
                coded[choices.number(1) % len(coded)] ^= 1 << choices.below(8)
            return bytes(coded)
        case _:
            return b"".join(_representation(choices) for _ in range(choices.below(12)))


def _representation(choices: Choices) -> bytes:
    pattern = PATTERNS[choices.below(len(PATTERNS))]
    bits = {0x80: 7, 0x40: 6, 0x20: 5}.get(pattern, 4)
    number = choices.number(1 + choices.below(2))
    begin = _integer(number, bits, pattern)
    if pattern in (0x80, 0x20):
        return begin
    return begin + (b"" if number else _string(choices)) + _string(choices)


def _string(choices: Choices) -> bytes:
    how, string = choices.below(3), choices.piece()
    if how == 2:
        string = hpack.huffman.HuffmanEncoder(
            hpack.huffman_constants.REQUEST_CODES, hpack.huffman_constants.REQUEST_CODES_LENGTH
        ).encode(string)
    return _integer(len(string), 7, 0x80 if how else 0) + string


def _integer(number: int, bits: int, pattern: int) -> bytes:
    coded = bytearray(hpack.hpack.encode_integer(number, bits))
    coded[0] |= pattern
    return bytes(coded)


def _agree(ours: Decoder, other: hpack.Decoder, block: bytes) -> bool:
    """Decode a block with both; say whether they can go on."""
    before = list(ours._table)
    fields: list[Field] | None
    try:
        fields = ours.decode(block)
    except HeaderListTooLarge:
        fields = None
    except HpackError as error:
        if str(error).startswith(STRICTER):
            return False
        try:
            other.decode(block, raw=True)
        except HPACKError:
            return False
        raise AssertionError(f"only we refuse {block!r}: {error}") from error
    theirs = other.decode(block, raw=True)
    assert fields is None or fields == theirs
    assert (fields is None) == (sum(32 + len(name) + len(value) for name, value in theirs) > LIST_SIZE_MAX)
    assert [entry[0] for entry in ours._table[62:]] == list(other.header_table.dynamic_entries)
    assert ours._table_size == sum(entry[1] for entry in ours._table[62:]) <= ours._table_size_max
    assert ours.mutated or ours._table == before, "the table has changed, and nothing says so"
    return True
