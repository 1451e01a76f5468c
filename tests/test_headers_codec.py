"""Headers as bytes: what goes in comes out, in order; the encoding does not change."""

from hypothesis import given
from hypothesis import strategies as st

from persistence.headers import decode_headers, encode_headers, headers_size_bytes


@given(st.dictionaries(st.text(), st.binary()))
def test_headers_come_out_as_they_went_in(headers: dict[str, bytes]) -> None:
    assert list(decode_headers(encode_headers(headers)).items()) == list(headers.items())


def test_the_encoding_is_part_of_the_files_format() -> None:
    encoded = encode_headers({"é": b"\0", "": b""})
    assert encoded == b"\0\0\0\2\0\0\0\1\xc3\xa9\0" + b"\0" * 8


def test_no_headers_are_nothing() -> None:
    assert encode_headers({}) is None
    assert decode_headers(None) == {}


def test_names_and_values_count_for_the_size() -> None:
    assert headers_size_bytes({}) == 0
    assert headers_size_bytes({"é": b"123", "a": b""}) == 6
