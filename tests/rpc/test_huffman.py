"""HPACK's Huffman code, against the code of the `hpack` library and a slow obvious decoder."""

from collections.abc import Iterable

import pytest
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from trio_broker.rpc import huffman

CODES = [f"{code:0{length}b}" for code, length in zip(REQUEST_CODES, REQUEST_CODES_LENGTH, strict=True)]
SYMBOLS = {code: symbol for symbol, code in enumerate(CODES)}
EOS = 256


def huffman_coded(symbols: Iterable[int]) -> bytes:
    """Section 5.2, to the letter."""
    bits = "".join(CODES[symbol] for symbol in symbols)
    bits += "1" * (-len(bits) % 8)
    return bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))


def slowly_decoded(encoded: bytes) -> bytes | None:
    """The string, or None where section 5.2 asks for an error."""
    decoded = bytearray()
    code = ""
    for bit in "".join(f"{byte:08b}" for byte in encoded):
        code += bit
        if code in SYMBOLS:
            if SYMBOLS[code] == EOS:
                return None
            decoded.append(SYMBOLS[code])
            code = ""
    return bytes(decoded) if len(code) < 8 and "0" not in code else None


def test_the_code_lengths_are_those_of_the_rfc():
    assert list(huffman.CODE_LENGTHS) == REQUEST_CODES_LENGTH


@given(
    st.binary(max_size=12)
    | st.builds(lambda text, rest: huffman_coded(text) + rest, st.binary(), st.binary(max_size=3))
)
@example(huffman_coded(range(256)))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_huffman_strings_are_decoded_or_refused_as_by_a_slow_obvious_decoder(encoded):
    expected = slowly_decoded(encoded)
    try:
        decoded = huffman.decode(encoded)
    except huffman.HuffmanError:
        decoded = None
    assert decoded == expected


@pytest.mark.parametrize("symbols", [[EOS], [*b"a", EOS], [EOS, *b"a"]])
def test_eos_in_a_string_is_an_error(symbols):
    with pytest.raises(huffman.HuffmanError, match="EOS"):
        huffman.decode(huffman_coded(symbols))


def test_the_memo_is_bounded_and_holds_no_long_strings():
    for number in range(huffman.MEMO_STRINGS_MAX + 10):
        value = b"%d" % number
        assert huffman.decode(huffman_coded(value)) == value
        assert len(huffman._memo) <= huffman.MEMO_STRINGS_MAX
    longest, longer = huffman_coded(25 * b"0"), huffman_coded(26 * b"0")
    assert (len(longest), len(longer)) == (huffman.MEMO_STRING_BYTES_MAX, huffman.MEMO_STRING_BYTES_MAX + 1)
    for encoded in (longest, longer):
        huffman.decode(encoded)
    assert longest in huffman._memo
    assert longer not in huffman._memo
