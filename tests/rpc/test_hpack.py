"""HPACK: the examples of RFC 7541, the `hpack` library as the other side, and every limit at its edge."""

import copy
import tracemalloc

import hpack
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trio_broker.rpc.header_table import STATIC_TABLE
from trio_broker.rpc.hpack import INDEXED_STATUS_200, Decoder, HeaderListTooLarge, HpackError, literal

untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def integer(value: int, prefix_bits: int, pattern: int = 0) -> bytes:
    """Section 5.1, to the letter."""
    full = 2**prefix_bits - 1
    if value < full:
        return bytes([pattern | value])
    encoded = [pattern | full]
    value -= full
    while value >= 128:
        encoded.append(value % 128 + 128)
        value //= 128
    return bytes([*encoded, value])


def indexed(index: int) -> bytes:
    return integer(index, 7, 0x80)


def size_update(size: int) -> bytes:
    return integer(size, 5, 0x20)


def string(value: bytes) -> bytes:
    return integer(len(value), 7) + value


def incremental(name: bytes, value: bytes) -> bytes:
    return b"\x40" + string(name) + string(value)


def dynamic_table(decoder: Decoder) -> list[tuple[bytes, bytes]]:
    """The entries, newest first, as a peer can see them."""
    entries = []
    while True:
        try:
            entries += copy.deepcopy(decoder).decode(indexed(62 + len(entries)))
        except HpackError:
            return entries


def parsed(fields: str) -> list[tuple[bytes, bytes]]:
    """``name: value | name: value``; a name may start with a colon."""
    return [(name, value) for name, _, value in (field.partition(b": ") for field in fields.encode().split(b" | "))]


# Appendix C


@pytest.mark.parametrize(
    ("block", "field", "kept"),
    [
        ("400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572", "custom-key: custom-header", True),
        ("040c 2f73 616d 706c 652f 7061 7468", ":path: /sample/path", False),
        ("1008 7061 7373 776f 7264 0673 6563 7265 74", "password: secret", False),
        ("82", ":method: GET", False),
    ],
    ids=["C.2.1", "C.2.2", "C.2.3", "C.2.4"],
)
def test_the_rfc_examples_of_single_fields(block, field, kept):
    decoder = Decoder()
    assert decoder.decode(bytes.fromhex(block)) == parsed(field)
    assert dynamic_table(decoder) == (parsed(field) if kept else [])


REQUESTS = [
    ":method: GET | :scheme: http | :path: / | :authority: www.example.com",
    ":method: GET | :scheme: http | :path: / | :authority: www.example.com | cache-control: no-cache",
    ":method: GET | :scheme: https | :path: /index.html | :authority: www.example.com | custom-key: custom-value",
]
REQUEST_TABLES = [
    ":authority: www.example.com",
    "cache-control: no-cache | :authority: www.example.com",
    "custom-key: custom-value | cache-control: no-cache | :authority: www.example.com",
]
DATE_1, DATE_2 = "date: Mon, 21 Oct 2013 20:13:21 GMT", "date: Mon, 21 Oct 2013 20:13:22 GMT"
LOCATION = "location: https://www.example.com"
COOKIE = "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"
RESPONSES = [
    f":status: 302 | cache-control: private | {DATE_1} | {LOCATION}",
    f":status: 307 | cache-control: private | {DATE_1} | {LOCATION}",
    f":status: 200 | cache-control: private | {DATE_2} | {LOCATION} | content-encoding: gzip | {COOKIE}",
]
RESPONSE_TABLES = [
    f"{LOCATION} | {DATE_1} | cache-control: private | :status: 302",
    f":status: 307 | {LOCATION} | {DATE_1} | cache-control: private",
    f"{COOKIE} | content-encoding: gzip | {DATE_2}",
]
C_3 = """
8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d

8286 84be 5808 6e6f 2d63 6163 6865

8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65
"""
C_4 = """
8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff

8286 84be 5886 a8eb 1064 9cbf

8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf
"""
C_5 = """
4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133
2032 303a 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d

4803 3330 37c1 c0bf

88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d
54c0 5a04 677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049
5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31
"""
C_6 = """
4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6
2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3

4883 640e ffc1 c0bf

88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab
77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f
9587 3160 65c0 03ed 4ee5 b106 3d50 07
"""


def blocks_of(dump: str) -> list[bytes]:
    return [bytes.fromhex(block) for block in dump.split("\n\n")]


@pytest.mark.parametrize(
    ("dump", "table_size_max", "lists", "tables"),
    [
        pytest.param(C_3, 4096, REQUESTS, REQUEST_TABLES, id="C.3"),
        pytest.param(C_4, 4096, REQUESTS, REQUEST_TABLES, id="C.4"),
        pytest.param(C_5, 256, RESPONSES, RESPONSE_TABLES, id="C.5"),
        pytest.param(C_6, 256, RESPONSES, RESPONSE_TABLES, id="C.6"),
    ],
)
def test_the_rfc_examples_of_sequences(dump, table_size_max, lists, tables):
    decoder = Decoder(table_size_max)
    for block, fields, table in zip(blocks_of(dump), lists, tables, strict=True):
        assert decoder.decode(block) == parsed(fields)
        assert dynamic_table(decoder) == parsed(table)


def test_the_rfc_examples_of_integers():
    field = incremental(b"", b"")  # 32 bytes
    for update, entries in [("2a", 0), ("3f9a0a", 1337 // 32)]:  # C.1.1: 10, C.1.2: 1337
        decoder = Decoder()
        decoder.decode(bytes.fromhex(update) + 50 * field)
        assert len(dynamic_table(decoder)) == entries


# The tables


def test_the_static_table_is_that_of_the_rfc():
    assert list(STATIC_TABLE) == [(bytes(name), bytes(value)) for name, value in HeaderTable.STATIC_TABLE]
    assert Decoder().decode(b"".join(indexed(index) for index in range(1, 62))) == list(STATIC_TABLE)


@pytest.mark.parametrize("block", [indexed(0), indexed(62), indexed(126), indexed(127), indexed(10**6)])
def test_an_index_of_nothing_is_an_error(block):
    with pytest.raises(HpackError, match="no field has index"):
        Decoder().decode(block)


@pytest.mark.parametrize("pattern_and_bits", [(0x40, 6), (0x00, 4), (0x10, 4)])
def test_a_literal_may_name_only_what_exists(pattern_and_bits):
    pattern, bits = pattern_and_bits
    assert Decoder().decode(integer(61, bits, pattern) + string(b"Basic")) == [(b"www-authenticate", b"Basic")]
    with pytest.raises(HpackError, match="no field has index 62"):
        Decoder().decode(integer(62, bits, pattern) + string(b"Basic"))


def test_the_newest_entry_is_62_and_the_oldest_goes_first():
    decoder = Decoder(table_size_max=3 * 34)
    decoder.decode(b"".join(incremental(b"n", b"%d" % number) for number in range(4)))
    assert decoder.decode(indexed(62) + indexed(64)) == [(b"n", b"3"), (b"n", b"1")]
    assert len(dynamic_table(decoder)) == 3


def test_an_entry_as_large_as_the_table_is_kept_and_a_larger_one_empties_it():
    decoder = Decoder(table_size_max=100)
    fits, larger = (b"name", bytes(64)), (b"name", bytes(65))
    for field, kept in [(larger, []), (fits, [fits]), (larger, [])]:
        assert decoder.decode(incremental(*field)) == [field]
        assert dynamic_table(decoder) == kept


def test_a_new_entry_may_take_its_name_from_one_that_it_evicts():
    decoder = Decoder(table_size_max=40)
    decoder.decode(incremental(b"name", b"old"))
    assert decoder.decode(integer(62, 6, 0x40) + string(b"new")) == [(b"name", b"new")]
    assert dynamic_table(decoder) == [(b"name", b"new")]


# Table size updates


def test_a_smaller_table_evicts_and_a_larger_one_does_not_bring_back():
    decoder = Decoder()
    decoder.decode(incremental(b"a", b"") + incremental(b"b", b""))
    assert decoder.decode(size_update(33) + size_update(4096)) == []
    assert dynamic_table(decoder) == [(b"b", b"")]
    decoder.decode(size_update(32))
    assert dynamic_table(decoder) == []


def test_the_table_may_be_as_large_as_announced_and_no_larger():
    Decoder(table_size_max=5000).decode(size_update(5000))
    with pytest.raises(HpackError, match="5001 bytes; at most 5000"):
        Decoder(table_size_max=5000).decode(size_update(5001))


def test_a_larger_table_is_used_only_once_the_encoder_says_so():
    block = b"".join(incremental(b"n", bytes(967)) for _ in range(8))  # 1000 bytes each
    decoder = Decoder(table_size_max=8000)
    decoder.decode(block)
    assert len(dynamic_table(decoder)) == 4
    decoder.decode(size_update(8000) + block)
    assert len(dynamic_table(decoder)) == 8


def test_a_size_update_after_a_field_is_an_error():
    with pytest.raises(HpackError, match="after a field"):
        Decoder().decode(indexed(2) + size_update(4096))


def test_mutated_tells_whether_the_table_may_have_changed():
    decoder = Decoder()
    for block, mutated in [
        (indexed(2) + literal(b"n", b"v"), False),
        (incremental(b"n", b"v"), True),
        (indexed(62) + integer(62, 4, 0x10) + string(b"v"), False),
        (size_update(0), True),
        (b"", False),
    ]:
        decoder.decode(block)
        assert decoder.mutated is mutated


# Integers and strings


def test_an_integer_has_at_most_four_bytes_after_its_prefix():
    """However many of them are zeros."""
    assert Decoder().decode(b"\x0f\x80\x80\x80\x00" + string(b"v")) == [(b"accept-charset", b"v")]
    for rest in [b"\x80\x80\x80\x80\x00", b"\xff\xff\xff\xff\x00", 10_000 * b"\x80"]:
        with pytest.raises(HpackError, match="an integer is too long"):
            Decoder().decode(b"\x0f" + rest + string(b"v"))


@pytest.mark.parametrize("length", [0, 1, 126, 127, 128, 254, 255, 256, 16_510, 16_511, 60_000])
def test_strings_of_all_lengths_in_both_directions(length):
    field = (b"n" * length, b"v" * length)
    assert Decoder(list_size_max=2**20).decode(literal(*field)) == [field]
    assert hpack.Decoder(2**20).decode(literal(*field), raw=True) == [field]


def test_our_status_is_200():
    assert hpack.Decoder().decode(INDEXED_STATUS_200) == [(":status", "200")]


@pytest.mark.parametrize("dump", [C_5, C_6], ids=["plain", "huffman"])
def test_a_block_cut_between_fields_is_shorter_and_one_cut_elsewhere_an_error(dump):
    block = blocks_of(dump)[0]
    lists = []
    for end in range(len(block) + 1):
        try:
            lists.append(Decoder().decode(block[:end]))
        except HpackError:
            continue
    fields = parsed(RESPONSES[0])
    assert lists == [fields[:count] for count in range(len(fields) + 1)]


@pytest.mark.parametrize("encoded", [b"\xff", b"\x1f\xff", b"\x00", b"\xff\xff\xff\xff"])
def test_a_wrong_huffman_string_is_an_error_of_the_block(encoded):
    with pytest.raises(HpackError, match="Huffman-coded string"):
        Decoder().decode(b"\x00" + string(b"n") + integer(len(encoded), 7, 0x80) + encoded)


# The size of the list


def test_a_list_may_be_as_large_as_allowed_and_no_larger():
    block = literal(b"name", bytes(64)) + indexed(2)  # 100 and 42 bytes
    assert len(Decoder(list_size_max=142).decode(block)) == 2
    with pytest.raises(HeaderListTooLarge, match="142 bytes; at most 141"):
        Decoder(list_size_max=141).decode(block)


def test_after_a_list_that_is_too_large_the_tables_are_in_step():
    encoder = hpack.Encoder()
    decoder = Decoder(list_size_max=200)
    with pytest.raises(HeaderListTooLarge):
        decoder.decode(encoder.encode([(b"name", b"%050d" % number) for number in range(10)]))
    assert decoder.mutated
    fields = [(b"name", b"%050d" % 9), (b"name", b"%050d" % 0)]
    block = encoder.encode(fields)
    assert block == indexed(62) + indexed(71)
    assert decoder.decode(block) == fields


def test_a_large_entry_referred_to_many_times_takes_no_memory():
    decoder = Decoder()
    decoder.decode(incremental(b"name", bytes(4000)))
    block = 100_000 * indexed(62)
    tracemalloc.start()
    try:
        with pytest.raises(HeaderListTooLarge):
            decoder.decode(block)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 16_384


# Another implementation

names = st.sampled_from([b":path", b"te", b"grpc-timeout", b"custom", b""]) | st.binary(max_size=40)
values = st.sampled_from([b"trailers", b"/", b"1S", b""]) | st.binary(max_size=400)
sizes = st.sampled_from([0, 31, 32, 64, 4096, 8192]) | st.integers(0, 8192)


@given(
    st.lists(
        st.tuples(
            st.none() | sizes,
            st.lists(st.tuples(names, values, st.booleans()), max_size=12),
            st.booleans(),
        ),
        max_size=8,
    )
)
@untimed
def test_what_the_hpack_library_encodes_is_what_we_decode(blocks):
    encoder = hpack.Encoder()
    decoder = Decoder(table_size_max=8192, list_size_max=2**20)
    for table_size, fields, use_huffman in blocks:
        if table_size is not None:
            encoder.header_table_size = table_size
        block = encoder.encode(fields, huffman=use_huffman)
        assert decoder.decode(block) == [(name, value) for name, value, _ in fields]
        assert dynamic_table(decoder) == list(encoder.header_table.dynamic_entries)


huffman_coded = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode
raw = st.binary(max_size=6)
strings = raw.map(string) | (raw.map(huffman_coded) | raw).map(lambda coded: integer(len(coded), 7, 0x80) + coded)
literals = st.sampled_from([b"\x00", b"\x10", b"\x40"])
pieces = st.one_of(
    st.integers(1, 64).map(indexed),
    st.tuples(st.integers(0, 0x7F).map(lambda first: bytes([first])), strings).map(b"".join),
    st.tuples(literals, strings, strings).map(b"".join),
    st.binary(max_size=4),
)

size_updates = st.lists(st.integers(0, 4100).map(size_update), max_size=2)
any_blocks = st.builds(lambda updates, fields: b"".join(updates + fields), size_updates, st.lists(pieces, max_size=8))


@given(st.lists(any_blocks, max_size=4))
@untimed
def test_any_bytes_give_what_the_hpack_library_makes_of_them_or_a_declared_error(blocks):
    decoder, other = Decoder(list_size_max=150), hpack.Decoder()
    other.max_allowed_table_size = 4096
    for block in blocks:
        try:
            fields = decoder.decode(block)
        except HeaderListTooLarge:
            other.decode(block, raw=True)
        except HpackError:
            return
        else:
            assert fields == other.decode(block, raw=True)
        assert dynamic_table(decoder) == list(other.header_table.dynamic_entries)
