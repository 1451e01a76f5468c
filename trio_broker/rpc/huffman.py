"""HPACK's Huffman code, decoded (RFC 7541, section 5.2 and Appendix B).

Owns:      the code and its decoding, a whole byte at a time.
Not here:  where strings begin and end (hpack.py); encoding: we send strings as they are.
Threads:   any: the caches only ever gain, or forget, entries that everybody would compute alike.
"""

from typing import Final

# How many bits each symbol's code has: the 256 bytes, then EOS. The code is canonical (Appendix B): codes of one
# length are consecutive numbers in the order of their symbols, so these lengths are the whole code.
# fmt: off
CODE_LENGTHS: Final = (
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
     6, 10, 10, 12, 13,  6,  8, 11, 10, 10,  8, 11,  8,  6,  6,  6,
     5,  5,  5,  6,  6,  6,  6,  6,  6,  6,  7,  8, 15,  6, 12, 10,
    13,  6,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,
     7,  7,  7,  7,  7,  7,  7,  7,  8,  7,  8, 13, 19, 13, 14,  6,
    15,  5,  6,  5,  6,  5,  6,  6,  6,  5,  7,  7,  6,  6,  6,  5,
     6,  7,  6,  5,  5,  6,  7,  7,  7,  7,  7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
)
# fmt: on
_EOS: Final = 256
_PADDING_BITS_MAX: Final = 7

MEMO_STRINGS_MAX: Final = 1024
MEMO_STRING_BYTES_MAX: Final = 16
"""Encoded. Enough for what changes from call to call (grpc-timeout); secrets are longer, and are not kept."""


class HuffmanError(Exception):
    """The bytes are not a Huffman-coded string."""


def _build_tree() -> list[list[int]]:
    """Return the code as a binary tree: node -> [child for bit 0, child for bit 1]; node 0 is the root.

    A child >= 0 is a node; a negative one is the symbol ``~child``. The code is complete: every inner node has both.
    """
    tree = [[0, 0]]
    code = length = 0
    for symbol in sorted(range(len(CODE_LENGTHS)), key=lambda symbol: (CODE_LENGTHS[symbol], symbol)):
        code <<= CODE_LENGTHS[symbol] - length
        length = CODE_LENGTHS[symbol]
        node = 0
        for shift in range(length - 1, 0, -1):
            bit = code >> shift & 1
            if not tree[node][bit]:
                tree[node][bit] = len(tree)
                tree.append([0, 0])
            node = tree[node][bit]
        tree[node][code & 1] = ~symbol
        code += 1
    return tree


def _padding_nodes(tree: list[list[int]]) -> frozenset[int]:
    """Return the nodes where a string may end: the root, and after 1 to 7 bits of EOS, which are ones (section 5.2)."""
    nodes = [0]
    for _ in range(_PADDING_BITS_MAX):
        nodes.append(tree[nodes[-1]][1])
    return frozenset(nodes)


class _Transitions(dict[int, tuple[int, bytes]]):
    """``node << 8 | byte`` -> (the next node ``<< 8``, the symbols that this byte completes).

    Made as strings need them: ordinary ones use a few hundred. All 65,536, if a peer goes for them, are 12 MB.
    """

    def __missing__(self, key: int) -> tuple[int, bytes]:
        node = key >> 8
        symbols = bytearray()
        for shift in range(7, -1, -1):
            node = _TREE[node][key >> shift & 1]
            if node < 0:
                symbol = ~node
                if symbol == _EOS:  # section 5.2
                    raise HuffmanError("EOS in a Huffman-coded string")
                symbols.append(symbol)
                node = 0
        transition = self[key] = node << 8, bytes(symbols)
        return transition


_TREE: Final = _build_tree()
_STRING_ENDS: Final = frozenset(node << 8 for node in _padding_nodes(_TREE))
_transitions = _Transitions()
_memo: dict[bytes, bytes] = {}


def decode(encoded: bytes) -> bytes:
    """Return the string. Raise `HuffmanError` if it holds EOS or is not padded as section 5.2 demands."""
    memoized = _memo.get(encoded)
    if memoized is not None:
        return memoized
    state = 0
    parts = []
    for byte in encoded:
        state, symbols = _transitions[state | byte]
        parts.append(symbols)
    if state not in _STRING_ENDS:
        raise HuffmanError("the padding of a Huffman-coded string is not 0 to 7 one bits")
    decoded = b"".join(parts)
    if len(encoded) <= MEMO_STRING_BYTES_MAX:
        if len(_memo) >= MEMO_STRINGS_MAX:
            _memo.clear()
        _memo[encoded] = decoded
    return decoded
